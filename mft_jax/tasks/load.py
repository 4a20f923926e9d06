"""Loads the task that the configuration names."""

import dataclasses
import difflib
import importlib
from collections.abc import Callable

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

    With `config.validation` the training questions are the same, and the evaluation questions are others that could have
    been chosen as training questions.

    Raises UserError for an unknown task, too few questions, files that can be neither read nor downloaded, and a
    question that is both in the training set and in the evaluation set.
    """
    check_name(config.name)
    _check_unused_files(config)
    # Imported only when needed: the modules of public data sets import tensorflow-datasets, which takes seconds.
    load = importlib.import_module(f"mft_jax.tasks.{config.name}").load
    task = _load_with_validation(load, config, seed) if config.validation else load(config, seed)
    check_splits(task.train, task.eval)
    return task


def _load_with_validation(load: Callable[[TaskConfig, int], Task], config: TaskConfig, seed: int) -> Task:
    """A task whose evaluation questions follow its training questions in the order that the seed determines."""
    count = config.train_questions
    wide = dataclasses.replace(config, train_questions=count + config.eval_questions)
    try:
        task = load(wide, seed)
    except UserError as error:
        raise UserError(
            f"With task.validation, task.train_questions counts {config.eval_questions} evaluation questions too. {error}"
        ) from error
    return dataclasses.replace(task, train=task.train[:count], eval=task.train[count:])


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
