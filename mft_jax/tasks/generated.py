"""Tasks with generated questions: each split has a fixed pool, from which the seed of a run chooses questions."""

import dataclasses
from collections.abc import Callable

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.tasks.questions import Question, Task, check_enough
from mft_jax.tasks.rules import without_questions

SPLITS = ("train", "eval")

MakeQuestion = Callable[[str, int], Question]  # (split, index in its pool) -> question, deterministic


def make_generated_task(name: str, config: TaskConfig, seed: int, *, pool_size: int, question: MakeQuestion) -> Task:
    """Chooses questions by `seed` from the pools of `pool_size` questions. Raises UserError if a pool is too small."""
    check_enough(config.train_questions, pool_size, "task.train_questions", f"the task {name}'s training set")
    check_enough(config.eval_questions, pool_size, "task.eval_questions", f"the task {name}'s evaluation set")
    counts = {"train": config.train_questions, "eval": config.eval_questions}
    chosen = {
        split: seeds.question_order(range(pool_size), seed, f"{name}-{split}")[: counts[split]] for split in SPLITS
    }
    questions = {split: tuple(question(split, index) for index in chosen[split]) for split in SPLITS}
    return dataclasses.replace(without_questions(name), **questions)
