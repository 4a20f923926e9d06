"""How much the agents of a society differ in their answers (paper section 5, measure 1)."""

from collections.abc import Callable, Sequence

Equivalent = Callable[[str, str], bool]


def consensus(answers: Sequence[Sequence[str | None]], votes: Sequence[str | None], equivalent: Equivalent) -> float:
    """Mean share of agents whose final answer equals the majority answer, 0..1.

    `answers`: for each question, the parsed final answer of every agent; `votes`: the majority answer of each question;
    `equivalent(answer, vote)`: the task's. None is an answer that could not be parsed and agrees with nothing; a
    question without a majority answer (all were unparseable) has a share of 0. Raises ValueError for no questions.
    """
    if len(answers) != len(votes) or not answers:
        raise ValueError(f"consensus needs a vote per question, got {len(answers)} questions and {len(votes)} votes")
    return sum(_share(row, vote, equivalent) for row, vote in zip(answers, votes, strict=True)) / len(answers)


def consensus_diversity(
    answers: Sequence[Sequence[str | None]], votes: Sequence[str | None], equivalent: Equivalent
) -> dict[str, float]:
    """{"consensus", "diversity"}: the latter is 1 - consensus, 0 when agents always agree. Arguments as `consensus`."""
    agreement = consensus(answers, votes, equivalent)
    return {"consensus": agreement, "diversity": 1 - agreement}


def _share(answers: Sequence[str | None], vote: str | None, equivalent: Equivalent) -> float:
    if vote is None:
        return 0.0
    return sum(answer is not None and equivalent(answer, vote) for answer in answers) / len(answers)
