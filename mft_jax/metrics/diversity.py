"""How much the agents of a society differ: the measures of diversity of the paper (arXiv 2501.05707).

`consensus` needs only the answers. The others need the models: `mft_jax.diversity_stage` computes the scores that the
functions here turn into numbers.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

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


def mean_over_pairs(values: Float[np.ndarray, "N N"]) -> float | None:
    """The mean over all ordered pairs of different agents; None without any. NaN stands for an agent without an answer."""
    found = [values[i, j] for i, j in itertools.permutations(range(len(values)), 2) if not math.isnan(values[i, j])]
    return sum(map(float, found)) / len(found) if found else None


def embedding_dissimilarity(embeddings: Float[np.ndarray, "N D"]) -> float | None:
    """1 - cosine similarity, averaged over all pairs of embeddings; None for fewer than two, or if one is zero.

    0: all point in the same direction. 1: they are orthogonal.
    """
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if len(embeddings) < 2 or not norms.all():
        return None
    units = embeddings.astype(np.float64) / norms
    pairs = itertools.combinations(units, 2)
    return float(np.mean([1 - left @ right for left, right in pairs]))


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
