"""The metadata of a checkpoint: everything except its arrays. They can be read without loading JAX.

They are the item "metadata" of the checkpoint, a JSON object: {"step", "finished", "lora", "cost", "names", "plan",
"total", "parts": {part: {"sha256", "arrays": {name: type and shape}}}, "sha256"}. The last field is the checksum of all
other fields.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mft_jax.config import LoraConfig
from mft_jax.metrics.ledger import Cost
from mft_jax.runs import layout
from mft_jax.runs.store import Damage, DamagedFile, Store

METADATA = "metadata"
# In a bucket, where a directory cannot be renamed, Orbax writes this object last.
COMMITTED = "commit_success.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """The metadata of a checkpoint, without those of its parts."""

    step: int  # optimizer steps done
    finished: bool  # whether it is the last of its iteration, which the next debate and `mft eval` load
    lora: LoraConfig
    cost: Cost  # of the finetuning so far, over all starts of the run
    names: tuple[str, ...] = ()  # of the adapters, in the order of the stack
    plan: str = ""  # hash of the training plan that `step` refers to
    total: int = 0  # optimizer steps of the plan


def saved_steps(store: Store, name: str) -> list[int]:
    """The steps of the complete checkpoints in the directory `name` of a store, ascending."""
    entries = [entry.rsplit("/", 1)[-1] for entry in store.names(name)]
    steps = sorted(int(entry) for entry in entries if entry.isascii() and entry.isdigit())
    if store.is_local:
        return steps
    return [step for step in steps if store.is_file(f"{name}/{step}/{COMMITTED}".removeprefix("/"))]


@dataclasses.dataclass(frozen=True)
class Part:
    """The metadata of one part of a checkpoint, such as the adapters."""

    sha256: str  # of its arrays, as `mft_jax.runs.arrays.sha256_of` computes it
    arrays: dict[str, str]  # {name: type and shape}, as `mft_jax.runs.arrays.describe` returns them


def latest_info(store: Store, name: str) -> CheckpointInfo | None:
    """The metadata of the newest checkpoint; None if there is none. Changes nothing.

    Raises DamagedFile, and UserError if they cannot be read.
    """
    steps = saved_steps(store, name)
    if not steps:
        return None
    try:
        return read_metadata(store, name, steps[-1])[0]
    except Damage as damage:
        raise damaged_checkpoint(store, name, steps[-1], damage) from damage


def damaged_checkpoint(store: Store, name: str, step: int, damage: Damage) -> DamagedFile:
    """The error for a damaged checkpoint, with its remedy."""
    remedy = "start the run again, which sets it aside and resumes from the previous one"
    if name == layout.INITIAL:
        remedy = f"delete {store.path(name)} and import the adapters again"
    return DamagedFile(f"The checkpoint {store.path(name) / str(step)} is damaged ({damage}): {remedy}.")


def read_metadata(store: Store, name: str, step: int) -> tuple[CheckpointInfo, dict[str, Part]]:
    """Reads and verifies the metadata of one checkpoint and of its parts. Changes nothing.

    Raises Damage if they are missing or do not match their checksum, and UserError if they cannot be read.
    """
    path = f"{name}/{step}/{METADATA}/{METADATA}".removeprefix("/")  # Orbax stores a JSON item in a directory
    data = store.read_if_exists(path)
    if data is None:
        raise Damage("its metadata are missing")
    try:
        raw = json.loads(data)
        is_whole = raw["sha256"] == _sha256(raw)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole or raw["step"] != step:
        raise Damage("the checksum of its metadata is wrong")
    values = {field.name: raw[field.name] for field in dataclasses.fields(CheckpointInfo)}
    values["lora"] = LoraConfig(**raw["lora"] | {"targets": tuple(raw["lora"]["targets"])})
    values["cost"] = Cost.from_dict(raw["cost"], str(store.path(path)))
    values["names"] = tuple(raw["names"])
    return CheckpointInfo(**values), {part: Part(**known) for part, known in raw["parts"].items()}


def make_metadata(info: CheckpointInfo, parts: Mapping[str, Part]) -> dict[str, Any]:
    """The JSON object that `read_metadata` reads."""
    known = {part: dataclasses.asdict(value) for part, value in parts.items()}
    raw = json.loads(json.dumps(dataclasses.asdict(info) | {"parts": known}))  # converts tuples to lists
    return raw | {"sha256": _sha256(raw)}


def _sha256(raw: Mapping[str, Any]) -> str:
    covered = {name: value for name, value in raw.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()
