"""The limits of the present devices: matmul throughput and memory bandwidth."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mft_jax.bench.measurement import Limits, time_runs

_REPEATS = 7
_LARGE = {"cpu": 1024, "other": 8192}  # size of the square matrices: large enough to reach the peak
_BYTES = {"cpu": 1 << 28, "other": 1 << 31}  # larger than the caches


def measure_limits(mesh: Mesh, dtype: str) -> Limits:
    """Measures one device of the mesh and multiplies by their number. On CPUs all devices share the same cores.

    The matmul is in the compute dtype. The bandwidth is that of adding a number to a large array: one read and one
    write of each byte.
    """
    device = mesh.devices.flat[0]
    kind = "cpu" if device.platform == "cpu" else "other"
    count = 1 if kind == "cpu" else mesh.size
    size = _LARGE[kind]
    square = jax.device_put(np.sin(np.arange(size * size, dtype=np.float32)).reshape(size, size), device).astype(dtype)
    matmul = jax.jit(lambda a, b: a @ b)
    flops = 2 * size**3 / min(time_runs(lambda: matmul(square, square), _REPEATS))
    array = jax.device_put(np.zeros(_BYTES[kind] // 4, np.float32), device)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    holder = [array]

    def read_and_write() -> jax.Array:
        holder[0] = add(holder[0])
        return holder[0]

    traffic = 2 * _BYTES[kind] / min(time_runs(read_and_write, _REPEATS))
    return Limits(flops_per_second=count * flops, bytes_per_second=count * traffic)


def size_of(tree: object) -> int:
    """The bytes of all arrays in a tree."""
    return sum(jnp.size(leaf) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
