"""Memory: the most that was used, and how the C library's allocator keeps freed memory for the next compiled call."""

import ctypes
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `mft --help` imports this module, but not JAX
    import jax
    from jax.sharding import Mesh

# Parameters of glibc's mallopt (malloc.h), and their values in bytes (arenas: a count).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_SETTINGS = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 1 << 28, _ARENA_MAX: 1}


def keep_freed_memory() -> bool:
    """Stops glibc from returning freed memory to the kernel after every compiled call.

    With small pages, page faults took a fifth of the time of a training step on CPUs on one machine; on another, and with
    huge pages, it gained nothing (docs/performance.md). It affects the whole process: call it at the start of a
    program, not in a library. Returns False if the C library does not support the settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items())


def peak_memory(mesh: "Mesh") -> int:
    """The most memory in use so far, in bytes: of this process on CPUs, of its fullest device elsewhere. 0: unknown."""
    return peak_memory_of(mesh.local_devices)


def peak_memory_of(devices: "Sequence[jax.Device]") -> int:
    """As `peak_memory`, of these devices of this process."""
    if devices[0].platform == "cpu":
        status = pathlib.Path("/proc/self/status")
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return int(found[1]) * 1024 if found else 0
    stats = [device.memory_stats() or {} for device in devices]
    return max(own.get("peak_bytes_in_use", 0) for own in stats)
