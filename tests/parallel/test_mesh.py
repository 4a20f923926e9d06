"""Devices of a CPU: as many as the mesh needs, counted once in a process."""

import json
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

if sys.argv[1] == "auto":
    os.sched_getaffinity = lambda pid: set(range(int(sys.argv[2])))  # the cores that this process may use
    split_cpu(MeshConfig(auto=True))
    print(len(jax.devices()))
else:
    print(make_mesh(MeshConfig(data=int(sys.argv[1]))).size, len(jax.devices()))
"""


def in_new_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=120)


def asked(*arguments: str, **environment: str) -> str:
    """What ASK prints in a process that was not told how many devices its CPU has."""
    done = in_new_process("-c", ASK, *arguments, **environment)
    return done.stdout.strip() or done.stderr


def test_a_mesh_gets_the_devices_that_it_needs():
    assert asked("3") == "3 3"
    assert asked("1") == "1 1"


def test_a_number_of_devices_that_jax_was_told():
    assert asked("2", XLA_FLAGS="--xla_force_host_platform_device_count=4") == "2 4"
    assert "needs 2 devices, but there are 1" in asked("2", JAX_NUM_CPU_DEVICES="1")


def test_a_mesh_that_is_chosen_later_gets_two_devices_for_two_cores():
    assert asked("auto", "1") == "1"
    assert asked("auto", "3") == "2"


def test_a_run_splits_the_cpu_before_it_counts_its_devices(tmp_path):
    """Its manifest records the devices."""
    options = {
        "method": "base", "baselines": [], "mesh": {"data": 2}, "task": {"train_questions": 1, "eval_questions": 2},
        "sampling": {"rows": 2, "prefill_rows": 2, "max_new_tokens": 2, "chunk_questions": 2},
        "run_dir": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(options))  # which is YAML
    done = in_new_process("-m", "mft_jax", "run", str(tmp_path / "run.yaml"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["starts"][0]["devices"]["kinds"] == {"cpu": 2}


def test_devices_that_jax_has_counted_stay():
    """In this process it has."""
    split_cpu(MeshConfig(data=8))
    assert len(jax.devices()) == 4
    with pytest.raises(UserError, match="needs 8 devices, but there are 4"):
        make_mesh(MeshConfig(data=8))
