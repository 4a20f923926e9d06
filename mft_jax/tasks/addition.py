"""The addition task: the sum of two numbers of `addition_digits` digits each. Small models often answer it correctly.

Each unordered pair of numbers is in at most one split, so no evaluation question is a training question with its two
numbers exchanged.
"""

import functools

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.tasks.generated import SPLITS, make_generated_task
from mft_jax.tasks.questions import Question, Task

LARGEST_POOL = 2000  # questions in each split; there are 4,095 pairs of two-digit numbers

Pair = tuple[int, int]


def pool_size(digits: int) -> int:
    """The number of questions in each split: half of all unordered pairs, but at most LARGEST_POOL."""
    numbers = 9 * 10 ** (digits - 1)
    return min(LARGEST_POOL, numbers * (numbers + 1) // 2 // len(SPLITS))


@functools.cache
def pool(digits: int, split: str) -> tuple[Pair, ...]:
    """The pairs of a split; the first number of a pair comes first in the question. The same on every machine."""
    draws, least = seeds.question_pool(f"addition 1.0.0, {digits} digits"), 10 ** (digits - 1)
    found: dict[Pair, Pair] = {}  # sorted pair -> pair
    while len(found) < pool_size(digits) * len(SPLITS):
        pair = (least + int(draws.random() * 9 * least), least + int(draws.random() * 9 * least))
        found.setdefault((min(pair), max(pair)), pair)
    start = SPLITS.index(split) * pool_size(digits)
    return tuple(found.values())[start : start + pool_size(digits)]


def question(digits: int, split: str, index: int) -> Question:
    a, b = pool(digits, split)[index]
    return Question(f"addition-{digits}-{split}-{index:05d}", f"What is {a}+{b}?", str(a + b))


def load(config: TaskConfig, seed: int) -> Task:
    """Chooses questions by `seed`. Raises UserError if the configuration asks for more than there are."""
    digits = config.addition_digits
    make = functools.partial(question, digits)
    return make_generated_task("addition", config, seed, pool_size=pool_size(digits), question=make)
