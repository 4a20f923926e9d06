"""Stages with equal inputs are computed once: a stage is copied from another one, of this run or of a sibling run.

"X.inputs.json" beside a stage "X.jsonl" records what the stage was computed from, and from where it was copied:
{"inputs": {...}, "copied_from": path relative to the run directory, or null}.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mft_jax.runs import layout
from mft_jax.runs.chunks import Chunk
from mft_jax.runs.stage_file import StageFile, find_chunks
from mft_jax.runs.store import Store

_END = ".inputs.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What a stage was computed from."""

    inputs: Mapping[str, Any]
    copied_from: str | None = None
    """The stage that its lines were copied from. The cost in its journal is the cost of computing them there."""


def begin_stage(file: StageFile, inputs: Mapping[str, Any], total: int, siblings: Sequence[Store] = ()) -> str | None:
    """Records the inputs of a stage of `total` lines before it is computed, or copies it from a stage with equal inputs.

    Such a stage is looked for in the same run and then in `siblings`. It must be sealed, and its checksums are
    verified. Its chunks are committed with their costs and counts, as if they had been computed here. Returns the path
    of that stage; None if there is none, and the missing lines must be computed. If the process is killed, the next
    start continues to copy, or to compute.
    """
    store, stage = file.store, file.name
    record = read_record(store, stage)
    if file.done and (record is None or record.inputs != inputs):
        store.delete(layout.inputs(stage))  # its lines have different inputs, or unknown ones: it cannot be shared
        return None
    is_mixed = file.done and record is not None and record.copied_from is None
    found = None if is_mixed else _find_equal(store, stage, inputs, total, siblings)
    if found is None:
        _write_record(store, stage, Record(inputs))
        return None
    source, chunks = found
    _write_record(store, stage, Record(inputs, os.path.relpath(source, store.root)))
    missing = {line for part in file.missing(total, total) for line in part}
    for chunk in chunks:
        if missing.issuperset(range(chunk.start, chunk.stop)):
            file.commit(chunk.start, chunk.body.decode().split("\n")[:-1], chunk.cost, chunk.counts)
    return source


def read_record(store: Store, stage: str) -> Record | None:
    """The record beside a stage; None if there is none, or if it is damaged: the stage is then not shared."""
    data = store.read_if_exists(layout.inputs(stage))
    if data is None:
        return None
    try:
        raw = json.loads(data)
        record = Record(raw["inputs"], raw["copied_from"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_whole = isinstance(record.inputs, dict) and isinstance(record.copied_from, str | None)
    return record if is_whole else None


def _write_record(store: Store, stage: str, record: Record) -> None:
    store.write(layout.inputs(stage), (json.dumps(dataclasses.asdict(record), indent=2) + "\n").encode())


def _find_equal(
    own: Store, stage: str, inputs: Mapping[str, Any], total: int, siblings: Sequence[Store]
) -> tuple[str, Sequence[Chunk]] | None:
    """(path, chunks) of a sealed, intact stage with these inputs, other than `stage` of the run itself."""
    for store in (own, *siblings):
        for name in _recorded_stages(store):
            record = None if (store, name) == (own, stage) else read_record(store, name)
            if record is None or record.inputs != inputs:
                continue
            found = find_chunks(store, name)
            if found.is_sealed and sum(chunk.lines for chunk in found.chunks) == total:
                return str(store.path(name)), found.chunks
    return None


def _recorded_stages(store: Store) -> Iterator[str]:
    """The names of the stages of a run that have a record."""
    folders = store.names("baselines")
    for iteration in store.names():
        if iteration.startswith("iteration_"):
            folders += [f"{iteration}/debate", f"{iteration}/eval"]
    for folder in folders:
        for name in store.names(folder):
            if name.endswith(_END):
                yield f"{name.removesuffix(_END)}.jsonl"
