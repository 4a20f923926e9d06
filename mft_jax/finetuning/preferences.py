"""Selectors for preference objectives: dialogues that agree with the vote against dialogues that do not."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from mft_jax.debate.transcript import Transcript
from mft_jax.debate.vote import classes
from mft_jax.finetuning.examples import EachDebate, Equivalent, Example, agrees, is_complete, learning
from mft_jax.finetuning.feedback import Ruling, marked_pairs, with_marked
from mft_jax.prompts import Message

NO_RULINGS: Mapping[str, Ruling] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsensusPairs(EachDebate):
    """Pairs of whole dialogues on one question: the last answer of one agrees with the final vote, the other's does not.

    The preference data of MACA (arXiv 2509.15172). A question on which all agents agree gives no pair.
    """

    agent: int | None = None
    """Only pairs that hold a dialogue of this agent (from 0); None: those of all agents."""
    final_turn_only: bool = False
    """Only the last answer of a dialogue is learned, and only this one must be complete."""
    uses_rulings: ClassVar[bool] = True

    def __call__(
        self,
        transcripts: Sequence[Transcript],
        equivalent: Equivalent,
        rng: np.random.Generator,
        rulings: Mapping[str, Ruling] = NO_RULINGS,
    ) -> list[Example]:
        marked = [learning(own, self.final_turn_only) for own in marked_pairs(rulings, self.agent)]
        return with_marked(super().__call__(transcripts, equivalent, rng), marked)

    def from_debate(self, transcript: Transcript, equivalent: Equivalent) -> list[Example]:
        agreeing, others = _split(transcript, equivalent, self.final_turn_only)
        return [
            learning(_pair(transcript, winner, loser), self.final_turn_only)
            for winner in agreeing
            for loser in others
            if self.agent in (None, winner, loser)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Desirable:
    """Every whole dialogue of an agent: desirable if its last answer agrees with the final vote, otherwise undesirable.

    The data of KTO. Both sides have the same total weight. The counterpart of a dialogue is its first message, followed by
    the rest of the next dialogue on another question.
    """

    agent: int | None = None
    """Only the dialogues of this agent (from 0); None: those of all agents."""
    final_turn_only: bool = False
    """Only the last answer of a dialogue is learned, and only this one must be complete."""
    uses_rulings: ClassVar[bool] = True

    def __call__(
        self,
        transcripts: Sequence[Transcript],
        equivalent: Equivalent,
        rng: np.random.Generator,
        rulings: Mapping[str, Ruling] = NO_RULINGS,
    ) -> list[Example]:
        del rng  # this selector is deterministic
        found: list[Judged] = []
        for transcript in transcripts:
            agreeing, others = _split(transcript, equivalent, self.final_turn_only)
            for agent in sorted(agreeing + others):
                if self.agent in (None, agent):
                    found.append((transcript.id, transcript.agents[agent].messages, agent in agreeing))
        marked = [
            (ruling.id, own.messages, own.mark != "wrong")
            for ruling in rulings.values()
            for own in ruling.marked
            if self.agent in (None, own.agent)
        ]
        dialogues = [messages for _, messages, _ in marked]
        found = [own for own in found if own[1] not in dialogues] + marked  # a mark counts for its own dialogue
        sides = [sum(is_right is side for *_, is_right in found) for side in (False, True)]
        weights = [len(found) / (2 * size) if min(sides) else 1.0 for size in sides]
        return [
            learning(
                Example(
                    id=id,
                    messages=list(messages),
                    kind="agreeing" if is_right else "disagreeing",
                    weight=weights[is_right],
                    value=1.0 if is_right else -1.0,
                    counterpart=[messages[0], *_next_answer(found, index)],
                ),
                self.final_turn_only,
            )
            for index, (id, messages, is_right) in enumerate(found)
        ]


@dataclasses.dataclass(frozen=True)
class VotedPairs:
    """One pair for each question: an answer that most agents gave, and one that the fewest gave (ScPO, arXiv 2411.04109).

    Both are drawn among those with the same answer. The weight is the difference of their votes, as a share of the
    agents; without a difference, there is no pair. Where a person gave a verdict, the preferred answer is the right one,
    and the weight is 1.
    """

    uses_rulings: ClassVar[bool] = True

    def __call__(
        self,
        transcripts: Sequence[Transcript],
        equivalent: Equivalent,
        rng: np.random.Generator,
        rulings: Mapping[str, Ruling] = NO_RULINGS,
    ) -> list[Example]:
        examples = []
        for transcript in transcripts:
            answers = [own.answers[-1] for own in transcript.agents]
            groups = sorted(classes(answers, equivalent), key=len)
            margin = (len(groups[-1]) - len(groups[0])) / len(transcript.agents) if groups else 0
            if transcript.id in rulings:
                is_right = lambda group, vote=transcript.vote, own=answers: agrees(own[group[0]], vote, equivalent)
                groups = sorted(groups, key=is_right)
                margin = float(len(groups) > 1 and is_right(groups[-1]))
            whole = [[n for n in group if is_complete(transcript.agents[n], False)] for group in groups]
            if margin and whole[0] and whole[-1]:
                loser, winner = (group[int(rng.integers(len(group)))] for group in (whole[0], whole[-1]))
                examples.append(Example(**_pair(transcript, winner, loser), weight=margin))
        return with_marked(examples, marked_pairs(rulings, None))


Judged = tuple[str, tuple[Message, ...], bool]  # (id of the question, a dialogue, whether it is desirable)


def _split(transcript: Transcript, equivalent: Equivalent, final_turn_only: bool) -> tuple[list[int], list[int]]:
    """(agents whose last answer agrees with the final vote, agents whose does not), of those with complete dialogues.

    Both are empty without a vote.
    """
    sides: tuple[list[int], list[int]] = [], []
    for agent, own in enumerate(transcript.agents):
        if transcript.vote is not None and is_complete(own, final_turn_only):
            sides[not agrees(own.answers[-1], transcript.vote, equivalent)].append(agent)
    return sides


def _pair(transcript: Transcript, winner: int, loser: int) -> Example:
    chosen, rejected = (list(transcript.agents[agent].messages) for agent in (winner, loser))
    return Example(id=transcript.id, messages=chosen, kind="pair", counterpart=rejected)


def _next_answer(found: Sequence[Judged], index: int) -> list[Message]:
    """The messages after the question in the next dialogue on another question, or in the next one if there is none."""
    following = [*found[index + 1 :], *found[: index + 1]]
    _, messages, _ = next((own for own in following if own[0] != found[index][0]), following[0])
    return list(messages[1:])
