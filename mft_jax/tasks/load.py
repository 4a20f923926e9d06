"""Loads the task that the configuration names."""

import difflib
import importlib

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.parallel.hosts import decided
from mft_jax.tasks.questions import Task, check_splits

GENERATED = ("arithmetic", "addition")  # generate their questions
PUBLIC = ("gsm8k", "math", "mmlu")  # need the original files or a network connection
NAMES = (*GENERATED, *PUBLIC, "jsonl")


@decided
def load_task(config: TaskConfig, seed: int) -> Task:
    """Loads a task. `seed` determines which of the available questions are used, and their order.

    Raises UserError for an unknown task, too few questions, files that can be neither read nor downloaded, and a
    question that is both in the training set and in the evaluation set.
    """
    check_name(config.name)
    _check_unused_files(config)
    # Imported only when needed: the modules of public data sets import tensorflow-datasets, which takes seconds.
    task = importlib.import_module(f"mft_jax.tasks.{config.name}").load(config, seed)
    check_splits(task.train, task.eval)
    return task


def check_name(name: str) -> None:
    """Raises UserError, with the closest name, if there is no task of this name."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise UserError(f"There is no task {name!r} (there are {', '.join(NAMES)}): did you mean {near!r}?")


def _check_unused_files(config: TaskConfig) -> None:
    """Raises UserError if the configuration sets a path that the task does not use."""
    kind = "makes its own questions" if config.name in GENERATED else "has questions of its own"
    for field in ("train_path", "eval_path"):
        value = getattr(config, field)
        if value is not None and config.name != "jsonl":
            raise UserError(
                f"task.{field} is {value!r}, but the task {config.name} {kind}: "
                f"set task.name to jsonl, or leave task.{field} out."
            )
    if config.data_dir is None or config.name in PUBLIC:
        return
    where = "reads task.train_path and task.eval_path" if config.name == "jsonl" else kind
    raise UserError(
        f"task.data_dir is {config.data_dir!r}, but the task {config.name} {where}: leave it out, or set "
        "task.cache_dir for the directory of prepared data sets."
    )
