"""The lengths to which prompts are padded, and those of KV caches.

Each needs compiled programs, so a pass has few, chosen from its prompts, and passes use those of earlier ones.
"""

import collections
import itertools
from collections.abc import Iterable, Sequence

from jax.sharding import Mesh

from mft_jax.programs.slots import bucket

# Prompts are padded to at least this many tokens: a smaller program saves less time than its compilation takes.
SHORTEST = 32
MOST_IN_RUN = 6  # lengths in all passes of a run, unless a prompt is longer than all of them
_PREFIX_STEP = 128  # on other devices than CPUs, where attention works on blocks of this many tokens
_CPU_STEPS = 8  # of `padded_length`
_WORTH_A_LENGTH = 1.03  # how many times as many tokens, padding included, there must be without a length
_WORTH_A_CACHE = 1.125  # how many times as many columns as needed a cache of an earlier pass may have on CPUs
_TOLERANCE = 1.1  # how many times as many tokens, padding included, the lengths of earlier passes may need


def padded_length(tokens: int, steps: int = 4) -> int:
    """Rounds up to one of 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, ...: `steps` lengths for every power of two."""
    power = SHORTEST
    while 2 * power < tokens:
        power *= 2
    step = power // steps
    return max(power, -(-tokens // step) * step)


def choose_lengths(prompts: Iterable[int], most: int, steps: int = 4) -> list[int]:
    """At most `most` lengths, ascending, with little padding if each prompt gets the shortest that holds it.

    They are some of those of `padded_length`: as few as need almost as few tokens, padding included, as the best choice.
    `prompts` are numbers of tokens.
    """
    counts = collections.Counter(padded_length(tokens, steps) for tokens in prompts)
    longest = max(counts)
    padded = lambda chosen: _count_padded(counts, chosen)
    shorter = [length for length in counts if length < longest]
    choices = [(*some, longest) for size in range(most) for some in itertools.combinations(shorter, size)]
    enough = _WORTH_A_LENGTH * min(map(padded, choices))
    return sorted(min((own for own in choices if padded(own) <= enough), key=lambda own: (len(own), padded(own))))


def _count_padded(counts: collections.Counter[int], lengths: Sequence[int]) -> int:
    """The tokens of prompts, padding included, if each gets the shortest of `lengths` that holds it.

    `counts[n]` is the number of prompts that need n tokens at least.
    """
    return sum(count * min(own for own in lengths if own >= length) for length, count in counts.items())


class PromptLengths:
    """The lengths to which the prompts of a run are padded, and those of its caches.

    CPUs choose up to three for each pass, from finer steps. On other devices programs take longer to compile, so there are
    two for each pass, and those of earlier passes are used again: `MOST_IN_RUN` in all. A run has three kinds of passes, for
    questions, summaries and later rounds, each with other lengths.
    """

    def __init__(self, mesh: Mesh):
        self.few = mesh.devices.flat[0].platform != "cpu"
        self.known: set[int] = set()  # of all passes so far
        self.columns: set[int] = set()  # of their caches

    def choose_prefix(self, shared: int) -> int:
        """How many of the `shared` tokens that all prompts of a speaker begin with can be read by a program of their own."""
        return shared // _PREFIX_STEP * _PREFIX_STEP if self.few else shared

    def choose_columns(self, prompt: int, row: int, new_tokens: int) -> int:
        """The columns of a pass's cache. Its longest prompt has `prompt` tokens, its longest row `row`, answer included.

        `new_tokens` is what each row has room for. On CPUs, a decoding step reads all columns and takes as much longer, so
        they are chosen from finer steps.
        """
        columns = min(bucket(prompt, SHORTEST) + new_tokens, bucket(row, SHORTEST))
        if self.few:
            return columns
        columns = min(columns, padded_length(row, _CPU_STEPS))
        columns = min((own for own in self.columns if columns <= own <= _WORTH_A_CACHE * columns), default=columns)
        self.columns.add(columns)
        return columns

    def choose(self, prompts: Iterable[int], columns: int) -> list[int]:
        """The lengths of a pass, ascending, for prompts of these numbers of tokens.

        They fit a cache of `columns` columns if a new one is allowed; the longest may be longer if not.
        """
        prompts = list(prompts)
        lengths = self._few_more(prompts, columns) if self.few else choose_lengths(prompts, 3, _CPU_STEPS)
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
