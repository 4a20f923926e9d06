"""Devices of a CPU: as many as the mesh needs, counted once in a process."""

import os
import subprocess
import sys

import jax
import pytest

from mft_jax.config import MeshConfig
from mft_jax.errors import UserError
from mft_jax.parallel.mesh import make_mesh, split_cpu

ASK = """
import os, sys
import jax
from mft_jax.config import MeshConfig
from mft_jax.parallel.mesh import make_mesh, split_cpu

if hasattr(os, "sched_setaffinity") and sys.argv[2:]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if sys.argv[1] == "auto":
    split_cpu(MeshConfig(auto=True))
    print(len(jax.devices()))
else:
    print(make_mesh(MeshConfig(data=int(sys.argv[1]))).size, len(jax.devices()))
"""


def asked(*arguments: str, **environment: str) -> str:
    """What a new process prints that was not told how many devices its CPU has."""
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    command = [sys.executable, "-c", ASK, *arguments]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=120)
    return done.stdout.strip() or done.stderr


def test_a_mesh_gets_the_devices_that_it_needs():
    assert asked("3") == "3 3"
    assert asked("1") == "1 1"


def test_a_number_of_devices_that_jax_was_told():
    assert asked("2", XLA_FLAGS="--xla_force_host_platform_device_count=4") == "2 4"
    assert "needs 2 devices, but there are 1" in asked("2", JAX_NUM_CPU_DEVICES="1")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot say which cores a process may use")
def test_a_mesh_that_is_chosen_later_gets_two_devices_for_two_cores():
    assert asked("auto") == str(min(2, len(os.sched_getaffinity(0))))
    assert asked("auto", "one core") == "1"


def test_devices_that_jax_has_counted_stay():
    """In this process it has."""
    split_cpu(MeshConfig(data=8))
    assert len(jax.devices()) == 4
    with pytest.raises(UserError, match="needs 8 devices, but there are 4"):
        make_mesh(MeshConfig(data=8))
