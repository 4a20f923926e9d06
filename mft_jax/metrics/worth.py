"""On which questions a person's verdict is worth most: those on which the agents are least sure. No gold is used."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.metrics.diversity import Equivalent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worth:
    """How unsure the agents are about one question. All shares are 0..1."""

    split: float  # share of the agents whose last answer is not the vote, in the newest debate
    # Share of the answers that differ from the same agent's answer one round earlier, in the newest debate.
    flips: float
    changes: float  # share of the iterations whose vote differs from that of the iteration before

    @property
    def total(self) -> float:
        """0..3."""
        return self.split + self.flips + self.changes


def worth(debates: Sequence[Mapping[str, Any]], equivalent: Equivalent) -> Worth:
    """The worth of a verdict on a question, from its debates in the order of the iterations, given as parsed JSON.

    An answer that could not be parsed differs from every answer, except from another one that could not be parsed.
    """
    same = lambda a, b: a == b or (a is not None and b is not None and equivalent(a, b))
    newest = debates[-1]
    last = [agent["answers"][-1] for agent in newest["agents"]]
    steps = [pair for agent in newest["agents"] for pair in itertools.pairwise(agent["answers"])]
    votes = list(itertools.pairwise(debate["vote"] for debate in debates))
    return Worth(
        split=_share([answer is None or not same(answer, newest["vote"]) for answer in last]),
        flips=_share([not same(*pair) for pair in steps]),
        changes=_share([not same(*pair) for pair in votes]),
    )


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
