"""Rivals of multiagent finetuning from other papers, each made from a configuration. None learns from gold answers."""

import dataclasses
from typing import Any

from mft_jax.config import ExperimentConfig
from mft_jax.debate.protocol import Protocol, everyone
from mft_jax.finetuning.examples import Dialogues, Selector, Solutions
from mft_jax.finetuning.lesson import Lesson
from mft_jax.finetuning.losses import ClippedPolicyGradient, DesirablePreference, DirectPreference, likelihood
from mft_jax.finetuning.preferences import ConsensusPairs, Desirable, VotedPairs
from mft_jax.finetuning.rewards import Novel, Rewarded
from mft_jax.methods.method import Method
from mft_jax.methods.paper import multiagent_ft
from mft_jax.programs.train import Objective


def long_answer(config: ExperimentConfig) -> Method:
    """The base model answers once, with room for as many tokens as a whole debate may use."""
    rules = Protocol(speakers=everyone(None, config.debate.agents, config.debate.rounds), shows=config.debate.shows)
    room = rules.samples * config.sampling.max_new_tokens
    return Method(name="long_answer", protocol=Protocol(speakers=everyone(None, 1, 1), max_new_tokens=room))


def maca(config: ExperimentConfig) -> Method:
    """MACA (arXiv 2509.15172) with DPO: N agents, one adapter each, debate.

    Each learns to prefer dialogues that agree with the final vote to those that do not, in pairs that hold one of its own.
    """
    pairs = lambda agent: ConsensusPairs(agent=agent, final_turn_only=config.finetuning.final_turn_only)
    return _society("maca", config, pairs, _pairwise(config))


def maca_kto(config: ExperimentConfig) -> Method:
    """`maca` with KTO: each agent learns from all its own dialogues, without pairs."""
    own, settings = config.finetuning.final_turn_only, config.finetuning.preference
    objective = DesirablePreference(beta=settings.beta, reference=settings.reference)
    return _society("maca_kto", config, lambda agent: Desirable(agent=agent, final_turn_only=own), objective)


def maca_grpo(config: ExperimentConfig) -> Method:
    """`maca` with a policy gradient: an agent's dialogue is rewarded if its last answer agrees with the vote."""
    own = config.finetuning.final_turn_only
    return _society(
        "maca_grpo", config, lambda agent: Rewarded(agent=agent, final_turn_only=own), _policy(config)
    )  # fmt: skip


def maca_sft(config: ExperimentConfig) -> Method:
    """`maca` with the likelihood: an agent imitates its own dialogues whose last answer agrees with the vote."""
    answers = "last" if config.finetuning.final_turn_only else "all"
    return _society(
        "maca_sft", config, lambda agent: Dialogues(agent=agent, rule="all", answers=answers), likelihood
    )  # fmt: skip


def maca_single(config: ExperimentConfig) -> Method:
    """`maca` with one model that speaks for all agents and learns from all pairs."""
    pairs = ConsensusPairs(final_turn_only=config.finetuning.final_turn_only)
    rules = Protocol(speakers=everyone("agent", config.debate.agents, config.debate.rounds))
    return _one_model("maca_single", config, rules, pairs, _pairwise(config), tested=rules)


def scpo(config: ExperimentConfig) -> Method:
    """ScPO (arXiv 2411.04109): one model gives k answers and learns to prefer the most common to the least common.

    Pairs are weighted by the difference of their votes. It is evaluated with one answer.
    """
    objective = _pairwise(config, winner_nll=1.0)
    return _one_model("scpo", config, _samples(config), VotedPairs(), objective, min_vote_share=0.5)


def ttrl(config: ExperimentConfig) -> Method:
    """TTRL (arXiv 2504.16084): one model gives k answers; those that agree with their majority vote are rewarded.

    It is evaluated with one answer.
    """
    return _one_model("ttrl", config, _samples(config), Rewarded(first=True), _policy(config))


def evol(config: ExperimentConfig) -> Method:
    """EVOL-RL (arXiv 2509.15194): `ttrl` with higher rewards for answers that differ from the others on their side."""
    return _one_model("evol", config, _samples(config), Novel(), _policy(config, clip_high=0.28, entropy=0.003))


def dte(config: ExperimentConfig) -> Method:
    """Debate, train, evolve (arXiv 2505.15734): one model debates with itself and learns to reach the debate's vote alone.

    Its first answers are rewarded if they agree with the final vote. It is evaluated with one answer.
    """
    rules = Protocol(speakers=everyone("agent", config.debate.agents, config.debate.rounds))
    return _one_model("dte", config, rules, Rewarded(first=True), _policy(config))


def distill(config: ExperimentConfig) -> Method:
    """`multiagent_ft`, and one more model, "student", that in each iteration learns the answers of the society's debates.

    The student starts each iteration anew. It is evaluated instead of the society, with one answer.
    """
    society, tuning = multiagent_ft(config), config.finetuning
    student = Lesson(
        adapter="student", select=Solutions(config.debate.agents), settings=tuning.generator, restart=True,
        field="finetuning.generator", stream=2 * config.debate.agents, min_vote_share=tuning.min_vote_share or 0.0,
    )  # fmt: skip
    return dataclasses.replace(
        society, name="distill", lessons=(*society.lessons, student),
        test_protocol=Protocol(speakers=everyone("student", 1, 1)),
    )  # fmt: skip


def _society(name: str, config: ExperimentConfig, select: Any, objective: Objective) -> Method:
    """N agents that keep their own adapter through the debate. `select(n)` is what agent n learns from."""
    agents, rounds = config.debate.agents, config.debate.rounds
    names = tuple(f"agent_{n}" for n in range(agents))
    lessons = [_lesson(adapter, config, select(n), objective, stream=n) for n, adapter in enumerate(names)]
    return Method(
        name=name, protocol=Protocol(speakers=(names,) * rounds), lessons=tuple(lessons), objective=objective,
        restart=config.finetuning.restart_from_base,
    )  # fmt: skip


def _one_model(
    name: str,
    config: ExperimentConfig,
    rules: Protocol,
    select: Selector,
    objective: Objective,
    tested: Protocol | None = None,
    min_vote_share: float = 0.0,
) -> Method:
    """A method that finetunes one adapter, "agent", and evaluates it with one answer, or by the rules `tested`."""
    lesson = _lesson("agent", config, select, objective, min_vote_share=min_vote_share)
    return Method(
        name=name, protocol=rules, test_protocol=tested or Protocol(speakers=everyone("agent", 1, 1)),
        lessons=(lesson,), objective=objective, restart=config.finetuning.restart_from_base,
    )  # fmt: skip


def _lesson(
    adapter: str,
    config: ExperimentConfig,
    select: Selector,
    objective: Objective,
    stream: int = 0,
    min_vote_share: float = 0.0,
) -> Lesson:
    tuning = config.finetuning
    kind = "generator" if objective == likelihood else "policy" if objective.uses_old else "preference"
    least = min_vote_share if tuning.min_vote_share is None else tuning.min_vote_share
    return Lesson(
        adapter=adapter, select=select, settings=getattr(tuning, kind), field=f"finetuning.{kind}", stream=stream,
        min_vote_share=least,
    )  # fmt: skip


def _samples(config: ExperimentConfig) -> Protocol:
    """The rules of scpo, ttrl and evol: one model gives k independent answers."""
    return Protocol(speakers=everyone("agent", config.debate.samples or config.debate.agents, 1))


def _pairwise(config: ExperimentConfig, winner_nll: float = 0.0) -> DirectPreference:
    given = config.finetuning.preference
    weight = winner_nll if given.winner_nll is None else given.winner_nll
    return DirectPreference(beta=given.beta, winner_nll=weight, reference=given.reference)


def _policy(config: ExperimentConfig, clip_high: float = 0.2, entropy: float = 0.0) -> ClippedPolicyGradient:
    given = config.finetuning.policy
    return ClippedPolicyGradient(
        clip_low=given.clip_low,
        clip_high=clip_high if given.clip_high is None else given.clip_high,
        kl=given.kl,
        entropy=entropy if given.entropy is None else given.entropy,
        reference=given.reference,
    )
