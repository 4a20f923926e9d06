"""Encodes the chunks of a stage, and decodes and verifies them.

A committed chunk is one object: a header {"start", "lines", "sha256", "cost", "counts"} in the first line, followed by
the lines of the stage. The journal beside a sealed file has the same record for each of its chunks, with the
additional field "bytes", the end of the chunk in the file. The checksum covers the lines and the fields "start",
"lines", "cost" and "counts", so that a changed cost or count is detected too.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mft_jax.metrics.ledger import Cost
from mft_jax.runs.store import Damage


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive lines of a stage. A committed chunk never changes."""

    start: int  # index of the first line
    lines: int
    body: bytes  # the lines, each with its line break
    cost: Cost
    counts: Mapping[str, int]

    @property
    def stop(self) -> int:
        """The index after the last line."""
        return self.start + self.lines


def make_chunk(start: int, lines: Sequence[str], cost: Cost, counts: Mapping[str, int]) -> Chunk:
    """A chunk of these lines. Raises ValueError if there are none, or if one contains a line break."""
    broken = [line for line in lines if "\n" in line]
    if broken or not lines:
        raise ValueError(f"a chunk needs one or more lines without line breaks, got {(broken or lines)[:1]!r:.80}")
    return Chunk(start, len(lines), "".join(line + "\n" for line in lines).encode(), cost, dict(counts))


def encode_chunk(chunk: Chunk) -> bytes:
    """The content of the object of a chunk."""
    return json.dumps(_record(chunk)).encode() + b"\n" + chunk.body


def decode_chunk(data: bytes, start: int, source: str) -> Chunk:
    """The inverse of `encode_chunk`. Raises Damage, also if the chunk does not begin at line `start`.

    Raises UserError for a chunk written by another version of mft_jax. `source` names the object in this error.
    """
    header, _, body = data.partition(b"\n")
    chunk = _verified(_parse(header), body, source)
    if chunk.start != start:
        raise Damage(f"its first line is line {chunk.start + 1}, but its name says {start + 1}")
    return chunk


def encode_journal(chunks: Sequence[Chunk]) -> bytes:
    """The journal of a sealed file: one JSON record per line."""
    end, lines = 0, []
    for chunk in chunks:
        end += len(chunk.body)
        record = _record(chunk)
        lines.append(json.dumps({"start": chunk.start, "lines": chunk.lines, "bytes": end} | record) + "\n")
    return "".join(lines).encode()


def decode_sealed(data: bytes, journal: bytes, source: str) -> tuple[list[Chunk], str]:
    """The intact chunks of a sealed file, and the reason why the file is damaged ("" if it is intact).

    The chunks after a damaged one are found even if its length has changed. Raises Damage if the journal itself is
    damaged. `source` is as in `decode_chunk`.
    """
    records = [_parse(line) for line in journal.split(b"\n")[:-1]]
    if (journal and not journal.endswith(b"\n")) or not _are_consecutive(records):
        raise Damage("it is not a list of consecutive chunks")
    chunks, damaged = [], []
    for number, record in enumerate(records):
        try:
            chunks.append(_find_chunk(data, records, number, source))
        except Damage:
            damaged.append(f"{record['start'] + 1} to {record['start'] + record['lines']}")
    if damaged:
        return chunks, f"the checksum of lines {', '.join(damaged)} is wrong"
    ends = list(itertools.accumulate(len(chunk.body) for chunk in chunks))
    if b"".join(chunk.body for chunk in chunks) != data or ends != [record["bytes"] for record in records]:
        return chunks, "its length is not what its journal says"
    return chunks, ""


def _record(chunk: Chunk) -> dict[str, Any]:
    record = {"start": chunk.start, "lines": chunk.lines, "cost": chunk.cost.to_dict(), "counts": dict(chunk.counts)}
    digest = _sha256(record, chunk.body)
    return {"start": chunk.start, "lines": chunk.lines, "sha256": digest} | record


def _sha256(record: Mapping[str, Any], body: bytes) -> str:
    covered = json.dumps([record[name] for name in ("start", "lines", "cost", "counts")], sort_keys=True)
    return hashlib.sha256(covered.encode() + b"\n" + body).hexdigest()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        has_all = isinstance(record, dict) and {"start", "lines", "sha256", "cost", "counts"} <= record.keys()
    except (ValueError, RecursionError):
        has_all = False
    if not has_all:
        raise Damage("the record of its lines is invalid")
    return record


def _verified(record: Mapping[str, Any], body: bytes, source: str) -> Chunk:
    if _sha256(record, body) != record["sha256"]:
        raise Damage("its checksum is wrong")
    cost = Cost.from_dict(record["cost"], source)
    return Chunk(record["start"], record["lines"], body, cost, record["counts"])


def _are_consecutive(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the records are consecutive, beginning at line 0 and byte 0."""
    line = end = 0
    for record in records:
        numbers = (record["start"], record["lines"], record.get("bytes"))
        if not all(isinstance(number, int) for number in numbers) or record["start"] != line or record["bytes"] <= end:
            return False
        line, end = line + record["lines"], record["bytes"]
    return True


def _find_chunk(data: bytes, records: Sequence[Mapping[str, Any]], number: int, source: str) -> Chunk:
    """Finds the chunk of a record in the sealed file, even if it has moved. Raises Damage."""
    for body in _candidates(data, records, number):
        try:
            return _verified(records[number], body, source)
        except Damage:
            continue
    raise Damage("it is nowhere in the file")


def _candidates(data: bytes, records: Sequence[Mapping[str, Any]], number: int) -> Iterator[bytes]:
    """The bytes that may be the chunk of a record.

    First the bytes where it was written. Then those at the same distance from the end, in case bytes before the chunk
    were lost or inserted. Then those at its line numbers, in case lines before and after it changed in length.
    """
    record, begin = records[number], records[number - 1]["bytes"] if number else 0
    yield data[begin : record["bytes"]]
    shift = len(data) - records[-1]["bytes"]
    yield data[max(0, begin + shift) : max(0, record["bytes"] + shift)]
    lines = data.split(b"\n")[record["start"] : record["start"] + record["lines"]]
    yield b"".join(line + b"\n" for line in lines)
