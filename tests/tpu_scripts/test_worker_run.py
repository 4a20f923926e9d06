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


# The part of one host, which tells the machine what it was given, and waits for SIGTERM.
OF_SEVERAL = f"""#!/usr/bin/env bash
trap 'exit {START_AGAIN}' TERM
echo "$*, $JAX_COMPILATION_CACHE_DIR" >"$HOME/given"
while true; do sleep 0.01; done
"""
# The metadata of a machine, whose number is in its home directory.
CURL = """#!/usr/bin/env bash
[[ ${*: -1} == */instance/attributes/agent-worker-number && -f $HOME/number ]] && cat "$HOME/number"
"""


@pytest.fixture
def several(cloud, worker, tmp_path):
    """A function that starts the worker's script on machine 0, 1, ... of a TPU with several hosts."""
    (tmp_path / "mft").write_text(OF_SEVERAL)
    (tmp_path / "curl").write_text(CURL)
    (tmp_path / "curl").chmod(0o755)
    cloud.environment |= {"PATH": f"{tmp_path}:{cloud.environment['PATH']}", "SEVERAL_HOSTS": "yes"}

    def start(number):
        log = tmp_path / f"machine {number}" / "mft-runs" / "mine" / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"log of {number}\n")
        (tmp_path / f"machine {number}" / "number").write_text(str(number))
        return worker(f"machine {number}")

    return start


def test_several_hosts_work_in_the_bucket_and_the_first_reports(cloud, several, tmp_path):
    hosts = [several(number) for number in (0, 1)]
    for number, host in enumerate(hosts):
        given = tmp_path / f"machine {number}" / "given"
        wait_for(host, given.exists)
        options = "--run-dir gs://my-bucket/mine/run --distributed --iterations 2, gs://my-bucket/mine/compiled\n"
        wait_for(host, lambda given=given, options=options: given.read_text().endswith(options))
    wait_for(hosts[0], lambda: status_of(cloud) == ["running", "0"])
    for host, status in ((hosts[1], "running 0"), (hosts[0], f"stopped {START_AGAIN}")):
        os.kill(host.pid, signal.SIGTERM)
        assert (host.communicate(timeout=60)[0], host.returncode) == ("", START_AGAIN)
        assert " ".join(status_of(cloud)) == status
    assert sorted(path.name for path in cloud.run.iterdir()) == ["config.yaml", "log-1.txt", "log.txt", "status"]
    assert [(cloud.run / name).read_text() for name in ("log.txt", "log-1.txt")] == ["log of 0\n", "log of 1\n"]


def test_a_host_that_ends_last_is_waited_for(cloud, several, tmp_path):
    """It is started again with the others, although its old process still has the lock."""
    host = several(1)
    wait_for(host, (tmp_path / "machine 1" / "given").exists)
    (tmp_path / "machine 1" / "given").unlink()
    again = subprocess.Popen(
        ["bash", SCRIPTS / "worker_run.sh", "--detach"],
        env=cloud.environment | {"HOME": str(tmp_path / "machine 1"), "MFT": str(tmp_path / "mft")},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(0.3)
    os.kill(host.pid, signal.SIGTERM)
    assert "The run mine is starting on " in again.communicate(timeout=60)[0]
    deadline = time.monotonic() + 60
    while not (tmp_path / "machine 1" / "given").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    subprocess.run(["pkill", "-TERM", "-f", f"{tmp_path}/mft run"], check=True)


def test_a_host_without_a_number(several, tmp_path):
    (tmp_path / "curl").write_text("#!/usr/bin/env bash\nexit 22\n")
    host = several(0)
    assert host.communicate(timeout=60)[0].startswith("The number of this worker is not in the metadata of ")
    assert host.returncode == 1


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
