"""What people say about training debates: verdicts, and the ruling on each question that follows from them.

A verdict marks an answer of a debate as right, wrong or best, or gives the right answer of a question. Verdicts on one
question can contradict each other; then the newest one counts. Reference answers are not used.
"""

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from mft_jax.debate.transcript import Transcript
from mft_jax.debate.vote import Ties, Voted, vote, voted_answers
from mft_jax.finetuning.examples import Equivalent, Example, agrees
from mft_jax.prompts import Message

Mark = Literal["right", "wrong", "best", "none"]
"""best: right, and better than the other answers to the question. none: an earlier mark is withdrawn."""


class Place(NamedTuple):
    """Where an answer stands in the training debates on a question. All numbers start at 1, as people count."""

    iteration: int
    agent: int
    round: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A person's verdict on an answer, or on a question."""

    id: str
    """Of the question."""
    time: str
    """ISO 8601."""
    place: Place | None = None
    """The answer that is marked; None: the person wrote the right answer to the question."""
    mark: Mark | None = None
    answer: str | None = None
    """The written answer in canonical form; None without a mark: an earlier one is withdrawn."""
    simulated: bool = False
    """Whether a program made it from a reference answer, for experiments."""

    @property
    def is_withdrawal(self) -> bool:
        return self.mark == "none" or (self.mark is None and self.answer is None)

    @property
    def says_right(self) -> bool:
        return self.mark in (None, "right", "best")

    @property
    def moment(self) -> datetime.datetime:
        """Its time; without a time zone, UTC is meant."""
        found = datetime.datetime.fromisoformat(self.time)
        return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Said:
    """An answer of a training debate."""

    answer: str | None  # parsed
    messages: tuple[Message, ...]  # the dialogue of its agent up to this answer
    is_complete: bool  # whether the model ended all its texts itself, so that they may be trained on


@dataclasses.dataclass(frozen=True)
class MarkedDialogue:
    """A dialogue that ends with an answer that a person marked."""

    agent: int  # from 0
    mark: Mark
    messages: tuple[Message, ...]


Conflict = tuple[Verdict, Verdict]  # (the verdict that does not count, the newer one that does)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ruling:
    """What follows from the verdicts on one question."""

    id: str
    answer: str | None
    """The right answer; None: only wrong ones are known."""
    wrong: tuple[str, ...] = ()
    """Answers known to be wrong."""
    marked: tuple[MarkedDialogue, ...] = ()
    """The marked dialogues that may be trained on."""
    verdicts: tuple[Verdict, ...] = ()
    """The verdicts that count, the newest first."""


def rule(
    verdicts: Sequence[Verdict], said: Callable[[Place], Said], equivalent: Equivalent
) -> tuple[Ruling | None, list[Conflict]]:
    """(the ruling that follows from the verdicts on one question, the conflicts among them).

    There is no ruling if all verdicts are withdrawn. `said` gives the answer at a place, which must exist.
    """
    newest: dict[Place | None, Verdict] = {}
    conflicts: list[Conflict] = []
    for verdict in sorted(verdicts, key=lambda own: own.moment):  # of the same time: the later one in the file is newer
        before = newest.pop(verdict.place, None)
        if before is not None and _contradicts(before, verdict, equivalent):
            conflicts.append((before, verdict))
        newest[verdict.place] = verdict
    counted: list[Verdict] = []
    values: list[tuple[str, Verdict]] = []  # the answers that the verdicts so far say something about
    for verdict in reversed(newest.values()):
        if verdict.is_withdrawal:
            continue
        value = verdict.answer if verdict.place is None else said(verdict.place).answer
        against = None if value is None else next(_against(value, verdict, values, equivalent), None)
        if against is not None:
            conflicts.append((verdict, against))
            continue
        counted.append(verdict)
        if value is not None:
            values.append((value, verdict))
    if not counted:
        return None, conflicts
    ruling = Ruling(
        id=counted[0].id,
        answer=next((value for value, verdict in values if verdict.says_right), None),
        wrong=tuple(value for value, verdict in values if not verdict.says_right),
        marked=tuple(_marked(reversed(counted), said)),
        verdicts=tuple(counted),
    )
    return ruling, conflicts


def ruled(
    transcript: Transcript, ruling: Ruling, equivalent: Equivalent, *, seed: int, ties: Ties, voted: Voted
) -> Transcript:
    """The transcript with the right answer in place of the final vote.

    If only wrong answers are known and the vote is one of them, the other answers vote again, with the same random
    number for a tie.
    """
    if ruling.answer is not None:
        return dataclasses.replace(transcript, vote=ruling.answer)
    is_wrong = lambda answer: any(agrees(answer, wrong, equivalent) for wrong in ruling.wrong)
    if not is_wrong(transcript.vote):
        return transcript
    answers = voted_answers([own.answers for own in transcript.agents], voted)
    left = [None if is_wrong(answer) else answer for answer in answers]
    where = {"seed": seed, "question_id": transcript.id, "round": len(transcript.votes), "ties": ties}
    return dataclasses.replace(transcript, vote=vote(left, equivalent, **where))


def weighted(example: Example, factor: float) -> Example:
    """The example with `factor` times its weight in the loss.

    An example of a policy gradient, which has a value and no counterpart, gets `factor` times its value instead: this is its
    advantage, to which the gradient is proportional.
    """
    if factor == 1:
        return example
    field = "value" if "value" in example and "counterpart" not in example else "weight"
    return Example(**{**example, field: example.get(field, 1.0) * factor})


def marked_pairs(rulings: Mapping[str, Ruling], agent: int | None) -> list[Example]:
    """Pairs of two marked dialogues on one question: right or best against wrong, and best against right.

    `agent`: only pairs that hold a dialogue of this agent (from 0); None: all.
    """
    rank = {"wrong": 0, "right": 1, "best": 2}
    return [
        Example(id=ruling.id, messages=list(winner.messages), kind="pair", counterpart=list(loser.messages))
        for ruling in rulings.values()
        for winner in ruling.marked
        for loser in ruling.marked
        if rank[winner.mark] > rank[loser.mark] and agent in (None, winner.agent, loser.agent)
    ]


def with_marked(examples: Sequence[Example], marked: Sequence[Example]) -> list[Example]:
    """The examples and those made from marks, which replace examples with the same dialogues."""
    same = lambda one, other: (one["messages"], one.get("counterpart")) == (other["messages"], other.get("counterpart"))
    kept = [example for example in examples if not any(same(example, own) for own in marked)]
    return [*kept, *marked]


def _contradicts(before: Verdict, after: Verdict, equivalent: Equivalent) -> bool:
    """Whether a person changed a verdict on the same answer or question to its contrary."""
    if before.is_withdrawal or after.is_withdrawal:
        return False
    if before.place is None:
        return not agrees(before.answer, after.answer, equivalent)
    return before.says_right != after.says_right


def _against(
    value: str, verdict: Verdict, values: Sequence[tuple[str, Verdict]], equivalent: Equivalent
) -> Iterator[Verdict]:
    """Those newer verdicts that say something else about the answer `value`, or call another one right."""
    for known, newer in values:
        both = verdict.says_right and newer.says_right
        if both or verdict.says_right != newer.says_right:
            is_same = equivalent(known, value)
            if is_same != both:
                yield newer


def _marked(verdicts: Iterator[Verdict], said: Callable[[Place], Said]) -> Iterator[MarkedDialogue]:
    for verdict in verdicts:
        if verdict.place is not None and verdict.mark is not None:
            found = said(verdict.place)
            if found.is_complete:
                yield MarkedDialogue(verdict.place.agent - 1, verdict.mark, found.messages)
