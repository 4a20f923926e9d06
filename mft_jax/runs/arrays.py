"""The arrays of a checkpoint: converts them to nested dicts, computes checksums, and reads Orbax's files."""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from mft_jax import gcs
from mft_jax.errors import UserError
from mft_jax.files import file_error
from mft_jax.parallel import hosts
from mft_jax.parallel.placement import to_host
from mft_jax.runs.store import Damage

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # errors for a missing file, which counts as damage


def to_plain(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree as nested dicts, keyed by its indices, keys and field names. Empty nodes are left out."""
    plain: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, name = _key_names(path)
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return plain


def from_plain(plain: Mapping[str, Any], like: PyTree) -> PyTree:
    """The inverse of `to_plain`: a tree with the structure of `like`."""

    def find(path: tuple[Any, ...], _: Any) -> Any:
        node = plain
        for name in _key_names(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(find, like)


def describe(plain: Mapping[str, Any]) -> dict[str, str]:
    """The name, type and shape of each array in nested dicts, such as {"q_proj.a": "float32[4, 2, 8, 2]"}.

    Raises ValueError for a key with a dot.
    """
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    dotted = [name for path, _ in leaves for name in _key_names(path) if "." in name]
    if dotted:
        raise ValueError(f"the key {dotted[0]!r} of an array has a dot, which separates keys in the metadata")
    return {".".join(_key_names(path)): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves}


def sha256_of(plain: Mapping[str, Any]) -> str:
    """The checksum of the names, types, shapes and bytes of arrays in nested dicts, independent of their sharding."""
    digest = hashlib.sha256(json.dumps(describe(plain), sort_keys=True).encode())
    for leaf in jax.tree.leaves(plain):
        digest.update(np.ascontiguousarray(to_host(leaf)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_arrays(path: pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
    """Reads one item of a checkpoint as nested dicts of numpy arrays, in their stored types.

    `names` are the names of its arrays, as `describe` returns them. Raises Damage if files are missing or Orbax cannot
    decode them, and UserError if memory runs out or the operating system refuses to read them.
    """
    try:
        with quiet_orbax():
            return _read_one_by_one(path, names)
    except Exception as error:  # Orbax raises many kinds
        cause = refused_by_system(error)
        refusal = refused_by_bucket("read", path, error)
        if refusal is not None:
            raise refusal from error
        if is_out_of_memory(error):
            raise UserError(
                f"There is not enough memory to read the checkpoint {path} ({first_line(error)}): free some, or use a "
                "machine with more."
            ) from error
        if cause is not None and cause.errno not in _MISSING:
            raise file_error("read", path, cause) from error
        raise Damage(f"the {path.name} cannot be read, {type(error).__name__}: {first_line(error)}") from error


def check_arrays(path: pathlib.Path, stored: Mapping[str, str], asked: Mapping[str, str]) -> None:
    """Raises UserError for the first array whose shape or type differs, or that is missing in `stored` or `asked`.

    Both are as `describe` returns them. `path` is the item of the checkpoint, for the error message.
    """
    for name in sorted(stored.keys() | asked.keys()):
        if stored.get(name) != asked.get(name):
            raise UserError(
                f"{path}: {name} is {stored.get(name, 'missing')}, expected {asked.get(name, 'no such array')}: the "
                "checkpoint is of another model, LoRA configuration or number of agents; use the configuration it was "
                "made with."
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the host or a device ran out of memory."""
    cause = refused_by_system(error)
    if cause is not None:
        return cause.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def refused_by_system(error: BaseException) -> OSError | None:
    """The error of the operating system that caused an error of Orbax; None if there is none.

    Errors of tensorstore have the error number of the operating system only in their text.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def refused_by_bucket(doing: gcs.Doing, path: pathlib.Path, error: BaseException) -> UserError | None:
    """The UserError for an error of Orbax that a bucket caused; None if `path` is local, or for any other error."""
    sentence = None if isinstance(path, pathlib.Path) else gcs.explain(doing, path, error)
    return None if sentence is None else UserError(sentence)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def quiet_orbax() -> Generator[None]:
    """Hides the log messages of Orbax, which it writes through absl. The user sees this package's messages instead."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_one_by_one(path: pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
    """Reads one array after the other.

    If they were read together and one failed, the others would still be running and use a closed event loop.
    """
    arrays, options = {}, _of_this_host()
    restore_args = _nest({name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        for name in names:
            item = _nest({other: 0 if other == name else ocp.PLACEHOLDER for other in names})
            found = reader.restore(path, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args))
            arrays[name] = functools.reduce(lambda node, key: node[key], name.split("."), found)
    return _nest(arrays)


def _of_this_host() -> ocp.options.MultiprocessingOptions:
    """Options to read without waiting for other hosts, so that an error on one of them leaves none waiting."""
    if hosts.count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"host_{own}"
    )


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts {"q_proj.a": x} to {"q_proj": {"a": x}}."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, nested)[last] = value
    return nested


def _key_names(path: tuple[Any, ...]) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in path] or ["value"]
