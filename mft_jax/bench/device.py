"""The limits of the present devices: matmul throughput and memory bandwidth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mft_jax.bench.measurement import Limits, time_runs
from mft_jax.config import ExperimentConfig
from mft_jax.parallel.mesh import make_mesh
from mft_jax.session import dtypes

_REPEATS = 7
_LARGE = {"cpu": 1024, "other": 8192}  # size of the square matrices: large enough to reach the peak
_BYTES = {"cpu": 1 << 28, "other": 1 << 31}  # larger than the caches


def measure_limits(mesh: Mesh, dtype: str) -> Limits:
    """Measures one device of the mesh and multiplies by their number, but not on CPUs, where devices share the cores.

    The matmul is in the compute dtype. The bandwidth is that of adding a number to a large array: one read and one
    write of each byte.
    """
    flops = measure_matmul(mesh, dtype)
    device, kind, count = _one_device(mesh)
    array = jax.device_put(np.zeros(_BYTES[kind] // 4, np.float32), device)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    holder = [array]

    def read_and_write() -> jax.Array:
        holder[0] = add(holder[0])
        return holder[0]

    traffic = 2 * _BYTES[kind] / min(time_runs(read_and_write, _REPEATS))
    return Limits(flops_per_second=flops, bytes_per_second=count * traffic)


def measure_matmul(mesh: Mesh, dtype: str) -> float:
    """FLOPs per second of a large matmul in this dtype, on all devices of the mesh together."""
    device, kind, count = _one_device(mesh)
    size = _LARGE[kind]
    square = jax.device_put(np.sin(np.arange(size * size, dtype=np.float32)).reshape(size, size), device).astype(dtype)
    matmul = jax.jit(lambda a, b: a @ b)
    return count * 2 * size**3 / min(time_runs(lambda: matmul(square, square), _REPEATS))


@functools.cache
def peak_of_run(config: ExperimentConfig) -> float | None:
    """`measure_matmul` on the devices of a run and in its compute dtype, measured once. None if memory is short."""
    mesh = make_mesh(config.mesh)
    _, compute = dtypes(config.model, mesh)
    try:
        return measure_matmul(mesh, compute.name)
    except jax.errors.JaxRuntimeError:
        return None


def _one_device(mesh: Mesh) -> tuple[jax.Device, str, int]:
    """(the device to measure, its kind in the tables above, by how much its speed is multiplied)."""
    device = mesh.devices.flat[0]
    kind = "cpu" if device.platform == "cpu" else "other"
    return device, kind, 1 if kind == "cpu" else mesh.size


def size_of(tree: object) -> int:
    """The bytes of all arrays in a tree."""
    return sum(jnp.size(leaf) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
