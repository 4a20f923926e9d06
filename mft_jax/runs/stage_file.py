"""A stage of a run: a file of lines that is produced in chunks. A committed chunk never changes.

While the stage is unfinished, each chunk is one object, "iteration_1/debate/train.chunks/000100.jsonl", named after the
index of its first line. `seal` joins the chunks to "train.jsonl", which contains only the lines, writes
"train.journal.jsonl" beside it, and removes the chunks. A stage that is killed at any time and resumed ends with the
same lines as one that was never interrupted. Everything that is read is verified. Damaged files are moved to damaged/,
and their lines are computed again.
"""

import collections
import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mft_jax.metrics.ledger import Cost
from mft_jax.metrics.ledger import total as add_costs
from mft_jax.runs.chunks import (
    Chunk,
    decode_chunk,
    decode_sealed,
    encode_chunk,
    encode_journal,
    make_chunk,
)
from mft_jax.runs.store import Damage, DamagedFile, Store


class StageFile:
    """The stage `name`, such as "iteration_1/debate/train.jsonl", in a store that this process holds."""

    def __init__(self, store: Store, name: str, say: Callable[[str], None] = lambda text: None):
        """Reads and verifies the committed chunks. Damaged files are moved to damaged/, and `say` reports each."""
        self.store, self.name = store, name
        found = find_chunks(store, name)
        self._move_damaged(found, say)
        self._chunks = {chunk.start: chunk for chunk in found.chunks}
        self.sealed = found.is_sealed
        if self.sealed:
            store.delete(_chunks_folder(name))  # left if the process was killed in `seal`

    @property
    def done(self) -> int:
        """The number of committed lines."""
        return sum(chunk.lines for chunk in self._chunks.values())

    @property
    def cost(self) -> Cost:
        """The cost of the committed lines, over all starts of the run."""
        return add_costs(chunk.cost for chunk in self._in_order())

    @property
    def counts(self) -> dict[str, int]:
        """The counts of the committed chunks, added up."""
        return _sum_counts(self._in_order())

    def lines(self) -> list[dict[str, Any]]:
        """All committed lines, parsed, in order."""
        return list(self.each_line())

    def each_line(self) -> Iterator[dict[str, Any]]:
        """The same, one at a time."""
        return parse_lines(self._in_order())

    def missing(self, total: int, size: int) -> list[range]:
        """The missing lines of `total`, in order, as ranges of at most `size` lines."""
        done = self._in_order()
        begins = [0, *(chunk.stop for chunk in done)]
        ends = [*(chunk.start for chunk in done), total]
        gaps = zip(begins, ends, strict=True)
        return [range(start, min(start + size, end)) for begin, end in gaps for start in range(begin, end, size)]

    def commit(self, start: int, lines: Sequence[str], cost: Cost, counts: Mapping[str, int]) -> None:
        """Writes a chunk durably. `lines` are JSON without line breaks; `start` is the index of the first one.

        Raises UserError if it cannot be written; nothing has changed then, and the lines can be committed again. Raises
        ValueError if a line is committed already.
        """
        chunk = make_chunk(start, lines, cost, counts)
        if any(chunk.start < other.stop and other.start < chunk.stop for other in self._chunks.values()):
            raise ValueError(f"lines {chunk.start} to {chunk.stop} of {self.name} overlap with committed ones")
        if self.sealed:
            self._unseal()
        self.store.write(_object_name(self.name, start), encode_chunk(chunk))
        self._chunks[start] = chunk

    def seal(self, total: int) -> None:
        """Joins the chunks to a file of `total` lines. Raises ValueError unless exactly these lines are committed."""
        if self.done != total or self.missing(total, total or 1):
            raise ValueError(f"{self.name} has {self.done} committed lines, expected {total} from the first on")
        if self.sealed:
            return
        chunks = self._in_order()
        self.store.write(self.name, b"".join(chunk.body for chunk in chunks))
        self.store.write(journal_name(self.name), encode_journal(chunks))
        self.store.delete(_chunks_folder(self.name))
        self.sealed = True

    def _in_order(self) -> list[Chunk]:
        return [self._chunks[start] for start in sorted(self._chunks)]

    def _move_damaged(self, found: "Found", say: Callable[[str], None]) -> None:
        """Moves damaged files to damaged/. The intact chunks of a damaged sealed file are first written as objects."""
        for name, reason in found.damaged_objects:
            say(_describe(self.store, name, reason, self.store.set_aside(name)))
        if found.damaged_files:
            self._write_missing_objects(found.chunks)
        for name, reason in found.damaged_files:
            aside = self.store.set_aside(name)
            if reason:
                say(_describe(self.store, name, reason, aside))

    def _unseal(self) -> None:
        """Turns a sealed file that has too few lines into chunks again.

        The journal is deleted first, because without a journal the stage does not count as sealed.
        """
        self._write_missing_objects(self._in_order())
        self.store.delete(journal_name(self.name))
        self.store.delete(self.name)
        self.sealed = False

    def _write_missing_objects(self, chunks: Sequence[Chunk]) -> None:
        """Writes those of the chunks that have no object yet."""
        for chunk in chunks:
            name = _object_name(self.name, chunk.start)
            if not self.store.exists(name):
                self.store.write(name, encode_chunk(chunk))


def read_stage(
    store: Store, name: str, keep: Callable[[dict[str, Any]], dict[str, Any]] = lambda line: line
) -> tuple[list[dict[str, Any]], Cost, dict[str, int]]:
    """(committed lines, cost, counts) of a stage. Changes nothing; another process may be working on the stage.

    `keep` is applied to each line once it is parsed, for example to keep a part of it only.

    Raises DamagedFile, which names the damaged file.
    """
    chunks = read_committed(store, name)
    return list(map(keep, parse_lines(chunks))), add_costs(chunk.cost for chunk in chunks), _sum_counts(chunks)


def parse_lines(chunks: Sequence[Chunk]) -> Iterator[dict[str, Any]]:
    """The lines of chunks, parsed one at a time."""
    return (json.loads(line) for chunk in chunks for line in chunk.body.split(b"\n")[:-1])


def read_committed(store: Store, name: str) -> tuple[Chunk, ...]:
    """The committed chunks of a stage, in order, without parsing their lines. Otherwise as `read_stage`."""
    for _ in range(3):
        found = find_chunks(store, name)
        if not found.damaged:
            return found.chunks
        time.sleep(0.1)  # the process that works on the stage may just have moved the file
    file, reason = found.damaged[0]
    raise DamagedFile(
        f"{store.path(file)} is damaged ({reason}): start the run again, which sets it aside and computes its lines "
        "again."
    )


def journal_name(name: str) -> str:
    """The name of the journal of a sealed file: train.jsonl -> train.journal.jsonl."""
    return f"{name.removesuffix('.jsonl')}.journal.jsonl"


@dataclasses.dataclass(frozen=True)
class Found:
    """The verified files of a stage."""

    chunks: tuple[Chunk, ...]  # the intact chunks, in order, without overlaps
    is_sealed: bool  # whether they make up an intact sealed file
    damaged_objects: tuple[tuple[str, str], ...] = ()  # (name, reason) of the damaged chunk objects
    # The same for the journal and then the sealed file. With the reason "", a file is moved only because the other is.
    damaged_files: tuple[tuple[str, str], ...] = ()

    @property
    def damaged(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of every damaged file."""
        return tuple(file for file in self.damaged_files + self.damaged_objects if file[1])


def find_chunks(store: Store, name: str) -> Found:
    """Finds and verifies the chunks of a stage. Changes nothing.

    Chunk objects are read before the journal: if another process seals the stage meanwhile, it writes the journal
    before it removes them.
    """
    objects, damaged = _read_objects(store, name)
    journal, data = store.read_if_exists(journal_name(name)), store.read_if_exists(name)
    if journal is None:
        if data is None or objects or damaged:  # the chunks are still there: `seal` was interrupted
            return Found(tuple(objects), False, damaged)
        return Found((), False, (), ((name, "its journal is missing"),))
    if data is None:
        return Found(tuple(objects), False, damaged, ((journal_name(name), "the file beside it is missing"),))
    try:
        chunks, reason = decode_sealed(data, journal, str(store.path(journal_name(name))))
    except Damage as damage:
        files = ((journal_name(name), str(damage)), (name, ""))
        return Found(tuple(objects), False, damaged, files)
    if not reason:
        return Found(tuple(chunks), True)
    files = ((journal_name(name), ""), (name, reason))
    return Found(_without_overlaps([*chunks, *objects]), False, damaged, files)


def _read_objects(store: Store, name: str) -> tuple[list[Chunk], tuple[tuple[str, str], ...]]:
    """The intact chunk objects, and (name, reason) of the damaged ones."""
    chunks, damaged = [], []
    for path in store.names(_chunks_folder(name)):
        data = store.read_if_exists(path)
        if data is None:
            continue
        try:
            chunks.append(decode_chunk(data, _start_from_name(name, path), str(store.path(path))))
        except Damage as damage:
            damaged.append((path, str(damage)))
    kept = _without_overlaps(chunks)
    for start in {chunk.start for chunk in chunks} - {chunk.start for chunk in kept}:
        damaged.append((_object_name(name, start), "another chunk has some of its lines"))
    return list(kept), tuple(damaged)


def _without_overlaps(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """The chunks in order, without those that share a line with a chunk given earlier."""
    kept: list[Chunk] = []
    covered: set[int] = set()
    for chunk in chunks:
        lines = range(chunk.start, chunk.stop)
        if covered.isdisjoint(lines):
            covered.update(lines)
            kept.append(chunk)
    return tuple(sorted(kept, key=lambda chunk: chunk.start))


def _chunks_folder(name: str) -> str:
    return f"{name.removesuffix('.jsonl')}.chunks"


def _object_name(name: str, start: int) -> str:
    return f"{_chunks_folder(name)}/{start:06}.jsonl"


def _start_from_name(name: str, path: str) -> int:
    """The index of the first line of a chunk object, from its name. Raises Damage for any other name."""
    digits = path.rsplit("/", 1)[-1].removesuffix(".jsonl")
    if not re.fullmatch(r"[0-9]{6,18}", digits) or _object_name(name, int(digits)) != path:
        raise Damage("it is not named like a chunk")
    return int(digits)


def _describe(store: Store, name: str, reason: str, aside: str) -> str:
    path, aside_path = store.path(name), store.path(aside)
    return f"{path} is damaged ({reason}): it was moved to {aside_path}; its lines are computed again."


def _sum_counts(chunks: Sequence[Chunk]) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for chunk in chunks:
        counts.update(chunk.counts)
    return dict(counts)
