"""feedback.jsonl: verdicts of people on the training questions of a run, one JSON object per line.

{"id", "iteration", "agent", "round", "mark", "time"} marks an answer of a training debate as "right", "wrong" or "best",
or as "none" to withdraw an earlier mark. Iterations, agents and rounds are counted from 1. {"id", "answer", "time"}
gives the right answer of a question; null withdraws it. "simulated": true says that a program made the verdict.

The file is written by people, by `mft review` and by `mft report --serve`, also while `mft run` works in the directory.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from mft_jax.errors import UserError
from mft_jax.files import atomic_write, file_error
from mft_jax.finetuning.feedback import Mark, Place, Verdict
from mft_jax.runs import layout
from mft_jax.runs.lock import DirectoryLock
from mft_jax.runs.store import Store
from mft_jax.tasks.json_text import json_type, numbered_lines, parse_object
from mft_jax.tasks.parsing import parse_written

MAX_ID = 1000  # characters
_PLACE = ("iteration", "agent", "round")
_FIELDS = ("id", *_PLACE, "mark", "answer", "time", "simulated")
_REMEDY = 'write it like {"id": "q7", "answer": "42", "time": "2026-01-31T12:00:00Z"}, or remove it'


def read_verdicts(store: Store, task: str) -> list[Verdict]:
    """The verdicts in feedback.jsonl, in its order; none without the file. `task` is the name of the run's task.

    Raises UserError, which names the file and the line, for a line that is not a verdict.
    """
    return parse_verdicts(store.read_if_exists(layout.FEEDBACK) or b"", str(store.path(layout.FEEDBACK)), task)


def parse_verdicts(data: bytes, source: str, task: str) -> list[Verdict]:
    """The verdicts in the lines of `data`, which may begin with a byte order mark. Otherwise as `read_verdicts`."""
    lines = numbered_lines(data.removeprefix(b"\xef\xbb\xbf"))
    return [parse_verdict(line, f"{source}, line {number}", task) for number, line in lines]


def parse_verdict(line: bytes, where: str, task: str) -> Verdict:
    """One verdict. Raises UserError, which begins with `where`, if the line is none."""
    raw = parse_object(line, where, _REMEDY)
    reason = _what_is_wrong(raw, task)
    if reason:
        raise UserError(f"{where}: {reason}: {_REMEDY}.")
    answer = raw.get("answer")
    verdict = Verdict(
        id=raw["id"],
        time=raw["time"],
        place=Place(*(raw[name] for name in _PLACE)) if "mark" in raw else None,
        mark=raw.get("mark"),
        answer=None if answer is None else parse_written(task, answer),
        simulated=raw.get("simulated", False),
    )
    try:
        verdict.moment  # noqa: B018  (raises for a text that is no time)
    except ValueError:
        raise UserError(f"{where}: the time is {raw['time'][:40]!r}, expected ISO 8601: {_REMEDY}.") from None
    return verdict


def encode_verdict(verdict: Verdict) -> str:
    """The JSON of a verdict, without a line break. `parse_verdict` is the inverse."""
    raw: dict[str, Any] = {"id": verdict.id}
    if verdict.place is None:
        raw["answer"] = verdict.answer
    else:
        raw |= {**verdict.place._asdict(), "mark": verdict.mark}
    raw["time"] = verdict.time
    return json.dumps(raw | ({"simulated": True} if verdict.simulated else {}), ensure_ascii=False)


def add_verdicts(store: Store, verdicts: Sequence[Verdict], task: str) -> int:
    """Adds those verdicts to feedback.jsonl that are not there yet, and returns how many these are.

    The file is replaced as a whole. Another process that adds verdicts waits; the one that works on the run is not
    disturbed. Raises UserError if the file has a broken line, or cannot be written; nothing has changed then.
    """
    store.check_local("adding verdicts")
    if not os.path.isdir(store.root):
        raise UserError(f"{store.root} does not exist: give the directory of a run.")
    lock = DirectoryLock(store.root, layout.FEEDBACK_LOCK, attempts=100)
    lock.take()
    try:
        old = store.read_if_exists(layout.FEEDBACK) or b""
        known = set(parse_verdicts(old, str(store.path(layout.FEEDBACK)), task))
        new = [verdict for verdict in dict.fromkeys(verdicts) if verdict not in known]
        if new:
            start = old if not old or old.endswith(b"\n") else old + b"\n"
            _replace(store, start + "".join(encode_verdict(verdict) + "\n" for verdict in new).encode())
        return len(new)
    finally:
        lock.release()


def read_file_of_verdicts(path: str | pathlib.Path, task: str) -> list[Verdict]:
    """The verdicts in a file elsewhere, such as one that the report saved. Raises UserError as `read_verdicts` does."""
    path = pathlib.Path(path).expanduser()
    try:
        return parse_verdicts(path.read_bytes(), str(path), task)
    except OSError as error:
        raise file_error("read", path, error) from error


def write_new_file(path: str | pathlib.Path, verdicts: Sequence[Verdict]) -> None:
    """Writes verdicts to a file that does not exist yet. Raises UserError if it does, or if it cannot be written."""
    path = pathlib.Path(path).expanduser()
    if path.exists():
        raise UserError(f"{path} exists: give the name of a new file, or remove it.")
    atomic_write(path, "".join(encode_verdict(verdict) + "\n" for verdict in verdicts))


def _replace(store: Store, data: bytes) -> None:
    """Writes the file; once more if a process that takes the run removes the temporary file meanwhile."""
    try:
        store.write(layout.FEEDBACK, data)
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        store.write(layout.FEEDBACK, data)


def _what_is_wrong(raw: Mapping[str, Any], task: str) -> str:
    """Why an object is not a verdict, apart from its time; "" if it is one."""
    unknown = [name for name in raw if name not in _FIELDS]
    if unknown:
        return f"there is no field {unknown[0][:40]!r}"
    for name in ("id", "time"):
        if not isinstance(raw.get(name), str) or not raw[name]:
            return f"{_got(raw, name)}, expected a text"
    if len(raw["id"]) > MAX_ID:
        return f"the id has {len(raw['id'])} characters, expected at most {MAX_ID}"
    if not isinstance(raw.get("simulated", False), bool):
        return f"{_got(raw, 'simulated')}, expected true or false"
    if ("mark" in raw) == ("answer" in raw):
        return "expected either a mark or an answer"
    if "answer" in raw:
        return _what_is_wrong_with_answer(raw, task)
    if raw["mark"] not in get_args(Mark):
        return f"the mark is {str(raw['mark'])[:40]!r}, expected one of {', '.join(get_args(Mark))}"
    for name in _PLACE:
        value = raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9:
            return f"{_got(raw, name)}, expected a number from 1"
    return ""


def _what_is_wrong_with_answer(raw: Mapping[str, Any], task: str) -> str:
    placed = [name for name in _PLACE if name in raw]
    if placed:
        return f"an answer concerns the question, but {placed[0]!r} is given"
    answer = raw["answer"]
    if answer is not None and not isinstance(answer, str):
        return f"the answer is {json_type(answer)}, expected a text"
    if answer is not None and parse_written(task, answer) is None:
        return f"the answer {answer[:40]!r} is empty, too long, or none of the choices"
    return ""


def _got(raw: Mapping[str, Any], name: str) -> str:
    if name not in raw:
        return f"the field {name!r} is missing"
    return f"the {name} is {str(raw[name])[:40]!r}"
