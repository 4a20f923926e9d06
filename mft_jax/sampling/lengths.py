"""The lengths to which prompts are padded. Each needs a compiled program, so a pass has few, chosen from its prompts."""

import collections
import itertools
from collections.abc import Iterable, Sequence

from jax.sharding import Mesh

from mft_jax.programs.slots import bucket

# Prompts are padded to at least this many tokens: a smaller program saves less time than its compilation takes.
SHORTEST = 32
MOST_IN_RUN = 6  # lengths in all passes of a run, unless a prompt is longer than all of them
_TOLERANCE = 1.1  # how many times as many tokens, padding included, the lengths of earlier passes may need


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
    padded = lambda chosen: _count_padded(counts, chosen)
    shorter = [length for length in counts if length < longest]
    choices = [(*some, longest) for size in range(most) for some in itertools.combinations(shorter, size)]
    return sorted(min(choices, key=lambda chosen: (padded(chosen), len(chosen))))


def _count_padded(counts: collections.Counter[int], lengths: Sequence[int]) -> int:
    """The tokens of prompts, padding included, if each gets the shortest of `lengths` that holds it.

    `counts[n]` is the number of prompts that need n tokens at least.
    """
    return sum(count * min(own for own in lengths if own >= length) for length, count in counts.items())


class PromptLengths:
    """The lengths to which the prompts of a run are padded.

    CPUs choose up to three for each pass. On other devices programs take longer to compile there, so there are two for each
    pass, and those of earlier passes are used again: `MOST_IN_RUN` in all. A run has three kinds of passes, for questions,
    summaries and later rounds, each with other lengths.
    """

    def __init__(self, mesh: Mesh):
        self.few = mesh.devices.flat[0].platform != "cpu"
        self.known: set[int] = set()  # of all passes so far

    def choose(self, prompts: Iterable[int], columns: int) -> list[int]:
        """The lengths of a pass, ascending, for prompts of these numbers of tokens.

        They fit a cache of `columns` columns if a new one is allowed; the longest may be longer if not.
        """
        prompts = list(prompts)
        lengths = self._few_more(prompts, columns) if self.few else choose_lengths(prompts, 3)
        self.known.update(lengths)
        return lengths

    def _few_more(self, prompts: Sequence[int], columns: int) -> list[int]:
        """Known lengths, and new ones where they are worth it.

        Only a prompt that is longer than all known lengths can exceed `MOST_IN_RUN`.
        """
        best, room = choose_lengths(prompts, 2), MOST_IN_RUN - len(self.known)
        long_enough = [own for own in self.known if own >= best[-1] and (own <= columns or room <= 0)]
        if not long_enough:
            # The last one that there is room for is long enough for all prompts that a cache of this size can hold.
            longest = best[-1] if room > 1 else min(columns, bucket(best[-1], SHORTEST))
            shorter = best[:-1] if room > 1 else []
            return sorted({*(own for own in self.known if own < longest), *shorter, longest})
        usable = [own for own in self.known if own <= min(long_enough)]
        counts = collections.Counter(map(padded_length, prompts))
        is_enough = _count_padded(counts, usable) <= _TOLERANCE * _count_padded(counts, best)
        new = [] if is_enough else [own for own in best if own not in usable][: max(0, room)]
        return sorted({*usable, *new})
