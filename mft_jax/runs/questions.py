"""questions.json: which questions a run uses, so that it is never resumed with others."""

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

from mft_jax.errors import UserError
from mft_jax.runs import layout
from mft_jax.runs.store import Store

if TYPE_CHECKING:
    from mft_jax.tasks import Task


def keep_questions(store: Store, task: "Task") -> None:
    """Writes down which questions the run uses. Raises UserError where an earlier start of the run had others."""
    given, path = _list_questions(task), store.path(layout.QUESTIONS)
    data = store.read_if_exists(layout.QUESTIONS)
    if data is None:
        store.write(layout.QUESTIONS, (json.dumps(given, indent=2) + "\n").encode())
        return
    try:
        change = _describe_change(json.loads(data), given)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete it, and the run resumes without comparing its questions."
        ) from error
    if change:
        raise UserError(
            f"The data of the task {task.name} have changed since this run began ({path}: {change}): give it the data it "
            "began with, or another --run-dir."
        )


def count_questions(store: Store) -> tuple[int, int] | None:
    """(training questions, evaluation questions) of a run; None where the file is missing or damaged."""
    data = store.read_if_exists(layout.QUESTIONS)
    try:
        listing = json.loads(data or b"")
        return len(listing["train"]), len(listing["eval"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _list_questions(task: "Task") -> dict[str, Any]:
    """The ids of a task's questions in their order, and a checksum of what the ids stand for."""
    whole = [dataclasses.astuple(question) for question in (*task.train, *task.eval)]
    return {
        "task": task.name,
        "train": [question.id for question in task.train],
        "eval": [question.id for question in task.eval],
        "sha256": hashlib.sha256(json.dumps(whole).encode()).hexdigest(),
    }


def _describe_change(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """How two listings differ; empty if they do not."""
    for split in ("train", "eval"):
        old, new = stored[split], given[split]
        if len(old) != len(new):
            return f"{len(old)} {split} questions there, {len(new)} now"
        for number, (left, right) in enumerate(zip(old, new, strict=True), start=1):
            if left != right:
                return f"{split} question {number} is {left} there, {right} now"
    return "" if stored["sha256"] == given["sha256"] else "the same ids, but other texts or answers"
