"""How much the final answers of the agents differ: consensus and diversity, as in the paper (arXiv 2501.05707)."""

from collections.abc import Callable, Sequence

Equivalent = Callable[[str, str], bool]


def consensus(answers: Sequence[Sequence[str | None]], votes: Sequence[str | None], equivalent: Equivalent) -> float:
    """The share of agents whose final answer is equivalent to the majority answer, averaged over questions, 0..1.

    `answers`: for each question, the parsed final answer of every agent. `votes`: the majority answer of each question.
    `equivalent(answer, vote)`: the comparison of the task. None is an answer that could not be parsed; it agrees with
    nothing. A question without a majority answer, because no answer could be parsed, counts 0. Raises ValueError if
    there are no questions, or not one vote per question.
    """
    if len(answers) != len(votes) or not answers:
        raise ValueError(f"consensus needs one vote per question, got {len(answers)} questions and {len(votes)} votes")
    return sum(_share_in_agreement(row, vote, equivalent) for row, vote in zip(answers, votes, strict=True)) / len(
        answers
    )


def consensus_diversity(
    answers: Sequence[Sequence[str | None]], votes: Sequence[str | None], equivalent: Equivalent
) -> dict[str, float]:
    """{"consensus": ..., "diversity": 1 - consensus}. The arguments and errors are those of `consensus`."""
    agreement = consensus(answers, votes, equivalent)
    return {"consensus": agreement, "diversity": 1 - agreement}


def _share_in_agreement(answers: Sequence[str | None], vote: str | None, equivalent: Equivalent) -> float:
    if vote is None:
        return 0.0
    return sum(answer is not None and equivalent(answer, vote) for answer in answers) / len(answers)
