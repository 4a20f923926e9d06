"""The methods of Subramaniam et al. 2025 (arXiv 2501.05707), each made from a configuration."""

import dataclasses
from typing import Any

from mft_jax.config import ExperimentConfig, FinetuningConfig
from mft_jax.debate.protocol import Protocol, everyone
from mft_jax.errors import UserError
from mft_jax.finetuning.examples import Dialogues, FirstAnswers, PooledFirstAnswers, TrueAnswers
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
    Critic n answers in all later rounds, and learns from agent n's dialogues whose last answer agrees with the vote. By
    default it learns only this last answer, and only where more than half of the answers of all rounds agree with the vote:
    critics give the last answers, which decide the vote, so agreement among these alone is weak evidence.

    The paper's critics learn from all debates, from as many corrected dialogues as kept ones, and all answers, also wrong
    ones that are corrected later. Such critics lower the accuracy of the vote (docs/results.md). `critic_rule: share` with
    `critic_answers: all` and `critic_support: 0` trains them.
    """
    rules, tuning = config.debate, config.finetuning
    if tuning.critic_mix != FinetuningConfig.critic_mix and tuning.critic_rule not in ("share", "weighted"):
        raise UserError(
            f"finetuning.critic_mix is {tuning.critic_mix:g}, but finetuning.critic_rule is {tuning.critic_rule}, which does "
            "not use it: set critic_rule to share or weighted, or remove critic_mix."
        )
    generators, critics = (tuple(f"{role}_{n}" for n in range(rules.agents)) for role in ("generator", "critic"))
    least = tuning.min_vote_share or 0.0
    answers = "last" if tuning.final_turn_only else tuning.critic_answers
    first = [
        Lesson(
            adapter=name, field="finetuning.generator", settings=tuning.generator, stream=n, min_vote_share=least,
            select=FirstAnswers(n),
        )
        for n, name in enumerate(generators)
    ]  # fmt: skip
    dialogues = [
        Lesson(
            adapter=name, field="finetuning.critic", settings=tuning.critic, stream=n, min_vote_share=least,
            support=tuning.critic_support,
            select=Dialogues(agent=n, share=tuning.critic_mix, rule=tuning.critic_rule, answers=answers),
        )
        for n, name in enumerate(critics)
    ]  # fmt: skip
    return Method(
        name="multiagent_ft",
        protocol=Protocol(speakers=(generators, *(critics,) * (rules.rounds - 1))),
        lessons=(*first, *dialogues),
        restart=tuning.restart_from_base,
    )


def multiagent_ft_no_summary(config: ExperimentConfig) -> Method:
    """The ablation without summaries: in rounds 2..M an agent is shown the other agents' answers themselves."""
    return _with_other_rules("multiagent_ft_no_summary", multiagent_ft(config), shows="answers")


def multiagent_ft_no_critic(config: ExperimentConfig) -> Method:
    """The ablation without critics: only generators are finetuned, and they also answer in rounds 2..M."""
    full = multiagent_ft(config)
    generators = full.protocol.speakers[:1] * config.debate.rounds
    return dataclasses.replace(
        full,
        name="multiagent_ft_no_critic",
        protocol=Protocol(speakers=generators),
        lessons=full.lessons[: config.debate.agents],
    )


def cooperative(config: ExperimentConfig) -> Method:
    """`multiagent_ft` with agents that build on each other's answers to agree on one solution, instead of debating."""
    return _with_other_rules("cooperative", multiagent_ft(config), spirit="cooperate")


def unique_id(config: ExperimentConfig) -> Method:
    """`single_agent_ft` with prompts that tell each agent its name, so that one model can play different agents."""
    return _with_other_rules("unique_id", single_agent_ft(config), named=True)


def single_agent_ft(config: ExperimentConfig) -> Method:
    """One model speaks for all agents of the debate and learns from the first answers that agree with the final vote."""
    rules = config.debate
    return _one_model("single_agent_ft", config, Protocol(speakers=everyone("agent", rules.agents, rules.rounds)))


def single_agent_ft_no_debate(config: ExperimentConfig) -> Method:
    """The model of `single_agent_ft`, evaluated without a debate: it answers once."""
    one_answer = Protocol(speakers=everyone("agent", 1, 1))
    return dataclasses.replace(single_agent_ft(config), name="single_agent_ft_no_debate", test_protocol=one_answer)


def star(config: ExperimentConfig) -> Method:
    """STaR (Zelikman et al. 2022, arXiv 2203.14465), which learns from the true answers of the training questions.

    One model answers. Where its answer is wrong, it tries again with the true answer as a hint. It learns from the right
    answers of both attempts, and is evaluated with one answer.
    """
    tuning, attempts = (
        config.finetuning,
        Protocol(speakers=everyone("agent", 1, 2), shows="true answer", stops="correct"),
    )
    lesson = Lesson(
        adapter="agent", select=TrueAnswers(), settings=tuning.generator, field="finetuning.generator", stream=0
    )
    return Method(
        name="star", protocol=attempts, test_protocol=Protocol(speakers=everyone("agent", 1, 1)), lessons=(lesson,),
        restart=tuning.restart_from_base, needs_gold=True,
    )  # fmt: skip


def majority_ft(config: ExperimentConfig) -> Method:
    """One model gives N answers without a debate, and learns from those that agree with their majority vote.

    It is evaluated by a majority vote over N answers.
    """
    return _one_model("majority_ft", config, Protocol(speakers=everyone("agent", config.debate.agents, 1)))


def _one_model(name: str, config: ExperimentConfig, protocol: Protocol) -> Method:
    """A method that finetunes one adapter, "agent", on the pooled first answers of its debates."""
    tuning = config.finetuning
    lesson = Lesson(
        adapter="agent", select=PooledFirstAnswers(protocol.agents), settings=tuning.generator,
        field="finetuning.generator", stream=0, min_vote_share=tuning.min_vote_share or 0.0,
    )  # fmt: skip
    return Method(name=name, protocol=protocol, lessons=(lesson,), restart=tuning.restart_from_base)


def _with_other_rules(name: str, method: Method, **rules: Any) -> Method:
    """`method` under another name, with some fields of its protocol changed."""
    return dataclasses.replace(method, name=name, protocol=dataclasses.replace(method.protocol, **rules))
