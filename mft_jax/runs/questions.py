"""questions.json: records which questions a run uses, so that it is never resumed with others."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mft_jax.errors import UserError
from mft_jax.runs import layout
from mft_jax.runs.store import Damage, Store

if TYPE_CHECKING:
    from mft_jax.tasks import Task


def keep_questions(store: Store, task: "Task", say: Callable[[str], None] = lambda text: None) -> None:
    """Records which questions the run uses. Raises UserError if an earlier start of the run used others.

    A damaged file is moved to damaged/ and written again, and `say` reports it.
    """
    given, path = _list_questions(task), store.path(layout.QUESTIONS)
    data = store.read_if_exists(layout.QUESTIONS)
    change = ""
    if data is not None:
        try:
            change = _describe_change(data, given)
        except Damage as damage:
            aside = store.path(store.set_aside(layout.QUESTIONS))
            say(
                f"{path} is damaged ({damage}): it was moved to {aside}. The run continues with the questions it has "
                "now."
            )
            data = None
    if data is None:
        store.write(layout.QUESTIONS, (json.dumps(given, indent=2) + "\n").encode())
    if change:
        raise UserError(
            f"The data of the task {task.name} have changed since this run began ({path}: {change}): give the run the "
            "data it began with, or give another --run-dir."
        )


def count_questions(store: Store) -> tuple[int, int] | None:
    """(training questions, evaluation questions) of a run; None if the file is missing or damaged."""
    ids = _read_ids(store)
    return None if ids is None else (len(ids[0]), len(ids[1]))


def question_ids(store: Store) -> tuple[frozenset[str], frozenset[str]] | None:
    """The ids of the (training, evaluation) questions of a run; None if the file is missing or damaged."""
    ids = _read_ids(store)
    return None if ids is None else (frozenset(ids[0]), frozenset(ids[1]))


def _read_ids(store: Store) -> tuple[list[str], list[str]] | None:
    """The two lists of ids; None if the file is missing or damaged."""
    data = store.read_if_exists(layout.QUESTIONS)
    try:
        listing = json.loads(data or b"")
        ids = listing["train"], listing["eval"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_intact = all(isinstance(own, list) and all(isinstance(id, str) for id in own) for own in ids)
    return ids if is_intact else None


def _list_questions(task: "Task") -> dict[str, Any]:
    """The ids of a task's questions in order, and a checksum of the questions with their texts and answers."""
    whole = [dataclasses.astuple(question) for question in (*task.train, *task.eval)]
    return {
        "task": task.name,
        "train": [question.id for question in task.train],
        "eval": [question.id for question in task.eval],
        "sha256": hashlib.sha256(json.dumps(whole).encode()).hexdigest(),
    }


def _describe_change(data: bytes, given: dict[str, Any]) -> str:
    """How the recorded listing differs from the given one; "" if it does not. Raises Damage."""
    try:
        stored = json.loads(data)
        change, same = _first_difference(stored, given), stored["sha256"] == given["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damage(f"{type(error).__name__}: {str(error)[:100]}") from error
    if change and same:  # the checksum covers the ids too
        raise Damage("its ids do not match its checksum")
    return change if change or same else "the same ids, but other texts or answers"


def _first_difference(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """The first difference between the ids of two listings; "" if there is none."""
    for split in ("train", "eval"):
        old, new = stored[split], given[split]
        if len(old) != len(new):
            return f"{len(old)} {split} questions there, {len(new)} now"
        for number, (left, right) in enumerate(zip(old, new, strict=True), start=1):
            if left != right:
                return f"{split} question {number} is {left} there, {right} now"
    return ""
