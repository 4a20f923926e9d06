"""The consensus of the agents."""

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
    """The majority answer of one round (Algorithm 1 of the paper, the consensus y-hat).

    `answers` are the agents' parsed answers in agent order. They fall into classes of equivalent answers; an answer
    joins the first class whose first member it is equivalent to. The largest class wins, and its first member is
    returned. Between equally large ones the choice is random, as in the paper's baseline, but a function of `seed`,
    `question_id` and `round` alone. None, an answer that could not be parsed, casts no vote; if nobody votes the
    result is None.
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
