"""Judges the answers of a debate: right or wrong, in agreement with the vote or not, and how they changed."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from mft_jax.debate import AgentTranscript, Transcript
from mft_jax.metrics.diversity import Equivalent

Mark = Literal["r", "w", "n", "u"]
"""r: right. w: wrong. n: there is no answer. u: the reference answer is not known."""

# What a person may want to see debates for. The page filters by these names, in this order.
FLAGS = (
    "wrong_to_right",  # an agent's first answer is wrong (or missing), and its last one right
    "right_to_wrong",  # an agent's first answer is right, and its last one wrong (or missing)
    "split",  # the last answers of the agents are not all equivalent
    "vote_wrong",  # the final vote is not the reference answer
    "vote_right",
    "vote_changed",  # the vote of the last round differs from that of the first
    "unparsed",  # a text has no answer
    "cut",  # a text was cut by a limit, or a prompt had no room in the model's context
    "trained",  # a message became training data
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one debate."""

    marks: tuple[str, ...]  # [N]: the mark of each round, as one string per agent
    agrees: tuple[tuple[bool, ...], ...]  # [N][M]: whether the answer is equivalent to the final vote
    votes: str  # [M]: the marks of the votes
    flags: frozenset[str]


def judge(transcript: Transcript, equivalent: Equivalent) -> Verdict:
    """Judges all answers and votes of a debate. `equivalent` compares two parsed answers of the task."""
    same = _remembering(equivalent)
    mark = lambda answer: _mark(answer, transcript.gold, same)
    is_vote = lambda answer: answer is not None and transcript.vote is not None and same(answer, transcript.vote)
    marks = tuple("".join(map(mark, agent.answers)) for agent in transcript.agents)
    agrees = tuple(tuple(map(is_vote, agent.answers)) for agent in transcript.agents)
    votes = "".join(map(mark, transcript.votes))
    first, final = transcript.votes[0], transcript.vote
    changed = (first is None) != (final is None) or (first is not None and not is_vote(first))
    found = {
        "wrong_to_right": any(own[0] in "wn" and own[-1] == "r" for own in marks),
        "right_to_wrong": any(own[0] == "r" and own[-1] in "wn" for own in marks),
        "split": len(marks) > 1 and not all(own[-1] for own in agrees),
        "vote_wrong": transcript.correct is False,
        "vote_right": transcript.correct is True,
        "vote_changed": changed,
        "unparsed": any("n" in own for own in marks),
        "cut": any(_is_cut(agent) for agent in transcript.agents),
    }
    return Verdict(marks, agrees, votes, frozenset(name for name, holds in found.items() if holds))


def count_transitions(verdicts: Sequence[Verdict]) -> list[dict[str, int]]:
    """How the agents' answers changed from each round to the next: [{"rw": 12, ...}], two marks and their count.

    Debates that ended early have no part in the later rounds, and answers without a reference answer in none.
    """
    counts: list[collections.Counter[str]] = []
    for marks in (own for verdict in verdicts for own in verdict.marks):
        for round, (before, after) in enumerate(itertools.pairwise(marks)):
            while len(counts) <= round:
                counts.append(collections.Counter())
            if "u" not in before + after:
                counts[round][before + after] += 1
    return [dict(count) for count in counts]


def count_votes(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """{"known", "voted", "right"}: questions with a reference answer; those of them with a vote; those with a right one.

    right / voted is the precision of the votes as labels, and voted / known their coverage.
    """
    final = [verdict.votes[-1] for verdict in verdicts if verdict.flags & {"vote_right", "vote_wrong"}]
    return {"known": len(final), "voted": sum(mark in "rw" for mark in final), "right": final.count("r")}


def _mark(answer: str | None, gold: str | None, same: Equivalent) -> Mark:
    if answer is None:
        return "n"
    if gold is None:
        return "u"
    return "r" if same(answer, gold) else "w"


def _is_cut(agent: AgentTranscript) -> bool:
    return any(not turn.complete for turn in agent.turns)


def _remembering(equivalent: Equivalent) -> Callable[[str, str], bool]:
    """`equivalent` with a memory for one debate, because comparing formulas is slow and answers repeat."""
    known: dict[tuple[str, str], bool] = {}

    def same(left: str, right: str) -> bool:
        if left == right:
            return True
        if (left, right) not in known:
            known[left, right] = equivalent(left, right)
        return known[left, right]

    return same
