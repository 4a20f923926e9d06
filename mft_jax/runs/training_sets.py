"""The training sets of an iteration: a file of examples for each adapter, and a file with their checksums.

"iteration_K/finetune/NAME.jsonl" has one JSON object per line. "training_sets.json" beside these files,
{"sha256": {NAME: checksum}, "cost": {...}}, is written last. If it does not exist, the training sets are not complete
yet. The cost is that of scoring their texts.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mft_jax.metrics.ledger import Cost
from mft_jax.runs import layout
from mft_jax.runs.store import Damage, DamagedFile, Store

Example = dict[str, Any]


def write_training_sets(
    store: Store,
    iteration: int,
    sets: Mapping[str, Sequence[Mapping[str, Any]]],
    cost: Cost = Cost(),  # noqa: B008  (frozen)
) -> None:
    """Writes the training sets of all adapters, {name of the adapter: examples}, their checksums and their cost."""
    digests = {}
    for name, examples in sets.items():
        data = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples).encode()
        store.write(layout.training_set(iteration, name), data)
        digests[name] = hashlib.sha256(data).hexdigest()
    listing = json.dumps({"sha256": digests, "cost": cost.to_dict()}, indent=2) + "\n"
    store.write(layout.training_set_checksums(iteration), listing.encode())


def read_training_sets(
    store: Store, iteration: int, names: Sequence[str], say: Callable[[str], None]
) -> dict[str, list[Example]] | None:
    """The verified training sets of the adapters `names`; None if they are not written yet, or if one is damaged.

    Damaged files are moved to damaged/, and `say` reports each. The caller then selects the examples again.
    """
    if not store.exists(layout.training_set_checksums(iteration)):
        return None
    try:
        digests = _read_checksums(store, iteration, names)
    except Damage as damage:
        _move_damaged(store, layout.training_set_checksums(iteration), damage, say)
        return None
    sets, is_whole = {}, True
    for name in names:
        try:
            sets[name] = _read_set(store, iteration, name, digests)
        except Damage as damage:
            _move_damaged(store, layout.training_set(iteration, name), damage, say)
            is_whole = False
    return sets if is_whole else None


def training_sets_cost(store: Store, iteration: int) -> Cost:
    """The cost of making the training sets of an iteration after its debate; zero if it is not known."""
    data = store.read_if_exists(layout.training_set_checksums(iteration))
    try:
        return Cost.from_dict(json.loads(data or b"{}").get("cost", {}))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Cost()


def read_training_set(store: Store, iteration: int, name: str) -> list[Example]:
    """The verified training set of one adapter. Changes nothing. Raises DamagedFile if it is damaged or missing."""
    try:
        return _read_set(store, iteration, name, _read_checksums(store, iteration, [name]))
    except Damage as damage:
        path = store.path(layout.training_set(iteration, name))
        raise DamagedFile(
            f"The training set {path} cannot be used ({damage}): start the run again, which selects it again."
        ) from damage


def list_training_sets(store: Store, iteration: int) -> list[str]:
    """The adapters that have a training set; none if the sets are not complete yet.

    Changes nothing. Raises DamagedFile if the file of their checksums is damaged.
    """
    if not store.exists(layout.training_set_checksums(iteration)):
        return []
    try:
        return list(_read_checksums(store, iteration, []))
    except Damage as damage:
        path = store.path(layout.training_set_checksums(iteration))
        raise DamagedFile(
            f"{path} is damaged ({damage}): start the run again, which selects the training sets again."
        ) from damage


def _read_checksums(store: Store, iteration: int, names: Sequence[str]) -> dict[str, str]:
    data = store.read_if_exists(layout.training_set_checksums(iteration))
    if data is None:
        raise Damage("training_sets.json is missing")
    try:
        digests = json.loads(data)["sha256"]
        is_whole = set(names) <= digests.keys() and all(isinstance(digest, str) for digest in digests.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise Damage("a checksum is missing")
    return digests


def _read_set(store: Store, iteration: int, name: str, digests: Mapping[str, str]) -> list[Example]:
    data = store.read_if_exists(layout.training_set(iteration, name))
    if data is None:
        raise Damage("it is missing")
    if hashlib.sha256(data).hexdigest() != digests[name]:
        raise Damage("its checksum is wrong")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def _move_damaged(store: Store, name: str, damage: Damage, say: Callable[[str], None]) -> None:
    moved = f"it was moved to {store.path(store.set_aside(name))}; " if store.exists(name) else ""
    say(f"{store.path(name)} is damaged ({damage}): {moved}the training sets are selected again from the debate.")
