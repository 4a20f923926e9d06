"""docs/gpu.md: the job for Slurm asks to be started again after a preemption, and only then; the SkyPilot part is valid."""

import os
import re
import subprocess

import pytest
import yaml

from mft_jax.arguments import read_arguments
from mft_jax.signals import START_AGAIN
from tests.tpu_scripts.conftest import SCRIPTS

ROOT = SCRIPTS.parent
DOCUMENT = (ROOT / "docs/gpu.md").read_text()


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize(("code", "asks"), [(0, ""), (1, ""), (START_AGAIN, "requeue 7_2\n")])
def test_slurm(tmp_path, monkeypatch, code, asks):
    for name, text in {"srun": f'echo "$@" >>srun.log; exit {code}', "scontrol": 'echo "$@" >>scontrol.log'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RUNS": "/shared/runs",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "2",
    }
    done = subprocess.run(["bash", "-eu", "-c", block("bash")], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code
    asked = tmp_path / "scontrol.log"
    assert (asked.read_text() if asked.exists() else "") == asks
    monkeypatch.chdir(ROOT)
    mft, *words = (tmp_path / "srun.log").read_text().split()
    settings = read_arguments(words).settings
    assert (mft, settings.seed, settings.run_dir, settings.mesh.model) == ("mft", 2, "/shared/runs/llama3-2", 4)


def test_skypilot():
    own, whole = yaml.safe_load(block("yaml")), yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text())
    assert set(own) == {"resources", "setup"} < set(whole)
    assert own["resources"]["job_recovery"] == whole["resources"]["job_recovery"]
    assert "mft-venv/bin/python -e '.[cuda12]'" in own["setup"]
    assert "$HOME/mft-venv/bin/mft" in (SCRIPTS / "worker_run.sh").read_text()
