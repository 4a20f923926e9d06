"""The lengths to which prompts are padded. Each needs a compiled program, so a pass has few, chosen from its prompts."""

import collections
import itertools
from collections.abc import Iterable

from jax.sharding import Mesh

# Prompts are padded to at least this many tokens: a smaller program saves less time than its compilation takes.
SHORTEST = 32


def padded_length(tokens: int) -> int:
    """Rounds up to one of 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, ...: four lengths for every power of two."""
    power = SHORTEST
    while 2 * power < tokens:
        power *= 2
    quarter = power // 4
    return max(power, -(-tokens // quarter) * quarter)


def choose_lengths(prompts: Iterable[int], most: int) -> list[int]:
    """At most `most` lengths, ascending, that need the least padding if each prompt gets the shortest that holds it.

    `prompts` are their numbers of tokens.
    """
    counts = collections.Counter(map(padded_length, prompts))
    longest = max(counts)

    def padded(chosen: tuple[int, ...]) -> int:
        return sum(count * min(own for own in chosen if own >= length) for length, count in counts.items())

    shorter = [length for length in counts if length < longest]
    choices = [(*some, longest) for size in range(most) for some in itertools.combinations(shorter, size)]
    return sorted(min(choices, key=lambda chosen: (padded(chosen), len(chosen))))


def most_lengths(mesh: Mesh) -> int:
    """The number of lengths of one pass: three on CPUs, else two, because programs take longer to compile there.

    A run has three kinds of passes, for questions, summaries and later rounds, each with other lengths.
    """
    return 3 if mesh.devices.flat[0].platform == "cpu" else 2
