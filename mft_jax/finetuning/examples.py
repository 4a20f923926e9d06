"""Training examples from debates: which part of it an adapter learns from (section 1 of the method, items 3 and 4).

Gold answers are never read. An example is a dialogue of one agent, {"id", "messages", "kind"}, a JSON line in the run. No
text that was cut by a limit is ever learnt: its end of turn is none that the model wrote.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypedDict

import numpy as np

from mft_jax.debate.transcript import AgentTranscript, Transcript
from mft_jax.prompts import Message

Equivalent = Callable[[str, str], bool]  # a task's comparison of two parsed answers
Kind = Literal["first", "corrected", "kept"]


class Example(TypedDict):
    """One dialogue to learn from."""

    id: str  # of the question
    messages: list[Message]
    kind: Kind  # first: a first answer alone; corrected: wrong first, right last (D-); kept: right first and last (D+)


class Selector(Protocol):
    """Chooses the examples of one adapter from the debates; whatever it draws comes from `rng`."""

    def __call__(
        self, transcripts: Sequence[Transcript], equivalent: Equivalent, rng: np.random.Generator
    ) -> list[Example]: ...


@dataclasses.dataclass(frozen=True)
class FirstAnswers:
    """(question, the agent's own first answer) wherever that answer equals the final vote (item 3)."""

    agent: int

    def __call__(
        self, transcripts: Sequence[Transcript], equivalent: Equivalent, rng: np.random.Generator
    ) -> list[Example]:
        del rng  # nothing is drawn
        examples = []
        for transcript in transcripts:
            own = transcript.agents[self.agent]
            if own.turns[0].complete and agrees(own.answers[0], transcript.vote, equivalent):
                examples.append(Example(id=transcript.id, messages=list(own.messages[:2]), kind="first"))
        return examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogues:
    """The agent's whole dialogues whose last answer equals the vote, as a mix of corrected and kept ones (item 4)."""

    agent: int
    share: float = 0.5
    """w: share of corrected dialogues in the mix, by the rule `share`."""
    rule: Literal["share", "released_code"] = "share"
    final_turn_only: bool = False
    """Only the last answer will be learnt, so that only the last one must be complete."""

    def __call__(
        self, transcripts: Sequence[Transcript], equivalent: Equivalent, rng: np.random.Generator
    ) -> list[Example]:
        corrected, kept = self.split(transcripts, equivalent)
        if self.rule == "released_code":
            return mix_as_released(corrected, kept, rng)
        return mix(corrected, kept, self.share, rng)

    def split(self, transcripts: Sequence[Transcript], equivalent: Equivalent) -> tuple[list[Example], list[Example]]:
        """(D-, D+): by whether the first answer agreed with the vote too. After a single round there is neither."""
        corrected, kept = [], []
        for transcript in transcripts:
            own = transcript.agents[self.agent]
            if len(own.answers) < 2 or not self._is_whole(own):
                continue
            if not agrees(own.answers[-1], transcript.vote, equivalent):
                continue
            if agrees(own.answers[0], transcript.vote, equivalent):
                kept.append(Example(id=transcript.id, messages=list(own.messages), kind="kept"))
            else:
                corrected.append(Example(id=transcript.id, messages=list(own.messages), kind="corrected"))
        return corrected, kept

    def _is_whole(self, own: AgentTranscript) -> bool:
        learnt = own.turns[-1:] if self.final_turn_only else own.turns
        return all(turn.complete for turn in learnt)


def mix(corrected: Sequence[Example], kept: Sequence[Example], share: float, rng: np.random.Generator) -> list[Example]:
    """A share w of D- and 1 - w of D+, and as many examples as that allows: all of the scarce side, some of the other.

    The share is kept strictly, so that w means the same in every run: without any D- (and w > 0) the mix is empty and
    the adapter keeps its weights, as in the released code.
    """
    from_corrected, from_kept = mix_sizes(len(corrected), len(kept), share)
    return _draw(corrected, from_corrected, rng) + _draw(kept, from_kept, rng)


def mix_as_released(corrected: Sequence[Example], kept: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    """The released code's rule: all of D-, and after each, with probability 1/2, one of D+ drawn with replacement."""
    mixed: list[Example] = []
    for example in corrected:
        mixed.append(example)
        if kept and rng.random() < 0.5:
            mixed.append(kept[int(rng.integers(len(kept)))])
    return mixed


def mix_sizes(corrected: int, kept: int, share: float) -> tuple[int, int]:
    """How many of `corrected` and `kept` examples make the largest mix with `share` of corrected ones."""
    if share == 0:
        return 0, kept
    wanted = round(corrected * (1 - share) / share)
    if wanted <= kept:
        return corrected, wanted
    return min(corrected, round(kept * share / (1 - share))), kept


def agrees(answer: str | None, vote: str | None, equivalent: Equivalent) -> bool:
    """Whether an answer equals the vote; an unparsed answer agrees with nothing, and nothing with a missing vote."""
    return answer is not None and vote is not None and equivalent(answer, vote)


def _draw(examples: Sequence[Example], count: int, rng: np.random.Generator) -> list[Example]:
    """A random `count` of the examples, in their own order."""
    return [examples[i] for i in sorted(rng.permutation(len(examples))[:count])]
