"""A run on two hosts: two processes with two devices each, one of which is killed and stopped, against one with four."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mft_jax.config import MeshConfig, to_yaml
from mft_jax.experiment import restore_society
from mft_jax.methods import make_method
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.store import Store
from mft_jax.session import open_session
from tests.parallel.two_hosts import free_address
from tests.runs.object_store import copy
from tests.small_run import SMALL, adapters_of, lines, run_files

STOPPED = 75  # the exit code that asks to be started again

# The debates agree on some questions. Both axes of the mesh that have two devices are spread over the hosts. There are steps
# enough that some are left after a kill and a stop.
CONFIG = dataclasses.replace(
    SMALL,
    mesh=MeshConfig(agent=2, data=2),
    iterations=1,
    baselines=(),
    task=dataclasses.replace(SMALL.task, train_questions=8, eval_questions=4),
    finetuning=dataclasses.replace(
        SMALL.finetuning,
        generator=dataclasses.replace(SMALL.finetuning.generator, epochs=36),
        critic=dataclasses.replace(SMALL.finetuning.critic, epochs=18),
    ),
)


class Hosts:
    """One start of a run: one process with four devices, or two with two each."""

    def __init__(self, directory, file, count, *options):
        self.directory = directory
        file.write_text(to_yaml(CONFIG))
        command = [sys.executable, "-m", "mft_jax", "run", str(file), "--run-dir", str(directory.store.root), *options]
        address = free_address()
        join = lambda own: ["--coordinator", address, "--processes", str(count), "--process-id", str(own)]
        # XLA has a thread for each of its devices, and splits sums by their number: equal numbers, equal rounding.
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(4 // count), "NPROC": "4"}
        self.processes = [
            subprocess.Popen(
                [*command, *(join(own) if count > 1 else ())],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
            )
            for own in range(count)
        ]  # fmt: skip

    def wait_for_step(self, step):
        """Waits until the run has saved this step of the finetuning, or a later one. Fails if that takes 10 minutes."""
        end = time.monotonic() + 600
        while latest_step(self.directory) < step:
            assert self.processes[0].poll() is None, self.processes[0].stdout.read()
            assert time.monotonic() < end, f"step {step} was not reached"
            time.sleep(0.002)

    def end(self):
        """(exit codes, outputs). Fails if a process hangs."""
        try:
            outputs = [process.communicate(timeout=600)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], outputs


def latest_step(directory):
    """The last saved step of the first finetuning; 0 if there is none."""
    names = [name.rpartition("/")[2] for name in directory.store.names(layout.checkpoint(1))]
    return max((int(name) for name in names if name.isdigit()), default=0)


def assert_finished_alike(directory, other):
    """The bytes of two finished runs are the same, apart from times and memory."""
    files, expected = run_files(directory, 1), run_files(other, 1)
    assert files.keys() == expected.keys()
    assert [name for name in expected if files[name] != expected[name]] == []


def largest_difference(adapters, other):
    """The largest difference of two trees of adapters in any weight."""
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), adapters, other)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of one process, undisturbed."""
    path = tmp_path_factory.mktemp("one_host")
    directory = RunDirectory(path / "run")
    codes, outputs = Hosts(directory, path / "config.yaml", 1).end()
    assert codes == [0], outputs[0]
    return directory


@pytest.mark.slow
def test_a_run_on_two_hosts_that_are_killed_and_stopped_gives_the_same_bytes_as_on_one(whole, tmp_path):
    directory, file = RunDirectory(tmp_path / "two"), tmp_path / "config.yaml"
    total = latest_step(whole)
    assert total >= 12, "there must be steps left after a kill and a stop"
    names = make_method(CONFIG.method, CONFIG).adapters
    for name in names:
        assert lines(whole.path / f"iteration_1/finetune/{name}.jsonl"), "each adapter must learn something"

    hosts = Hosts(directory, file, 2)
    hosts.wait_for_step(1)
    hosts.processes[1].kill()
    codes, outputs = hosts.end()
    assert codes[0] not in (0, STOPPED), outputs[0]
    assert "mft: host 0" in outputs[0]
    killed = latest_step(directory)
    assert 1 <= killed < total
    assert not directory.is_finished

    hosts = Hosts(directory, file, 2)
    hosts.wait_for_step(killed + 1)
    hosts.processes[1].send_signal(signal.SIGTERM)
    codes, outputs = hosts.end()
    assert codes == [STOPPED, STOPPED], "\n".join(outputs)
    assert "Resuming the run in" in outputs[0]
    assert outputs[1].splitlines()[-1] == "mft: terminated; run the same command again to continue."
    assert directory.manifest()["status"] == "interrupted"
    assert killed < latest_step(directory) < total
    moved = RunDirectory(tmp_path / "moved")
    shutil.copytree(directory.path, moved.path)

    codes, outputs = Hosts(directory, file, 2).end()
    assert codes == [0, 0], "\n".join(outputs)
    assert_finished_alike(directory, whole)

    # Its checkpoint fits another mesh, here one that splits the layers, bit for bit.
    session = open_session(CONFIG.model, MeshConfig(data=2, model=2))
    template = session.fresh_society(names, CONFIG.lora, CONFIG.seed)
    society = restore_society(directory.store, layout.checkpoint(1), template)
    assert largest_difference(adapters_of(directory, 1), adapters_of(whole, 1)) == 0
    for index, name in enumerate(names):
        own = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index]), society.adapters.weights)
        assert largest_difference(own, adapters_of(whole, 1)[name]) == 0

    # One process on this mesh finishes what two hosts have begun. It adds up in another order, so it rounds otherwise.
    codes, outputs = Hosts(moved, file, 1, "--mesh.agent", "1", "--mesh.model", "2").end()
    assert codes == [0], outputs[0]
    assert "Resuming the run in" in outputs[0]
    assert largest_difference(adapters_of(moved, 1), adapters_of(whole, 1)) < 1e-5
    for file in ("iteration_1/debate/train.jsonl", *(f"iteration_1/finetune/{name}.jsonl" for name in names)):
        assert (moved.path / file).read_bytes() == (whole.path / file).read_bytes()


@pytest.mark.gcs
@pytest.mark.slow
def test_two_hosts_work_in_a_bucket(whole, bucket, tmp_path):
    """One of them is killed, and both are started again. The copy of the bucket has the bytes of the run of one process."""
    directory, file = RunDirectory(f"{bucket}/two"), tmp_path / "config.yaml"
    hosts = Hosts(directory, file, 2)
    hosts.wait_for_step(1)
    hosts.processes[1].kill()
    codes, outputs = hosts.end()
    assert codes[0] not in (0, STOPPED), outputs[0]
    assert not directory.is_finished
    codes, outputs = Hosts(directory, file, 2).end()
    assert codes == [0, 0], "\n".join(outputs)
    assert "Resuming the run in" in outputs[0]
    assert not directory.store.is_held()
    assert_finished_alike(RunDirectory(copy(directory.store, Store(tmp_path / "copy")).root), whole)
