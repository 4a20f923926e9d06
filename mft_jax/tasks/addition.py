"""The addition task: the sum of two numbers of `addition_digits` digits each. Small models can do it, but not surely.

An unordered pair of numbers is in one split at most, so that no evaluation question is a training question turned round.
"""

import functools
import random

import tensorflow_datasets as tfds

from mft_jax.config import ADDITION_DIGITS, TaskConfig
from mft_jax.prompts import ADDITION
from mft_jax.tasks.generated import SPLITS, GeneratedBuilder, load_generated
from mft_jax.tasks.prepared import Prepared, cache_dir
from mft_jax.tasks.questions import Question, Task

LARGEST_POOL = 2000  # questions in each split; all the pairs there are of two-digit numbers are 4,095

Pair = tuple[int, int]


class MftAddition(GeneratedBuilder):
    """Builds the two pools as array_record files; a builder config for each number of digits."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=f"{digits}_digits", description=f"Sums of two numbers of {digits} digits.")
        for digits in ADDITION_DIGITS
    ]

    def pool_size(self) -> int:
        return pool_size(self._digits)

    def question(self, split: str, index: int) -> Question:
        return question(self._digits, split, index)

    @property
    def _digits(self) -> int:
        return int(self.builder_config.name.split("_")[0])


def pool_size(digits: int) -> int:
    """Questions in each split: half of all unordered pairs, but no more than LARGEST_POOL."""
    numbers = 9 * 10 ** (digits - 1)
    return min(LARGEST_POOL, numbers * (numbers + 1) // 2 // len(SPLITS))


@functools.cache
def pool(digits: int, split: str) -> tuple[Pair, ...]:
    """The pairs of a split, in the order in which they are asked. The same everywhere."""
    draws, least = random.Random(f"addition 1.0.0, {digits} digits"), 10 ** (digits - 1)
    found: dict[Pair, Pair] = {}  # by the sorted pair
    while len(found) < pool_size(digits) * len(SPLITS):
        pair = (least + int(draws.random() * 9 * least), least + int(draws.random() * 9 * least))
        found.setdefault((min(pair), max(pair)), pair)
    start = SPLITS.index(split) * pool_size(digits)
    return tuple(found.values())[start : start + pool_size(digits)]


def question(digits: int, split: str, index: int) -> Question:
    a, b = pool(digits, split)[index]
    return Question(f"addition-{digits}-{split}-{index:05d}", f"What is {a}+{b}?", str(a + b))


def load(config: TaskConfig, seed: int) -> Task:
    """Builds the data set where it is missing, and reads the questions that `seed` chooses."""
    digits = config.addition_digits
    data = Prepared(cache_dir(config), MftAddition, f"{digits}_digits")
    return load_generated(
        "addition", config, seed, data, pool_size(digits), functools.partial(question, digits), ADDITION
    )
