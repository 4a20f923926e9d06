"""The most memory that was used."""

import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh


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
