"""Copies values between the memory of the host and the devices of a mesh, which may belong to several hosts."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import PyTree

from mft_jax.parallel import hosts


def to_devices(tree: PyTree, where: PyTree, *, copy: bool = False) -> PyTree:
    """Copies arrays to devices: `where` is one sharding, or a tree of them. All hosts must give the same arrays.

    Arrays that are there already are returned, or with `copy` copied.

    On several hosts, jax.device_put would compare the arrays of the hosts, with a compiled program for each shape.
    """
    if hosts.count() == 1:
        return jax.device_put(tree, where, may_alias=False if copy else None)
    put = functools.partial(_leaf_to_devices, copy=copy)
    if isinstance(where, Sharding):
        return jax.tree.map(lambda leaf: put(leaf, where), tree)
    return jax.tree.map(put, tree, where)


def place_parts(shape: Sequence[int], where: Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """An array whose parts are read one by one: only those that the devices of this host hold, and each of them once."""
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "every device of this host holds a part"
        if str(index) not in parts:
            parts[str(index)] = read(index)
        return parts[str(index)]

    return jax.make_array_from_callback(tuple(shape), where, part)


def to_host(tree: PyTree) -> Any:
    """The arrays of a tree as numpy arrays. All hosts must call it, unless every array is replicated."""
    return jax.tree.map(_leaf_to_host, tree)


def _leaf_to_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _leaf_to_devices(leaf: Any, where: Sharding, *, copy: bool) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(
            leaf, where, may_alias=False if copy else None
        )  # it is on the devices of several hosts already
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])
