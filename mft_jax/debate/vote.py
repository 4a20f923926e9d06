"""The majority vote of the agents."""

from collections.abc import Callable, Sequence
from typing import Literal

from mft_jax.seeds import tie

Ties = Literal["random", "largest", "none"]
Voted = Literal["last", "all"]


def voted_answers(answers: Sequence[Sequence[str | None]], voted: Voted) -> list[str | None]:
    """The answers that are voted on, in agent order, given each agent's answers of all rounds so far.

    last: those of the last round, as in the paper. all: those of all rounds, of which each has one vote.
    """
    return [answer for own in answers for answer in (own if voted == "all" else own[-1:])]


def vote(
    answers: Sequence[str | None],
    equivalent: Callable[[str, str], bool],
    *,
    seed: int,
    question_id: str,
    round: int,
    ties: Ties = "random",
) -> str | None:
    """The majority answer after a round: y-hat in Algorithm 1 of Subramaniam et al. 2025 (arXiv 2501.05707).

    `answers` are the parsed answers that are voted on (`voted_answers`). The result is the first member of the largest of their
    `classes`. None is an answer that could not be parsed and is not counted. If all are None, the result is None.

    A tie between classes is broken by `ties`. random: at random, as in the paper's majority baseline; the choice depends
    only on `seed`, `question_id` and `round` (from 1). largest: the lexicographically largest text, as in the paper's
    released code. none: the result is None.
    """
    groups = classes(answers, equivalent)
    if not groups:
        return None
    most = max(map(len, groups))
    winners = [str(answers[members[0]]) for members in groups if len(members) == most]
    if len(winners) > 1 and ties == "none":
        return None
    return max(winners) if ties == "largest" else winners[int(tie(seed, question_id, round) * len(winners))]


def classes(answers: Sequence[str | None], equivalent: Callable[[str, str], bool]) -> list[list[int]]:
    """Groups the indices of equivalent answers; those of None are in no class.

    An answer joins the first class whose first member is equivalent to it. The classes are in the order of their first
    members.
    """
    found: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        for members in found:
            if equivalent(str(answers[members[0]]), answer):
                members.append(index)
                break
        else:
            found.append([index])
    return found
