"""The journal of a stage that is worked off in chunks: which of its lines are final, and what they cost.

Beside NAME.jsonl, which holds nothing but the stage's lines, NAME.journal.jsonl holds a record per committed chunk:
  {"chunk": k, "lines": n, "bytes": end of the chunk in NAME.jsonl, "cost": {...}}
Lines are made durable before their record is written, so a record vouches for every byte before its end. Whatever
lies behind the last whole record is an unfinished chunk, cut off on opening: a stage that is killed at any instant and
redone from `chunks` on leaves the same bytes as one that was never interrupted.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from mft_jax.errors import UserError
from mft_jax.files import make_directory, sync_directory
from mft_jax.metrics.ledger import Cost, total


@dataclasses.dataclass(frozen=True)
class Record:
    """One committed chunk."""

    lines: int
    end: int  # bytes of the data file up to the end of this chunk
    cost: Cost


class Journal:
    """Opens (and mends) or creates a stage's file of lines; `commit` adds chunk after chunk.

    Only one process may hold a journal open; a run's lock sees to that.
    """

    def __init__(self, path: pathlib.Path):
        """Raises UserError when the data is not what the journal vouches for, which no kill can bring about."""
        self.path = pathlib.Path(path)
        self.journal_path = journal_path(self.path)
        make_directory(self.path.parent)
        data = self.path.read_bytes() if self.path.exists() else b""
        self._records, self._journal_end = read_records(self.journal_path, len(data))
        self._end = self._records[-1].end if self._records else 0
        _check_lines(self.path, data, self._records)
        for file, end in ((self.path, self._end), (self.journal_path, self._journal_end)):
            _append(file, end, b"")  # cuts off what was not committed
        sync_directory(self.path.parent)

    @property
    def chunks(self) -> int:
        """Committed chunks: the number of the chunk to do next."""
        return len(self._records)

    @property
    def cost(self) -> Cost:
        """What the committed chunks cost, over all starts of the run."""
        return total(record.cost for record in self._records)

    def commit(self, lines: Sequence[str], cost: Cost) -> None:
        """Makes the next chunk final. `lines` are JSON without line breaks; an empty chunk is a chunk as well.

        An error (a full disk) leaves the journal as it was, and the chunk can be committed again.
        """
        broken = [line for line in lines if "\n" in line]
        if broken:
            raise ValueError(f"a journalled line must not contain a line break: {broken[0][:80]!r}")
        data = "".join(line + "\n" for line in lines).encode()
        end = self._end + len(data)
        raw = {"chunk": self.chunks, "lines": len(lines), "bytes": end, "cost": cost.to_dict()}
        record = (json.dumps(raw) + "\n").encode()
        _append(self.path, self._end, data)
        _append(self.journal_path, self._journal_end, record)
        self._records.append(Record(lines=len(lines), end=end, cost=cost))
        self._end, self._journal_end = end, self._journal_end + len(record)

    def lines(self) -> list[dict[str, Any]]:
        """Every committed line, parsed, in order."""
        return [json.loads(line) for line in self.path.read_bytes()[: self._end].split(b"\n")[:-1]]


def journal_path(path: pathlib.Path) -> pathlib.Path:
    """Where the journal of a data file is: train.jsonl -> train.journal.jsonl."""
    return path.with_name(f"{path.stem}.journal.jsonl")


def read_committed(path: pathlib.Path) -> tuple[list[dict[str, Any]], Cost]:
    """Committed lines and their cost, without touching the files, so also while another process writes them."""
    path = pathlib.Path(path)
    size = path.stat().st_size if path.exists() else 0
    records, _ = read_records(journal_path(path), size)
    if not records:
        return [], Cost()
    data = path.read_bytes()[: records[-1].end]
    _check_lines(path, data, records)
    return [json.loads(line) for line in data.split(b"\n")[:-1]], total(record.cost for record in records)


def read_records(path: pathlib.Path, data_bytes: int) -> tuple[list[Record], int]:
    """The journal's whole records that `data_bytes` bytes of data cover, and the bytes they take in the journal.

    Raises UserError for a record that a whole line holds and that does not follow from the one before it.
    """
    journal = path.read_bytes() if path.exists() else b""
    records: list[Record] = []
    position = 0
    for line in journal.split(b"\n")[:-1]:  # what follows the last line break is torn
        record = _parse_record(line, path, records)
        if record.end > data_bytes:
            break
        records.append(record)
        position += len(line) + 1
    return records, position


def _parse_record(line: bytes, path: pathlib.Path, before: list[Record]) -> Record:
    try:
        raw = json.loads(line)
        record = Record(lines=raw["lines"], end=raw["bytes"], cost=Cost.from_dict(raw["cost"], str(path)))
        is_next = raw["chunk"] == len(before) and record.end >= (before[-1].end if before else 0)
    except (ValueError, KeyError, TypeError):
        is_next = False
    if not is_next:
        raise UserError(
            f"{path} line {len(before) + 1} is not the record of chunk {len(before)}: the file was changed by "
            "something else; delete it to do this stage again."
        )
    return record


def _check_lines(path: pathlib.Path, data: bytes, records: list[Record]) -> None:
    """A kill cannot change committed bytes, an editor can: then the lines no longer end where the records say."""
    start = 0
    for chunk, record in enumerate(records):
        part = data[start : record.end]
        if part.count(b"\n") != record.lines or (part and not part.endswith(b"\n")):
            raise UserError(
                f"{path} was changed after chunk {chunk} was written ({record.lines} lines up to byte {record.end} "
                f"expected): restore it, or delete {journal_path(path).name} beside it to do this stage again."
            )
        start = record.end


def _append(path: pathlib.Path, end: int, data: bytes) -> None:
    """Makes `data` follow the first `end` bytes, durably, whatever stood there."""
    with open(path, "r+b" if path.exists() else "x+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
