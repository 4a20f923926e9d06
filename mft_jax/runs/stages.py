"""A stage of a run: a file of lines that is worked off in chunks, each of them final once it is committed.

While the stage is unfinished each chunk is one immutable object, "iteration_1/debate/train.chunks/000100.jsonl", named by
the index of its first line. `seal` composes "train.jsonl", which has the lines and nothing else, writes
"train.journal.jsonl" beside it, and removes the chunks. A stage that is killed at any instant and resumed ends with the
same lines as one that was never interrupted. What is read is verified; a damaged piece is set aside and
made again.
"""

import collections
import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
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
    """Opens or creates the stage NAME ("iteration_1/debate/train.jsonl") of a store that this process holds."""

    def __init__(self, store: Store, name: str, say: Callable[[str], None] = lambda text: None):
        """Verifies what an earlier start committed; tells `say` of each damaged piece that is set aside."""
        self.store, self.name = store, name
        found = find_chunks(store, name)
        self._set_aside(found, say)
        self._chunks = {chunk.start: chunk for chunk in found.chunks}
        self.sealed = found.is_sealed
        if self.sealed:
            store.delete(_folder(name))  # a kill came while `seal` removed it

    @property
    def done(self) -> int:
        """Committed lines."""
        return sum(chunk.lines for chunk in self._chunks.values())

    @property
    def cost(self) -> Cost:
        """What the committed lines cost, over all starts of the run."""
        return add_costs(chunk.cost for chunk in self._in_order())

    @property
    def counts(self) -> dict[str, int]:
        """The sums of what was counted in the committed chunks."""
        return _sum_counts(self._in_order())

    def lines(self) -> list[dict[str, Any]]:
        """Every committed line, parsed, in order."""
        return _parse_lines(self._in_order())

    def missing(self, total: int, size: int) -> list[range]:
        """The lines that are still to be done of `total`, in order, in pieces of at most `size`."""
        done = self._in_order()
        begins = [0, *(chunk.stop for chunk in done)]
        ends = [*(chunk.start for chunk in done), total]
        gaps = zip(begins, ends, strict=True)
        return [range(start, min(start + size, end)) for begin, end in gaps for start in range(begin, end, size)]

    def commit(self, start: int, lines: Sequence[str], cost: Cost, counts: Mapping[str, int]) -> None:
        """Makes the lines from index `start` on final, durably. `lines` are JSON without line breaks.

        Raises UserError when they cannot be written: nothing has changed then, and they can be committed again.
        """
        chunk = make_chunk(start, lines, cost, counts)
        if any(chunk.start < other.stop and other.start < chunk.stop for other in self._chunks.values()):
            raise ValueError(f"lines {chunk.start} to {chunk.stop} of {self.name} overlap with committed ones")
        if self.sealed:
            self._open_again()
        self.store.write(_object(self.name, start), encode_chunk(chunk))
        self._chunks[start] = chunk

    def seal(self, total: int) -> None:
        """Composes the file of `total` lines and its journal. Raises ValueError unless exactly these are committed."""
        if self.done != total or self.missing(total, total or 1):
            raise ValueError(f"{self.name} has {self.done} committed lines, expected {total} from the first on")
        if self.sealed:
            return
        chunks = self._in_order()
        self.store.write(self.name, b"".join(chunk.body for chunk in chunks))
        self.store.write(journal_name(self.name), encode_journal(chunks))
        self.store.delete(_folder(self.name))
        self.sealed = True

    def _in_order(self) -> list[Chunk]:
        return [self._chunks[start] for start in sorted(self._chunks)]

    def _set_aside(self, found: "Found", say: Callable[[str], None]) -> None:
        """Moves damaged pieces away. Whole chunks of a damaged file become objects before the file goes."""
        for name, reason in found.damaged_objects:
            say(_describe(self.store, name, reason, self.store.set_aside(name)))
        if found.damaged_files:
            self._write_missing_objects(found.chunks)
        for name, reason in found.damaged_files:
            aside = self.store.set_aside(name)
            if reason:
                say(_describe(self.store, name, reason, aside))

    def _open_again(self) -> None:
        """Turns a sealed file that has too few lines into chunks. The journal goes first: without it nothing is sealed."""
        self._write_missing_objects(self._in_order())
        self.store.delete(journal_name(self.name))
        self.store.delete(self.name)
        self.sealed = False

    def _write_missing_objects(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            name = _object(self.name, chunk.start)
            if not self.store.exists(name):
                self.store.write(name, encode_chunk(chunk))


def read_stage(store: Store, name: str) -> tuple[list[dict[str, Any]], Cost, dict[str, int]]:
    """(committed lines, cost, counts) of a stage. Changes nothing; another process may be at work on it.

    Raises DamagedFile, which names the damaged piece.
    """
    chunks = read_committed(store, name)
    return _parse_lines(chunks), add_costs(chunk.cost for chunk in chunks), _sum_counts(chunks)


def read_committed(store: Store, name: str) -> tuple[Chunk, ...]:
    """The committed chunks of a stage, in order, their lines not parsed. As `read_stage` otherwise."""
    for _ in range(3):
        found = find_chunks(store, name)
        if not found.damaged:
            return found.chunks
        time.sleep(0.1)  # the process at work may just have moved it
    piece, reason = found.damaged[0]
    raise DamagedFile(
        f"{store.path(piece)} is damaged ({reason}): start the run again, which sets it aside and makes its lines again."
    )


def journal_name(name: str) -> str:
    """Where the journal of a sealed file is: train.jsonl -> train.journal.jsonl."""
    return f"{name.removesuffix('.jsonl')}.journal.jsonl"


@dataclasses.dataclass(frozen=True)
class Found:
    """What is on disk of a stage."""

    chunks: tuple[Chunk, ...]  # whole ones, in order, none overlapping
    is_sealed: bool  # they are the sealed file
    damaged_objects: tuple[tuple[str, str], ...] = ()  # (name, why) of chunks
    damaged_files: tuple[tuple[str, str], ...] = ()  # the same of the journal, then of the sealed file; "": goes along

    @property
    def damaged(self) -> tuple[tuple[str, str], ...]:
        """(name, why) of every damaged piece."""
        return tuple(piece for piece in self.damaged_files + self.damaged_objects if piece[1])


def find_chunks(store: Store, name: str) -> Found:
    """Verifies everything that is there of a stage, and changes nothing.

    Chunks are read first: when another process seals the stage meanwhile, its journal is there before they go.
    """
    objects, damaged = _read_objects(store, name)
    journal, data = store.read_if_exists(journal_name(name)), store.read_if_exists(name)
    if journal is None:
        if data is None or objects or damaged:  # a file without a journal beside chunks: `seal` was interrupted
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
    """The whole chunks among the objects, and (name, why) of the damaged ones."""
    chunks, damaged = [], []
    for path in store.names(_folder(name)):
        data = store.read_if_exists(path)
        if data is None:
            continue
        try:
            chunks.append(decode_chunk(data, _start(name, path), str(store.path(path))))
        except Damage as damage:
            damaged.append((path, str(damage)))
    whole = _without_overlaps(chunks)
    for start in {chunk.start for chunk in chunks} - {chunk.start for chunk in whole}:
        damaged.append((_object(name, start), "another chunk has some of its lines"))
    return list(whole), tuple(damaged)


def _without_overlaps(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """In order; of two chunks that have a line in common, the one that comes first in `chunks`."""
    kept: list[Chunk] = []
    covered: set[int] = set()
    for chunk in chunks:
        lines = range(chunk.start, chunk.stop)
        if covered.isdisjoint(lines):
            covered.update(lines)
            kept.append(chunk)
    return tuple(sorted(kept, key=lambda chunk: chunk.start))


def _folder(name: str) -> str:
    return f"{name.removesuffix('.jsonl')}.chunks"


def _object(name: str, start: int) -> str:
    return f"{_folder(name)}/{start:06}.jsonl"


def _start(name: str, path: str) -> int:
    digits = path.rsplit("/", 1)[-1].removesuffix(".jsonl")
    if not re.fullmatch(r"[0-9]{6,18}", digits) or _object(name, int(digits)) != path:
        raise Damage("it is not named like a chunk")
    return int(digits)


def _describe(store: Store, name: str, reason: str, aside: str) -> str:
    return f"{store.path(name)} is damaged ({reason}): it was moved to {store.path(aside)}; its lines are made again."


def _parse_lines(chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    return [json.loads(line) for chunk in chunks for line in chunk.body.split(b"\n")[:-1]]


def _sum_counts(chunks: Sequence[Chunk]) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for chunk in chunks:
        counts.update(chunk.counts)
    return dict(counts)
