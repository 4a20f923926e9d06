"""Selectors for the policy gradient: answers with advantages, whose rewards come from the vote and not from gold answers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mft_jax.debate.transcript import Transcript
from mft_jax.finetuning.examples import EachDebate, Equivalent, Example, agrees, is_complete, learning
from mft_jax.prompts import Message

# The mean hidden states [n, D] of the base model over the assistant's tokens of n dialogues.
Embed = Callable[[Sequence[Sequence[Message]]], Float[np.ndarray, "n D"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewarded(EachDebate):
    """The answers of an agent, with a reward of 1 if they agree with the final vote of the question and 0 if not.

    The advantage of an answer is its reward minus the mean reward of all agents, over the standard deviation of the rewards
    (GRPO).
    Questions with equal rewards are left out, because all their advantages are 0.
    """

    agent: int | None = None
    """Only the answers of this agent (from 0); None: those of all agents."""
    first: bool = False
    """True: the first answers. False: the whole dialogues, with the reward of the last answer."""
    final_turn_only: bool = False
    """For whole dialogues: only the last answer is a training target."""

    def from_debate(self, transcript: Transcript, equivalent: Equivalent) -> list[Example]:
        answers = _answers(transcript, equivalent, self.first, self.final_turn_only)
        advantages = group_advantages([float(own.agrees) for own in answers])
        return [
            learning(own.example(transcript.id, advantage), self.final_turn_only and not self.first)
            for own, advantage in zip(answers, advantages, strict=True)
            if advantage and self.agent in (None, own.agent)
        ]


@dataclasses.dataclass(frozen=True)
class Novel:
    """The first answers of all agents, with rewards that favour answers unlike the others (EVOL-RL, arXiv 2509.15194).

    Answers that agree with the vote get 0.5 to 1, others -1 to -0.5: within each of these two sides, the more novel an
    answer, the higher. Texts without an answer get -1. Advantages are computed as in `Rewarded`.
    """

    uses_embeddings: ClassVar[bool] = True

    def __call__(
        self,
        transcripts: Sequence[Transcript],
        equivalent: Equivalent,
        rng: np.random.Generator,
        embed: Embed | None = None,
    ) -> list[Example]:
        del rng  # this selector is deterministic
        if embed is None:
            raise ValueError("Novel compares answers by their embeddings: pass `embed`")
        answers = [_answers(transcript, equivalent, first=True) for transcript in transcripts]
        states = iter(embed([own.messages for group in answers for own in group]))
        examples = []
        for transcript, group in zip(transcripts, answers, strict=True):
            rewards = novelty_rewards(np.stack([next(states) for _ in group]), group) if group else []
            for own, advantage in zip(group, group_advantages(rewards), strict=True):
                if advantage:
                    examples.append(own.example(transcript.id, advantage))
        return examples


@dataclasses.dataclass(frozen=True)
class Answer:
    """A complete answer, and whether it agrees with the vote."""

    agent: int
    messages: list[Message]
    agrees: bool
    parsed: bool  # whether the text has an answer

    def example(self, id: str, advantage: float) -> Example:
        return Example(
            id=id, messages=self.messages, kind="agreeing" if self.agrees else "disagreeing", value=advantage
        )


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """(reward - mean) / standard deviation, rounded to six decimals; zeros if all rewards are equal."""
    values = np.asarray(rewards, np.float64)
    if not len(values) or values.max() - values.min() < 1e-9:
        return [0.0] * len(values)
    return [round(value, 6) for value in ((values - values.mean()) / values.std()).tolist()]


def novelty_rewards(states: Float[np.ndarray, "k D"], answers: Sequence[Answer]) -> list[float]:
    """The rewards of `Novel` for the answers to one question.

    The novelty of an answer is 1 minus the average of two cosine similarities: the mean one to the other answers on its
    side (0 if there are none), and the highest one to any other answer. It is scaled to 0..1 on each side.
    """
    unit = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-9)
    cosine = (unit @ unit.T).astype(np.float64)
    np.fill_diagonal(cosine, -1)
    rewards = [-1.0] * len(answers)
    for side in (True, False):
        members = [i for i, own in enumerate(answers) if own.agrees is side and own.parsed]
        novelty = []
        for i in members:
            fellows = [cosine[i, j] for j in members if j != i]
            novelty.append(1 - (float(np.mean(fellows)) if fellows else 0.0) / 2 - float(cosine[i].max()) / 2)
        low, spread = min(novelty, default=0.0), max(novelty, default=0.0) - min(novelty, default=0.0)
        for i, own in zip(members, novelty, strict=True):
            scaled = (own - low) / spread if spread > 1e-6 else 0.5
            rewards[i] = round((0.5 if side else -1.0) + scaled / 2, 6)
    return rewards


def _answers(
    transcript: Transcript, equivalent: Equivalent, first: bool, final_turn_only: bool = False
) -> list[Answer]:
    """The complete answers of a debate in agent order; none without a vote."""
    found = []
    for agent, own in enumerate(transcript.agents):
        said = own.answers[0 if first else -1]
        is_whole = own.turns[0].complete if first else is_complete(own, final_turn_only)
        if transcript.vote is not None and is_whole:
            messages = list(own.messages[:2] if first else own.messages)
            found.append(Answer(agent, messages, agrees(said, transcript.vote, equivalent), said is not None))
    return found
