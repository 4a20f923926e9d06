"""The device mesh, and the table that maps the logical axes of arrays to the axes of the mesh."""

import contextlib
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from mft_jax.config import MeshConfig
from mft_jax.errors import UserError
from mft_jax.parallel import hosts

AUTO_CPU_DEVICES = 2  # of mesh.auto; more were not measured: docs/performance.md

# Logical axis -> mesh axis. Axes that are not listed are not sharded.
RULES = {
    "agent": "agent",
    "batch": "data",
    "heads": "model",  # N * H, the query heads in the q and o projections
    "kv_heads": "model",  # K * H, and K in the KV cache
    "ffw": "model",
    "vocab": "model",
}

# Logical axes (in, out) of the kernel of each linear layer of the base, by its name. A "weight" has them in the other order,
# and a bias has the last axis only.
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
    """A mesh with the axes ("agent", "data", "model") over the first of `devices` (default: all devices).

    On a TPU, JAX arranges the devices by their places in the slice, if it knows an order for them. A CPU is split into
    the devices that the mesh needs (`split_cpu`). Raises UserError if there are too few devices, if a run on several hosts
    does not use all of them, and for sizes that are not chosen yet.
    """
    if config.is_open:
        raise UserError(
            "The axes of the mesh are not chosen yet (mesh.auto): choose them with mft_jax.choose_mesh(config)."
        )
    shape = (config.agent, config.data, config.model)
    if devices is None:
        split_cpu(config)
    devices = list(jax.devices() if devices is None else devices)
    needed = math.prod(shape)
    if needed > len(devices):
        raise UserError(
            f"The mesh {'x'.join(map(str, shape))} (agent x data x model) needs {needed} devices, but there are "
            f"{len(devices)}: use smaller mesh axes."
        )
    if hosts.count() > 1 and needed != len(devices):
        raise UserError(
            f"The mesh {'x'.join(map(str, shape))} (agent x data x model) has {needed} devices, but the {hosts.count()} "
            f"hosts have {len(devices)}: use all of them."
        )
    arranged = _arrange(shape, devices[:needed])
    return Mesh(arranged, ("agent", "data", "model"), axis_types=(AxisType.Auto,) * 3)


def split_cpu(config: MeshConfig) -> None:
    """Lets JAX count this host's CPU as the devices that a mesh needs; they share its cores and its memory.

    A mesh whose axes are chosen later gets two, if there are as many cores: one device does not keep two cores busy with a
    small model. Does nothing if JAX has counted its devices, if it was told a number of them, or on several hosts, whose
    devices are those of the mesh together.
    """
    devices = min(AUTO_CPU_DEVICES, _cores()) if config.is_open else config.devices
    flags = os.environ.get("XLA_FLAGS", "")
    told = jax.config.values["jax_num_cpu_devices"] >= 0 or "host_platform_device_count" in flags
    if devices > 1 and not told and hosts.count() == 1:
        with contextlib.suppress(RuntimeError):  # JAX has counted them
            jax.config.update("jax_num_cpu_devices", devices)


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _arrange(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in an array of this shape."""
    if devices[0].platform == "tpu":
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (NotImplementedError, ValueError, AssertionError):  # some of the chips of a slice, for example
            pass
    return np.array(devices).reshape(shape)


def sharding(mesh: Mesh, *axes: str | None, shape: Sequence[int] | None = None) -> NamedSharding:
    """The sharding of an array with these logical axes (None: not sharded).

    With `shape`, an axis whose size is not divisible by the size of its mesh axis is not sharded.
    """
    names = [RULES.get(axis) if axis else None for axis in axes]
    if shape is not None:
        names = [
            name if name and size % mesh.shape[name] == 0 else None for name, size in zip(names, shape, strict=True)
        ]
    return NamedSharding(mesh, PartitionSpec(*names))


def constrain(mesh: Mesh | None, x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, sharded by these logical axes at this place of a compiled function. An axis that does not divide is not sharded.

    Without the constraint the compiler may choose a sharding that costs more communication.
    """
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, *axes, shape=x.shape))


def own_rows(rows: jax.Array, count: int) -> jax.Array:
    """The indices `rows` as this device counts its `count` rows, in a function that runs on each device of the mesh.

    The rows are split over the data axis. Those of other devices are `count`, one past the last.
    """
    own = rows - jax.lax.axis_index(RULES["batch"]) * count
    return jnp.where((own >= 0) & (own < count), own, count)


def base_sharding(mesh: Mesh, path: tuple[str | int, ...], shape: Sequence[int]) -> NamedSharding:
    """The sharding of one array of the frozen base. Its path in the module tree determines its logical axes."""
    if path[0] == "embedding":
        axes = ("vocab", "embed")
    else:
        linear = next((_LINEAR[part] for part in path if part in _LINEAR), None)
        axes = (None,) * len(shape) if linear is None else linear[-len(shape) :]
        axes = axes[::-1] if path[-1] == "weight" else axes
    return sharding(mesh, *axes, shape=shape)


def society_shardings(mesh: Mesh, stacked: PyTree) -> PyTree:
    """The shardings of stacked adapters, or of their optimizer state: the leading axis over agents.

    The two factors of a linear layer, "a" [A, L, in, R] and "b" [A, L, R, out], are also sharded like its input and its
    output. Scalars are replicated.
    """

    def place(path: tuple, leaf: jax.Array) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        axes: tuple[str | None, ...] = ("agent",) * bool(leaf.ndim)
        if len(names) >= 2 and names[-2] in _LINEAR and leaf.ndim == 4:
            axes = ("agent", *factor_axes(*names[-2:]))
        return sharding(mesh, *axes, shape=leaf.shape[: len(axes)])

    return jax.tree_util.tree_map_with_path(place, stacked)


def factor_axes(linear: str, factor: str) -> tuple[str | None, ...]:
    """The logical axes of a factor of one adapter, "a" [L, in, R] or "b" [L, R, out], of the linear layer of this name."""
    size_in, size_out = _LINEAR[linear]
    return (None, size_in, None) if factor == "a" else (None, None, size_out)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that replicates an array over the mesh."""
    return NamedSharding(mesh, PartitionSpec())
