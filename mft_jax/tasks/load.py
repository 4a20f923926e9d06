"""From the configuration's `task` to the questions."""

import difflib

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks.questions import Task, check_splits

NAMES = ("arithmetic", "jsonl")


def load_task(config: TaskConfig, seed: int) -> Task:
    """The task's questions and its grading; `seed` chooses which of the available questions are used, and their order.

    Raises UserError for an unknown name, too few or no questions, a file that cannot be read, and a question that is
    both in the training and in the evaluation set.
    """
    if config.name == "arithmetic":
        from mft_jax.tasks import arithmetic  # not above: it imports tensorflow-datasets, which other tasks do not need

        _check_no_files(config)
        task = arithmetic.load(config, seed)
    elif config.name == "jsonl":
        from mft_jax.tasks import jsonl

        task = jsonl.load(config, seed)
    else:
        near = difflib.get_close_matches(config.name, NAMES, n=1, cutoff=0.0)[0]
        raise UserError(f"There is no task {config.name!r} (there are {', '.join(NAMES)}): did you mean {near!r}?")
    check_splits(task.train, task.eval)
    return task


def _check_no_files(config: TaskConfig) -> None:
    for field in ("train_path", "eval_path"):
        value = getattr(config, field)
        if value is not None:
            raise UserError(
                f"task.{field} is {value!r}, but the task {config.name} makes its own questions: "
                f"set task.name to jsonl, or leave task.{field} out."
            )
