"""The addition task: the sum of two numbers of `addition_digits` digits each, which small models often get right.

An unordered pair of numbers is in one split at most, so that no evaluation question is a training question with its
two numbers exchanged.
"""

import functools

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.prompts import ADDITION
from mft_jax.tasks.generated import SPLITS, make_generated_task
from mft_jax.tasks.questions import Question, Task

LARGEST_POOL = 2000  # questions in each split; all the pairs there are of two-digit numbers are 4,095

Pair = tuple[int, int]


def pool_size(digits: int) -> int:
    """Questions in each split: half of all unordered pairs, but no more than LARGEST_POOL."""
    numbers = 9 * 10 ** (digits - 1)
    return min(LARGEST_POOL, numbers * (numbers + 1) // 2 // len(SPLITS))


@functools.cache
def pool(digits: int, split: str) -> tuple[Pair, ...]:
    """The pairs of a split, in the order in which they are asked. The same everywhere."""
    draws, least = seeds.question_pool(f"addition 1.0.0, {digits} digits"), 10 ** (digits - 1)
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
    """The questions that `seed` chooses. Raises UserError when more are asked for than there are."""
    digits = config.addition_digits
    make = functools.partial(question, digits)
    return make_generated_task("addition", config, seed, pool_size=pool_size(digits), question=make, prompts=ADDITION)
