"""The paper's arithmetic task (arXiv 2501.05707): a + b * c + d - e * f, six integers uniform in 0..29.

All its questions are reserved (arithmetic_split.py): the base model in the package was not trained on them.
"""

import functools

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.tasks.arithmetic_split import LARGEST, question_text, reserved, value
from mft_jax.tasks.generated import SPLITS, make_generated_task
from mft_jax.tasks.questions import Question, Task

POOL = 4000  # questions in each split

Numbers = tuple[int, ...]


@functools.cache
def pool(split: str) -> tuple[Numbers, ...]:
    """The integers of each question of a split: reserved, distinct, in no other split. The same on every machine."""
    draws = seeds.question_pool("arithmetic 1.0.0")
    found: dict[Numbers, None] = {}  # used as an ordered set
    while len(found) < POOL * len(SPLITS):
        numbers = tuple(int(draws.random() * (LARGEST + 1)) for _ in range(6))
        if reserved(numbers):
            found[numbers] = None
    start = SPLITS.index(split) * POOL
    return tuple(found)[start : start + POOL]


def question(split: str, index: int) -> Question:
    numbers = pool(split)[index]
    return Question(f"arithmetic-{split}-{index:05d}", question_text(numbers), str(value(numbers)))


def load(config: TaskConfig, seed: int) -> Task:
    """Chooses questions by `seed`. Raises UserError if the configuration asks for more than there are."""
    return make_generated_task("arithmetic", config, seed, pool_size=POOL, question=question)
