"""Selectors for preference objectives: dialogues that agree with the vote against dialogues that do not."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mft_jax.debate.transcript import Transcript
from mft_jax.debate.vote import classes
from mft_jax.finetuning.examples import EachDebate, Equivalent, Example, agrees, is_complete


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsensusPairs(EachDebate):
    """Pairs of whole dialogues on one question: the last answer of one agrees with the final vote, that of the other not.

    The preference data of MACA (arXiv 2509.15172). A question on which all agents agree gives no pair.
    """

    agent: int | None = None
    """Only pairs that hold a dialogue of this agent (from 0); None: those of all agents."""
    final_turn_only: bool = False

    def from_debate(self, transcript: Transcript, equivalent: Equivalent) -> list[Example]:
        agreeing, others = _split(transcript, equivalent, self.final_turn_only)
        return [
            _pair(transcript, winner, loser)
            for winner in agreeing
            for loser in others
            if self.agent in (None, winner, loser)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Desirable:
    """Every whole dialogue of an agent: desirable if its last answer agrees with the final vote, otherwise undesirable.

    The data of KTO. Both sides have the same total weight. The counterpart of a dialogue is the next one, as an answer
    to its own question.
    """

    agent: int | None = None
    """Only the dialogues of this agent (from 0); None: those of all agents."""
    final_turn_only: bool = False

    def __call__(
        self, transcripts: Sequence[Transcript], equivalent: Equivalent, rng: np.random.Generator
    ) -> list[Example]:
        del rng  # this selector is deterministic
        found = []
        for transcript in transcripts:
            agreeing, others = _split(transcript, equivalent, self.final_turn_only)
            for agent in sorted(agreeing + others):
                if self.agent in (None, agent):
                    found.append((transcript, agent, agent in agreeing))
        sides = [sum(is_right is side for *_, is_right in found) for side in (False, True)]
        weights = [len(found) / (2 * size) if min(sides) else 1.0 for size in sides]
        return [
            Example(
                id=transcript.id,
                messages=list(transcript.agents[agent].messages),
                kind="agreeing" if is_right else "disagreeing",
                weight=weights[is_right],
                value=1.0 if is_right else -1.0,
                counterpart=[transcript.agents[agent].messages[0], *_next_answer(found, index)],
            )
            for index, (transcript, agent, is_right) in enumerate(found)
        ]


@dataclasses.dataclass(frozen=True)
class VotedPairs:
    """One pair for each question: an answer that most agents gave, and one that the fewest gave (ScPO, arXiv 2411.04109).

    Both are drawn among those with the same answer. The weight is the difference of their votes, as a share of the
    agents; without a difference, there is no pair.
    """

    def __call__(
        self, transcripts: Sequence[Transcript], equivalent: Equivalent, rng: np.random.Generator
    ) -> list[Example]:
        examples = []
        for transcript in transcripts:
            groups = sorted(classes([own.answers[-1] for own in transcript.agents], equivalent), key=len)
            margin = (len(groups[-1]) - len(groups[0])) / len(transcript.agents) if groups else 0
            whole = [[n for n in group if is_complete(transcript.agents[n], False)] for group in groups]
            if margin and whole[0] and whole[-1]:
                loser, winner = (group[int(rng.integers(len(group)))] for group in (whole[0], whole[-1]))
                examples.append(Example(**_pair(transcript, winner, loser), weight=margin))
        return examples


def _split(transcript: Transcript, equivalent: Equivalent, final_turn_only: bool) -> tuple[list[int], list[int]]:
    """The agents with a complete dialogue whose last answer agrees with the final vote, and the others. No vote: none."""
    sides: tuple[list[int], list[int]] = [], []
    for agent, own in enumerate(transcript.agents):
        if transcript.vote is not None and is_complete(own, final_turn_only):
            sides[not agrees(own.answers[-1], transcript.vote, equivalent)].append(agent)
    return sides


def _pair(transcript: Transcript, winner: int, loser: int) -> Example:
    chosen, rejected = (list(transcript.agents[agent].messages) for agent in (winner, loser))
    return Example(id=transcript.id, messages=chosen, kind="pair", counterpart=rejected)


def _next_answer(found: Sequence[tuple[Transcript, int, bool]], index: int) -> list[dict[str, str]]:
    """The messages after the question in the next dialogue on another question, or in the next one if there is none."""
    transcript = found[index][0]
    following = [*found[index + 1 :], *found[: index + 1]]
    other, agent, _ = next((own for own in following if own[0].id != transcript.id), following[0])
    return list(other.agents[agent].messages[1:])
