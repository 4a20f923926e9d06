"""The methods of Subramaniam et al. 2025 (arXiv 2501.05707), each made from a configuration."""

from mft_jax.config import ExperimentConfig
from mft_jax.debate.protocol import Protocol, everyone
from mft_jax.finetuning.examples import Dialogues, FirstAnswers
from mft_jax.finetuning.lesson import Lesson
from mft_jax.methods.method import Method


def base(config: ExperimentConfig) -> Method:
    """The base model answers once."""
    del config
    return Method(name="base", protocol=Protocol(speakers=everyone(None, 1, 1)))


def majority(config: ExperimentConfig) -> Method:
    """A majority vote over N independent answers of the base model."""
    return Method(name="majority", protocol=Protocol(speakers=everyone(None, config.debate.agents, 1)))


def debate(config: ExperimentConfig) -> Method:
    """A debate of N agents over M rounds with summaries. The base model speaks for all agents."""
    rules = config.debate
    return Method(name="debate", protocol=Protocol(speakers=everyone(None, rules.agents, rules.rounds)))


def multiagent_ft(config: ExperimentConfig) -> Method:
    """Multiagent finetuning (Algorithm 1 of the paper), with 2N adapters.

    Generator n answers for agent n in round 1, and learns from its own first answers that agree with the final vote.
    Critic n answers in all later rounds, and learns from agent n's dialogues whose last answer agrees with the vote.
    """
    rules, tuning = config.debate, config.finetuning
    generators, critics = (tuple(f"{role}_{n}" for n in range(rules.agents)) for role in ("generator", "critic"))
    first = [
        Lesson(adapter=name, select=FirstAnswers(n), settings=tuning.generator, field="finetuning.generator", stream=n)
        for n, name in enumerate(generators)
    ]
    dialogues = [
        Lesson(
            adapter=name, field="finetuning.critic", settings=tuning.critic, stream=n,
            select=Dialogues(
                agent=n, share=tuning.critic_mix, rule=tuning.critic_rule, final_turn_only=tuning.final_turn_only
            ),
        )
        for n, name in enumerate(critics)
    ]  # fmt: skip
    return Method(
        name="multiagent_ft",
        protocol=Protocol(speakers=(generators, *(critics,) * (rules.rounds - 1))),
        lessons=(*first, *dialogues),
        restart=tuning.restart_from_base,
    )
