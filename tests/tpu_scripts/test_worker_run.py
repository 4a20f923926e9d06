"""The part that runs on the TPU's machine: it keeps a copy of the run in the bucket, and continues from it elsewhere."""

import os
import signal
import subprocess
import time

import pytest

from mft_jax.signals import START_AGAIN
from tests.tpu_scripts.conftest import SCRIPTS

# A run that writes a line a start, and ends as the file `end` of its directory says, or waits for SIGTERM.
MFT = f"""#!/usr/bin/env bash
[[ $1 == run && $3 == --run-dir ]] || exit 2
trap 'echo saved >"$4/saved"; exit {START_AGAIN}' TERM
mkdir -p "$4/iteration_1/.half.tmp" "$HOME/.cache/mft_jax/compiled"
echo "$(cat "$HOME/.cache/mft_jax/compiled/program" 2>/dev/null)compiled" >"$HOME/.cache/mft_jax/compiled/program"
mkdir -p "$4/iteration_1/.half.tmp" "$4/iteration_1/2.orbax-checkpoint-tmp-1"
echo lock >"$4/run.lock"
echo "iterations: 1" >"$4/config.yaml"
echo "$5 $6" >>"$4/starts"
echo partial >"$4/iteration_1/.half.tmp/part"
[[ ! -f $4/end ]] || exit "$(cat "$4/end")"
while true; do sleep 0.01; done
"""


@pytest.fixture
def worker(cloud, tmp_path):
    """A function that starts the worker's script on a machine with this home directory."""
    mft = tmp_path / "mft"
    mft.write_text(MFT)
    mft.chmod(0o755)
    cloud.run.mkdir(parents=True)
    (cloud.run / "config.yaml").write_text("iterations: 1\n")

    def start(home="machine"):
        (tmp_path / home).mkdir(exist_ok=True)
        (tmp_path / home / "mft-run.env").write_text(
            'declare -- STORE="gs://my-bucket/mine"\ndeclare -- RUN_NAME="mine"\ndeclare -- SYNC_SECONDS="0.05"\n'
            'declare -a OPTIONS=([0]="--iterations" [1]="2")\n'
        )
        return subprocess.Popen(
            ["bash", SCRIPTS / "worker_run.sh"],
            env=cloud.environment | {"HOME": str(tmp_path / home), "MFT": str(mft)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    return start


def wait_for(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status_of(cloud):
    path = cloud.run / "status"
    return path.read_text().split()[:2] if path.exists() else None


def test_a_stopped_run_is_continued_on_another_machine(cloud, worker):
    copy = cloud.run / "run"
    process = worker()
    wait_for(process, lambda: status_of(cloud) == ["running", "0"])
    assert (copy / "starts").read_text() == "--iterations 2\n"
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == START_AGAIN, said
    assert status_of(cloud) == ["stopped", str(START_AGAIN)]
    assert sorted(path.name for path in copy.rglob("*")) == [
        "config.yaml",
        "saved",
        "starts",
    ]  # nothing half written, and no lock
    (copy / "end").write_text("0\n")
    process = worker("another machine")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert status_of(cloud) == ["stopped", "0"]
    assert (copy / "starts").read_text() == "--iterations 2\n" * 2
    assert (cloud.run / "compiled" / "program").read_text() == "compiledcompiled\n"  # the second had that of the first


def test_several_hosts_are_refused(cloud, worker):
    cloud.environment["SKYPILOT_NUM_NODES"] = "4"
    process = worker()
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, cloud.calls()) == (1, [])
    assert said.startswith("There are 4 hosts, but this script runs on one: choose a TPU with one host")


def test_the_exit_code_of_a_failed_run(cloud, worker):
    (cloud.run / "run").mkdir()
    (cloud.run / "run" / "end").write_text("1\n")
    process = worker()
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, status_of(cloud)) == (1, ["stopped", "1"]), said


def test_a_copy_that_cannot_be_read_is_not_overwritten(cloud, worker):
    (cloud.run / "run").mkdir()
    (cloud.run / "run" / "starts").write_text("before\n")
    cloud.fails("storage rsync --quiet --recursive gs://", "HTTPError 403: forbidden")
    process = worker()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "gs://my-bucket/mine cannot be read, so nothing was started" in said
    assert (cloud.run / "run" / "starts").read_text() == "before\n"
    assert status_of(cloud) == ["stopped", "1"]


def test_a_copy_that_fails_is_tried_again(cloud, worker):
    """The configuration is copied first, and once: without it, `mft run` would refuse the rest of a first copy."""
    cloud.fails("delete-unmatched", "HTTPError 503: unavailable", times=2)
    process = worker()
    wait_for(process, lambda: cloud.calls("storage rsync --quiet --recursive --delete"))
    assert (cloud.run / "run" / "config.yaml").read_text() == "iterations: 1\n"
    wait_for(process, lambda: status_of(cloud) == ["running", "0"])
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert len([call for call in cloud.calls("storage cp") if call.endswith("mine/run/config.yaml")]) == 1
    assert said.count("The run could not be copied to gs://my-bucket/mine; the next try is in 0.05 seconds.") == 2
    assert process.returncode == START_AGAIN


def test_a_second_start_changes_nothing(cloud, worker, tmp_path):
    process = worker()
    wait_for(process, lambda: (cloud.run / "run" / "starts").exists())
    second = worker()
    assert second.communicate(timeout=60)[0] == "The run mine is running already.\n"
    detached = subprocess.run(
        ["bash", SCRIPTS / "worker_run.sh", "--detach"],
        env=cloud.environment | {"HOME": str(tmp_path / "machine")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (detached.returncode, "is running already on" in detached.stdout) == (0, True)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert (cloud.run / "run" / "starts").read_text() == "--iterations 2\n"
