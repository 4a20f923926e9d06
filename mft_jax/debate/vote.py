"""The majority vote of the agents."""

from collections.abc import Callable, Sequence

from mft_jax.seeds import tie


def vote(
    answers: Sequence[str | None],
    equivalent: Callable[[str, str], bool],
    *,
    seed: int,
    question_id: str,
    round: int,
) -> str | None:
    """The majority answer of one round: y-hat in Algorithm 1 of Subramaniam et al. 2025 (arXiv 2501.05707).

    `answers` are the agents' parsed answers in agent order. They are grouped into classes of equivalent answers: an
    answer joins the first class whose first member is equivalent to it. The result is the first member of the largest
    class. A tie between classes is broken at random, as in the paper's majority baseline; the random choice depends
    only on `seed`, `question_id` and `round` (from 1). None is an answer that could not be parsed and is not counted.
    If all are None, the result is None.
    """
    classes: list[list[str]] = []
    for answer in answers:
        if answer is None:
            continue
        for members in classes:
            if equivalent(members[0], answer):
                members.append(answer)
                break
        else:
            classes.append([answer])
    if not classes:
        return None
    most = max(len(members) for members in classes)
    winners = [members[0] for members in classes if len(members) == most]
    return winners[int(tie(seed, question_id, round) * len(winners))]
