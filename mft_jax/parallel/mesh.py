"""The device mesh and the one table that says which axis of an array is split over which axis of the mesh."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from mft_jax.config import MeshConfig
from mft_jax.errors import UserError

# Logical axis -> mesh axis. An axis that is not listed is never split.
RULES = {
    "agent": "agent",
    "batch": "data",
    "heads": "model",  # N * H, query heads of the q and o projections
    "kv_heads": "model",  # K * H, and K in the KV cache
    "ffw": "model",
    "vocab": "model",
}

# Logical axes of a base leaf, by the name of its layer: (in, out) of a kernel, (out,) of a bias.
_LINEAR = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "kv_heads"),
    "v_proj": ("embed", "kv_heads"),
    "qkv_proj": ("embed", "heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "ffw"),
    "up_proj": ("embed", "ffw"),
    "gate_up_proj": ("embed", "ffw"),
    "down_proj": ("ffw", "embed"),
    "lm_head": ("embed", "vocab"),
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes ("agent", "data", "model") over the first devices. Raises UserError when there are too few."""
    shape = (config.agent, config.data, config.model)
    devices = list(jax.devices() if devices is None else devices)
    needed = math.prod(shape)
    if needed > len(devices):
        raise UserError(
            f"The mesh {'x'.join(map(str, shape))} (agent x data x model) needs {needed} devices, but there are "
            f"{len(devices)}: make its axes smaller."
        )
    return Mesh(np.array(devices[:needed]).reshape(shape), ("agent", "data", "model"), axis_types=(AxisType.Auto,) * 3)


def sharding(mesh: Mesh, *axes: str | None, shape: Sequence[int] | None = None) -> NamedSharding:
    """The sharding of an array with these logical axes. With `shape`, an axis that does not divide evenly stays whole."""
    names = [RULES.get(axis) if axis else None for axis in axes]
    if shape is not None:
        names = [
            name if name and size % mesh.shape[name] == 0 else None for name, size in zip(names, shape, strict=True)
        ]
    return NamedSharding(mesh, PartitionSpec(*names))


def base_sharding(mesh: Mesh, path: tuple[str | int, ...], shape: Sequence[int]) -> NamedSharding:
    """Where a leaf of the frozen base lives: its path in the module tree decides its logical axes."""
    if path[0] == "embedding":
        axes = ("vocab", "embed")
    else:
        linear = next((_LINEAR[part] for part in path if part in _LINEAR), None)
        axes = (None,) * len(shape) if linear is None else linear[-len(shape) :]
    return sharding(mesh, *axes, shape=shape)


def society_shardings(mesh: Mesh, stacked: PyTree) -> PyTree:
    """Stacked adapters, and optimizer state of the same shapes: split over agents; whole over `model`, for they are small."""
    return jax.tree.map(lambda leaf: sharding(mesh, *("agent",) * bool(leaf.ndim), shape=leaf.shape[:1]), stacked)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
