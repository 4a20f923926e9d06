"""The bytes of a stage's chunks: how its lines are kept while it is worked off, and how each piece is verified.

A committed chunk is one object: a header {"start", "lines", "sha256", "cost", "counts"} on the first line, then the
stage's lines as they are. The journal beside a sealed file has the same record for each of its chunks, with "bytes",
the end of the chunk in the file. The checksum covers the lines and everything in the record that is not derived from
them, so that no cost or count can change unseen either.
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
    """Consecutive lines of a stage that are final."""

    start: int  # index of the first line
    lines: int
    body: bytes  # the lines, each with its line break
    cost: Cost
    counts: Mapping[str, int]

    @property
    def stop(self) -> int:
        return self.start + self.lines


def make_chunk(start: int, lines: Sequence[str], cost: Cost, counts: Mapping[str, int]) -> Chunk:
    """Raises ValueError for a line that contains a line break, and for no lines."""
    broken = [line for line in lines if "\n" in line]
    if broken or not lines:
        raise ValueError(f"a chunk is lines without line breaks, at least one, got {(broken or lines)[:1]!r:.80}")
    return Chunk(start, len(lines), "".join(line + "\n" for line in lines).encode(), cost, dict(counts))


def encode_chunk(chunk: Chunk) -> bytes:
    """The content of the chunk's object."""
    return json.dumps(_record(chunk)).encode() + b"\n" + chunk.body


def decode_chunk(data: bytes, start: int, source: str) -> Chunk:
    """The inverse of `encode_chunk` for the chunk of lines from `start` on. Raises Damage.

    `source` names the object in the UserError for one that another version of mft_jax wrote.
    """
    header, _, body = data.partition(b"\n")
    chunk = _verified(_parse(header), body, source)
    if chunk.start != start:
        raise Damage(f"it has the lines from {chunk.start + 1} on, its name says from {start + 1} on")
    return chunk


def encode_journal(chunks: Sequence[Chunk]) -> bytes:
    """The journal of a sealed file, a record a line."""
    end, lines = 0, []
    for chunk in chunks:
        end += len(chunk.body)
        record = _record(chunk)
        lines.append(json.dumps({"start": chunk.start, "lines": chunk.lines, "bytes": end} | record) + "\n")
    return "".join(lines).encode()


def decode_sealed(data: bytes, journal: bytes, source: str) -> tuple[list[Chunk], str]:
    """The whole chunks of a sealed file, and what is wrong with it ("" if nothing is).

    A damaged chunk does not take those after it along, even if it has another length now. Raises Damage when the
    journal itself is damaged. `source` as in `decode_chunk`.
    """
    records = [_parse(line) for line in journal.split(b"\n")[:-1]]
    if (journal and not journal.endswith(b"\n")) or not _is_complete(records):
        raise Damage("it is not a list of consecutive chunks")
    chunks, damaged = [], []
    for number, record in enumerate(records):
        try:
            chunks.append(_find(data, records, number, source))
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


def _is_complete(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the records follow on each other from line 0 and byte 0 on."""
    line = end = 0
    for record in records:
        numbers = (record["start"], record["lines"], record.get("bytes"))
        if not all(isinstance(number, int) for number in numbers) or record["start"] != line or record["bytes"] <= end:
            return False
        line, end = line + record["lines"], record["bytes"]
    return True


def _find(data: bytes, records: Sequence[Mapping[str, Any]], number: int, source: str) -> Chunk:
    """The chunk of a record, wherever it lies in the sealed file now. Raises Damage."""
    for body in _places(data, records, number):
        try:
            return _verified(records[number], body, source)
        except Damage:
            continue
    raise Damage("it is nowhere in the file")


def _places(data: bytes, records: Sequence[Mapping[str, Any]], number: int) -> Iterator[bytes]:
    """Where a chunk can lie: where it was written; as far from the end, when bytes before it were lost or inserted; and
    at the same lines, when lines before and after it became longer or shorter."""
    record, begin = records[number], records[number - 1]["bytes"] if number else 0
    yield data[begin : record["bytes"]]
    shift = len(data) - records[-1]["bytes"]
    yield data[max(0, begin + shift) : max(0, record["bytes"] + shift)]
    lines = data.split(b"\n")[record["start"] : record["start"] + record["lines"]]
    yield b"".join(line + b"\n" for line in lines)
