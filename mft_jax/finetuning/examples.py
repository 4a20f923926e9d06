"""Selects the training examples of an adapter from debates (Algorithm 1 of Subramaniam et al. 2025, arXiv 2501.05707).

An example is a dialogue of one agent, {"id", "messages", "kind"}, stored as one JSON line in the run. Reference answers
are read by `TrueAnswers` only. Truncated answers are never training targets, because the model did not write the end of
their turn.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NotRequired, Protocol, TypedDict

import numpy as np

from mft_jax.debate.transcript import AgentTranscript, Transcript
from mft_jax.prompts import Message

Equivalent = Callable[[str, str], bool]  # whether two parsed answers of a task are equivalent
Kind = Literal["first", "corrected", "kept", "hinted", "pair", "agreeing", "disagreeing"]


class Example(TypedDict):
    """One training dialogue."""

    id: str  # of the question
    messages: list[Message]
    # first: only a first answer. corrected (D-): the last answer agrees with the vote, the first does not.
    # kept (D+): both do. hinted: an answer that was found with the true answer as a hint. pair: a preferred dialogue, with
    # the rejected one as its counterpart. agreeing, disagreeing: with the vote, in sets that contain both.
    kind: Kind
    # The assistant's turns that are learned, as indices among them (-1: the last), in the dialogue and in its counterpart;
    # all if absent. The other turns are only read.
    learned: NotRequired[list[int]]
    weight: NotRequired[float]  # its weight in the loss; 1 if absent
    value: NotRequired[float]  # its advantage, or +1 if it is desirable and -1 if not; 0 if absent
    # A dialogue that is read together with it: in a pair the rejected one, in KTO an answer to another question.
    counterpart: NotRequired[list[Message]]
    # The log-probabilities of its targets and of those of its counterpart, in nats: under the reference model, and
    # under the model that sampled it. Absent if the objective needs none.
    reference: NotRequired[list[float]]
    old: NotRequired[list[float]]


class Selector(Protocol):
    """Selects the training examples of one adapter from the debates. All its random draws come from `rng`."""

    def __call__(
        self, transcripts: Sequence[Transcript], equivalent: Equivalent, rng: np.random.Generator
    ) -> list[Example]: ...


class EachDebate(abc.ABC):
    """A selector whose examples of a debate depend on this debate alone, without random draws."""

    def __call__(
        self, transcripts: Sequence[Transcript], equivalent: Equivalent, rng: np.random.Generator
    ) -> list[Example]:
        del rng
        return [example for transcript in transcripts for example in self.from_debate(transcript, equivalent)]

    @abc.abstractmethod
    def from_debate(self, transcript: Transcript, equivalent: Equivalent) -> list[Example]:
        """The examples of one debate."""


@dataclasses.dataclass(frozen=True)
class FirstAnswers(EachDebate):
    """The training set of a first-round adapter: the agent's own first answers that agree with the final vote."""

    agent: int  # from 0

    def from_debate(self, transcript: Transcript, equivalent: Equivalent) -> list[Example]:
        own = transcript.agents[self.agent]
        if own.turns[0].complete and agrees(own.answers[0], transcript.vote, equivalent):
            return [Example(id=transcript.id, messages=list(own.messages[:2]), kind="first")]
        return []


@dataclasses.dataclass(frozen=True)
class PooledFirstAnswers(EachDebate):
    """The first answers of all agents that agree with the final vote, for methods that finetune one model."""

    agents: int

    def from_debate(self, transcript: Transcript, equivalent: Equivalent) -> list[Example]:
        own = (FirstAnswers(agent).from_debate(transcript, equivalent) for agent in range(self.agents))
        return [example for examples in own for example in examples]


@dataclasses.dataclass(frozen=True)
class TrueAnswers(EachDebate):
    """The answers of the first agent that are equivalent to the reference answer (STaR, arXiv 2203.14465).

    If its first answer is wrong, and its second one, for which it was shown the reference answer, is right, it learns to
    answer the question with the second one.
    """

    def from_debate(self, transcript: Transcript, equivalent: Equivalent) -> list[Example]:
        own = transcript.agents[0]
        rights = [agrees(answer, transcript.gold, equivalent) for answer in own.answers]
        if any(rights) and own.turns[tried := rights.index(True)].complete:
            messages = [own.messages[0], own.messages[2 * tried + 1]]
            return [Example(id=transcript.id, messages=messages, kind="hinted" if tried else "first")]
        return []


@dataclasses.dataclass(frozen=True)
class Solutions(EachDebate):
    """For a single model that learns from a society: one answer of each agent, as the direct answer to the question.

    It is the agent's first answer if this agrees with the final vote, otherwise its last answer if that one does.
    """

    agents: int

    def from_debate(self, transcript: Transcript, equivalent: Equivalent) -> list[Example]:
        examples = []
        for own in transcript.agents[: self.agents]:
            for turn in sorted({0, len(own.messages) // 2 - 1} - {-1}):
                if own.turns[turn].complete and agrees(own.answers[turn], transcript.vote, equivalent):
                    messages = [own.messages[0], own.messages[2 * turn + 1]]
                    examples.append(Example(id=transcript.id, messages=messages, kind="corrected" if turn else "first"))
                    break
        return examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogues:
    """The training set of a later-round adapter: the agent's complete dialogues whose last answer agrees with the vote.

    It is a mix of corrected dialogues (D-) and kept ones (D+).
    """

    agent: int  # from 0
    share: float = 0.5
    """w, 0..1: the share of corrected dialogues in the mix. Used by the rules "share" and "weighted"."""
    rule: Literal["share", "released_code", "all", "weighted"] = "share"
    """share: `mix`. released_code: `mix_as_released`. all: every dialogue. weighted: every dialogue, with weights such
    that the corrected ones have the share w of the total weight."""
    answers: Literal["all", "agreeing", "last"] = "all"
    """Which answers of a dialogue are learned: all, those that agree with the vote and are complete, or the last one."""

    def __call__(
        self, transcripts: Sequence[Transcript], equivalent: Equivalent, rng: np.random.Generator
    ) -> list[Example]:
        corrected, kept = self.split(transcripts, equivalent)
        if self.rule == "released_code":
            return mix_as_released(corrected, kept, rng)
        if self.rule == "all":
            return corrected + kept
        if self.rule == "weighted":
            return weigh(corrected, self.share, len(corrected + kept)) + weigh(
                kept, 1 - self.share, len(corrected + kept)
            )
        return mix(corrected, kept, self.share, rng)

    def split(self, transcripts: Sequence[Transcript], equivalent: Equivalent) -> tuple[list[Example], list[Example]]:
        """(D-, D+): dialogues whose first answer disagreed with the vote, and dialogues whose first answer agreed too.

        Both are empty for debates of a single round.
        """
        corrected, kept = [], []
        for transcript in transcripts:
            own = transcript.agents[self.agent]
            if len(own.answers) < 2 or not is_complete(own, self.answers != "all"):
                continue
            agreeing = [agrees(answer, transcript.vote, equivalent) for answer in own.answers]
            if not agreeing[-1]:
                continue
            example = Example(
                id=transcript.id, messages=list(own.messages), kind="kept" if agreeing[0] else "corrected"
            )
            if self.answers == "last":
                example["learned"] = [-1]
            elif self.answers == "agreeing":
                good = [k for k, turn in enumerate(own.turns) if agreeing[k] and turn.complete]
                if len(good) < len(own.turns):
                    example["learned"] = good
            (kept if agreeing[0] else corrected).append(example)
        return corrected, kept


def is_complete(own: AgentTranscript, final_turn_only: bool) -> bool:
    """Whether the model ended all its turns itself, or with `final_turn_only` the last one."""
    return all(turn.complete for turn in (own.turns[-1:] if final_turn_only else own.turns))


def learning(example: Example, final_turn_only: bool) -> Example:
    """The example, of which all turns are learned, or with `final_turn_only` the last one."""
    return Example(**example, learned=[-1]) if final_turn_only else example


def mix(corrected: Sequence[Example], kept: Sequence[Example], share: float, rng: np.random.Generator) -> list[Example]:
    """The largest mix with a share w of D- and 1 - w of D+.

    It contains all examples of the scarcer set and a random subset of the other. The share holds up to rounding, so
    that w means the same in every run. If w > 0 and D- is empty, the mix is empty and the adapter keeps its weights, as
    in the paper's released code.
    """
    from_corrected, from_kept = mix_sizes(len(corrected), len(kept), share)
    return _random_subset(corrected, from_corrected, rng) + _random_subset(kept, from_kept, rng)


def weigh(examples: Sequence[Example], share: float, total: int) -> list[Example]:
    """The examples with equal weights, whose sum is `share` times `total`; none if the share is 0."""
    return [Example(**example, weight=share * total / len(examples)) for example in examples if share]


def mix_as_released(corrected: Sequence[Example], kept: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    """The mix of the paper's released code: all of D-, and after each with probability 1/2 a random example of D+.

    The examples of D+ are drawn with replacement.
    """
    mixed: list[Example] = []
    for example in corrected:
        mixed.append(example)
        if kept and rng.random() < 0.5:
            mixed.append(kept[int(rng.integers(len(kept)))])
    return mixed


def mix_sizes(corrected: int, kept: int, share: float) -> tuple[int, int]:
    """The numbers of corrected and of kept examples in the largest mix whose share of corrected examples is `share`."""
    if share == 0:
        return 0, kept
    wanted = round(corrected * (1 - share) / share)
    if wanted <= kept:
        return corrected, wanted
    return min(corrected, round(kept * share / (1 - share))), kept


def agrees(answer: str | None, vote: str | None, equivalent: Equivalent) -> bool:
    """Whether an answer is equivalent to the vote. False if one of them is None."""
    return answer is not None and vote is not None and equivalent(answer, vote)


def _random_subset(examples: Sequence[Example], count: int, rng: np.random.Generator) -> list[Example]:
    """A random subset of `count` examples, in their original order."""
    return [examples[i] for i in sorted(rng.permutation(len(examples))[:count])]
