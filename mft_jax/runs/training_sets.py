"""The training sets of an iteration: a file of examples for each adapter, and the checksums that vouch for them.

"iteration_K/finetune/NAME.jsonl" has one JSON object a line; "training_sets.json" beside them,
{"sha256": {NAME: checksum}}, is written last: without it the sets are not yet chosen.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mft_jax.runs import layout
from mft_jax.runs.store import Damage, DamagedFile, Store

Example = dict[str, Any]


def write_training_sets(store: Store, iteration: int, sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes the examples of every adapter; {adapter's name: examples}."""
    digests = {}
    for name, examples in sets.items():
        data = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples).encode()
        store.write(layout.training_set(iteration, name), data)
        digests[name] = hashlib.sha256(data).hexdigest()
    store.write(layout.training_set_checksums(iteration), (json.dumps({"sha256": digests}, indent=2) + "\n").encode())


def read_training_sets(
    store: Store, iteration: int, names: Sequence[str], say: Callable[[str], None]
) -> dict[str, list[Example]] | None:
    """The examples of the adapters `names`, verified. None when they are not written yet, or when one is damaged.

    A damaged file is set aside, which `say` is told: the sets are to be chosen again from the debate.
    """
    if not store.exists(layout.training_set_checksums(iteration)):
        return None
    try:
        digests = _read_checksums(store, iteration, names)
    except Damage as damage:
        _set_aside(store, layout.training_set_checksums(iteration), damage, say)
        return None
    sets, is_whole = {}, True
    for name in names:
        try:
            sets[name] = _read_set(store, iteration, name, digests)
        except Damage as damage:
            _set_aside(store, layout.training_set(iteration, name), damage, say)
            is_whole = False
    return sets if is_whole else None


def read_training_set(store: Store, iteration: int, name: str) -> list[Example]:
    """The examples of one adapter, verified. Changes nothing; raises DamagedFile, also when they are missing."""
    try:
        return _read_set(store, iteration, name, _read_checksums(store, iteration, [name]))
    except Damage as damage:
        path = store.path(layout.training_set(iteration, name))
        raise DamagedFile(
            f"The training set {path} cannot be used ({damage}): start the run again, which chooses it again."
        ) from damage


def _read_checksums(store: Store, iteration: int, names: Sequence[str]) -> dict[str, str]:
    data = store.read_if_exists(layout.training_set_checksums(iteration))
    if data is None:
        raise Damage("training_sets.json is missing")
    try:
        digests = json.loads(data)["sha256"]
        missing = [name for name in names if not isinstance(digests[name], str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        missing = names
    if missing:
        raise Damage("a checksum is missing")
    return digests


def _read_set(store: Store, iteration: int, name: str, digests: Mapping[str, str]) -> list[Example]:
    data = store.read_if_exists(layout.training_set(iteration, name))
    if data is None:
        raise Damage("it is missing")
    if hashlib.sha256(data).hexdigest() != digests[name]:
        raise Damage("its checksum is wrong")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def _set_aside(store: Store, name: str, damage: Damage, say: Callable[[str], None]) -> None:
    moved = f"it was moved to {store.path(store.set_aside(name))}; " if store.exists(name) else ""
    say(f"{store.path(name)} is damaged ({damage}): {moved}the training sets are chosen again from the debate.")
