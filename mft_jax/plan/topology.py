"""The devices to plan for: those of a TPU slice that is not attached, or the present ones."""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Generator, Sequence
from typing import Any

from mft_jax.errors import UserError
from mft_jax.plan.chips import CHIPS, SLICES, Slice

HERE = "here"  # the name of the present devices

# Without these variables libtpu asks the network and the file system of a TPU machine for what the topology's name says,
# complains about each answer that it does not get, and does not let a second process load it.
_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare_environment(topology: str) -> None:
    """For a slice, which is not attached, makes JAX run on the CPU. Call it before JAX is imported."""
    if topology != HERE:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.update(_SETTINGS)


def find_slice(topology: str) -> Slice:
    """The slice with this name, such as v5e-8. Raises UserError, which lists the slices that exist, for another name."""
    if topology not in SLICES:
        raise UserError(f"There is no topology {topology!r}. {describe_slices()} {HERE}: the present devices.")
    return SLICES[topology]


def describe_slices() -> str:
    """The names of all slices, in a sentence for each version."""
    parts = []
    for chip in CHIPS:
        names = ", ".join(name for name, own in SLICES.items() if own.chip is chip)
        counted = "the number counts chips" if chip.name_counts == 1 else "the number counts cores, two a chip"
        parts.append(f"{chip.name}: {names} ({counted}).")
    return " ".join(parts)


def slice_devices(chosen: Slice) -> Sequence[Any]:
    """The devices of a slice, one a chip, which programs can be compiled for but not run on.

    Raises UserError if libtpu, which contains the compiler, is not installed or cannot be used.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "Planning for a TPU needs its compiler, libtpu, but no TPU: install it with pip install 'mft_jax[tpu]', or in a "
            "checkout of the repository with pip install -e '.[tpu]'."
        )
    from jax.experimental import topologies

    arrangement = chosen.chip.slices[chosen.count]
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if chosen.count == 1 else {}
    try:
        with silent_stderr():
            found = topologies.get_topology_desc(
                topology_name=f"{chosen.chip.name}:{arrangement}", platform="tpu", **bounds
            )
    except Exception as error:  # JAX and libtpu raise several kinds
        raise UserError(
            f"The TPU compiler cannot be used ({' '.join(str(error).split())[:300]}): install the libtpu that fits this "
            "version of JAX with pip install -U 'jax[tpu]'."
        ) from error
    return found.devices


@contextlib.contextmanager
def silent_stderr() -> Generator[None]:
    """Discards what libtpu and XLA write to the standard error of the process in a block, and what Python writes there too."""
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
