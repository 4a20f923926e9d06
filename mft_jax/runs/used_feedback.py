"""The verdicts of people that an iteration was trained with: "iteration_K/finetune/feedback.json".

{"sha256", "used": {...}, "verdicts": [...]} is written before the training sets are selected. From then on the iteration
reads its verdicts there, so that verdicts given later change only later iterations. Without feedback there is no file.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.runs import layout
from mft_jax.runs.store import DamagedFile, Store

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedbackUse:
    """How much feedback the training sets of an iteration were selected with."""

    questions: int  # number of questions with a verdict that counts
    verdicts: int  # number of verdicts that count
    simulated: int  # how many of these a program made
    conflicts: int  # number of verdicts that do not count, because a newer one contradicts them
    weight: float  # weight of these questions in training; other questions have 1


def write_used(store: Store, iteration: int, verdicts: Sequence[Json], use: FeedbackUse) -> None:
    """Records the verdicts, as plain values, that an iteration uses."""
    content = {"used": dataclasses.asdict(use), "verdicts": list(verdicts)}
    record = {"sha256": _digest(content), **content}
    store.write(layout.used_feedback(iteration), (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_used(store: Store, iteration: int) -> tuple[list[Json], FeedbackUse] | None:
    """The inverse of `write_used`; None if nothing is recorded. Raises DamagedFile."""
    data = store.read_if_exists(layout.used_feedback(iteration))
    if data is None:
        return None
    try:
        record = json.loads(data)
        if record.pop("sha256") != _digest(record):
            raise ValueError("its checksum is wrong")
        return record["verdicts"], FeedbackUse(**record["used"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        path = store.path(layout.used_feedback(iteration))
        raise DamagedFile(
            f"{path} is damaged ({str(error)[:80]}): put it back from a backup, or delete {path.parent.parent} to repeat "
            f"iteration {iteration} with the verdicts in feedback.jsonl."
        ) from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
