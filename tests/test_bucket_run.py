"""Whole runs in a bucket: the same command, the same bytes."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import mft_jax.grid
import mft_jax.setup
from mft_jax.ask import _find_run as find_run
from mft_jax.config import load_grid, to_yaml
from mft_jax.errors import UserError
from mft_jax.experiment import run
from mft_jax.grid import plan_cells, run_grid
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.feedback import add_verdicts
from mft_jax.runs.grid_directory import GridDirectory, is_grid
from mft_jax.runs.store import Store, to_path
from tests.runs.object_store import copy, files_of
from tests.small_run import SMALL, Remarks, run_files
from tests.test_grid import write_grid

pytestmark = pytest.mark.gcs


# `mft`, which stops after it has written an object of this name: a small stage is over before its chunks can be seen.
STOPPING = """
import os, signal, sys
from mft_jax.cli import main
from mft_jax.runs.store import Store
name, write = sys.argv.pop(1), Store.write
def write_and_stop(self, own, data):
    write(self, own, data)
    if own == name:
        os.kill(os.getpid(), signal.SIGSTOP)
Store.write = write_and_stop
main()
"""


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_and_run_again_gives_the_bytes_of_a_local_one(
    bucket, finished, answering, tmp_path, mft
):
    config = tmp_path / "small.yaml"
    config.write_text(to_yaml(SMALL))
    directory = RunDirectory(f"{bucket}/run")
    midway = [f"{layout.debate(1).removesuffix('.jsonl')}.chunks/000004.jsonl", f"{layout.checkpoint(1)}/1"]
    for name in midway:
        command = [sys.executable, "-c", STOPPING, name, "run", str(config), "--run-dir", f"{bucket}/run"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            while not directory.store.exists(name):
                assert process.poll() is None, process.stdout.read().decode()
                time.sleep(0.05)
            with pytest.raises(UserError, match=f"in use by the process with pid {process.pid} on"):
                directory.store.hold()
            os.kill(process.pid, signal.SIGKILL)
        assert not directory.is_finished
    code, out, err = mft("status", f"{bucket}/run")
    assert (code, err) == (0, "")
    assert f"{bucket}/run: interrupted" in out
    remarks = Remarks()
    results = run(dataclasses.replace(SMALL, run_dir=f"{bucket}/run"), remarks, answering)
    assert f"Resuming the run in {bucket}/run." in remarks.said
    assert [result.accuracy for result in results] == [result.accuracy for result in finished[1]]
    local = RunDirectory(copy(directory.store, Store(tmp_path / "copy")).root)
    assert run_files(local) == run_files(finished[0])
    assert directory.store.read(layout.REPORT).startswith(b"<!doctype html>")

    # The other commands read it there.
    for arguments in (("status",), ("table",), ("report", "--out", tmp_path / "report.html")):
        code, out, err = mft(arguments[0], f"{bucket}/run", *arguments[1:])
        assert (code, err) == (0, ""), arguments
    code, out, err = mft("run", config, "--run-dir", f"{bucket}/run")
    assert (code, "is finished; nothing to do" in out) == (0, True)
    assert not directory.store.is_held()


@pytest.fixture
def uploaded(bucket, finished):
    """A finished run in the bucket."""
    return copy(finished[0].store, Store(f"{bucket}/finished"))


def test_the_commands_on_a_finished_run_give_what_they_give_on_a_local_one(
    uploaded, finished, answering, tmp_path, mft, monkeypatch
):
    monkeypatch.setattr(mft_jax.setup, "open_session", lambda *source: answering)
    copied = tmp_path / "local"
    shutil.copytree(finished[0].path, copied)

    def both(command, *arguments):
        """What the command prints, and the files that it writes to OUT, for the run in the bucket and for the local one."""
        found = []
        for path in (uploaded.root, copied):
            target = tmp_path / "out"
            code, said, err = mft(command, path, *(target if own == "OUT" else own for own in arguments))
            assert (code, err) == (0, ""), (command, said)
            files = {str(file.relative_to(target)): file for file in target.rglob("*") if file.is_file()}
            found.append((said.replace(str(path), "RUN"), {name: file.read_bytes() for name, file in files.items()}))
            shutil.rmtree(target, ignore_errors=True)
        return found

    for kind in ("peft", "merged", "chat-jsonl"):
        remote, own = both("export", "OUT", "--to", kind)
        assert remote[1].keys() == own[1].keys() != set()
        assert [name for name in own[1] if remote[1][name] != own[1][name]] == []
    remote, own = both("plots", "-o", "OUT")
    assert remote[1].keys() == own[1].keys() != set()
    remote, own = both("table", "--against", "debate", "--answers")
    assert remote == own
    both("eval", "--task", "addition", "--eval-questions", "4")
    files = [name for name in files_of(uploaded, "evaluations") if name.endswith("eval.jsonl")]
    assert [uploaded.read(name) for name in files] == [(copied / name).read_bytes() for name in files] != []


def test_what_needs_a_local_directory_says_so(bucket, tmp_path, mft):
    directory = RunDirectory(f"{bucket}/run")
    config = dataclasses.replace(SMALL, run_dir=f"{bucket}/run")
    tracked = dataclasses.replace(config, logging=dataclasses.replace(config.logging, tensorboard=True))
    with pytest.raises(
        UserError, match=f"^{bucket}/run is in a bucket, but logging.tensorboard needs a local directory"
    ):
        run(tracked)
    with pytest.raises(
        UserError, match=r"is in a bucket, but adding verdicts needs a local directory: copy it to one\.$"
    ):
        add_verdicts(directory.store, [], "arithmetic")
    assert directory.store.names() == []
    directory.take(config)
    directory.create(config)
    directory.release()
    code, _, err = mft("report", f"{bucket}/run", "--serve")
    assert (code, err) == (1, f"mft: {bucket}/run is in a bucket, but mft report --serve needs a local directory: copy it "
                              "to one.\n")  # fmt: skip
    code, _, err = mft("status", f"{bucket}/none")
    assert (code, err) == (1, f"mft: {bucket}/none is not a run: it has no config.yaml; give the directory of a run.\n")


def test_a_grid_in_a_bucket_lists_its_cells_and_finds_what_they_have(bucket, tmp_path, mft):
    file = tmp_path / "grid.yaml"
    file.write_text(f"run_dir: {bucket}/grid\ngrid:\n  methods: [majority]\n  seeds: [3, 4]\n")
    cells = plan_cells(load_grid(file))
    assert [cell.config.run_dir for cell in cells] == [f"{bucket}/grid/majority-seed_{seed}" for seed in (3, 4)]
    grid = GridDirectory(f"{bucket}/grid")
    assert not is_grid(grid.path)
    grid.take(cells)
    with pytest.raises(UserError, match=f"{bucket}/grid is in use by the process with pid {os.getpid()} on "):
        GridDirectory(grid.path).take(cells)
    grid.write(cells, {})
    run_directory = grid.run(cells[1])
    run_directory.take(cells[1].config)
    run_directory.create(cells[1].config)
    run_directory.release()
    grid.release()
    assert is_grid(f"{bucket}/grid/")
    assert grid.read() == (list(cells), {})
    assert GridDirectory(f"{bucket}/grid").started() == [cells[1]]
    code, out, err = mft("status", f"{bucket}/grid")
    assert (code, err) == (0, "")
    assert f"{bucket}/grid: 0 of 2 cells are done" in out


def test_a_grid_in_a_bucket_gives_the_bytes_of_a_local_one(bucket, tmp_path, mft, answering, monkeypatch):
    """Run, with equal debates copied inside the bucket; run again; evaluated on another task; a table and a report."""
    monkeypatch.setattr(mft_jax.grid, "open_session", lambda *source: answering)
    folders = {f"{bucket}/grid": "remote", str(tmp_path / "grid"): "local"}
    axes = {"methods": ["majority", "majority@2"], "seeds": [3, 4]}
    said: dict[str, list[str]] = {}
    for folder, name in folders.items():
        (tmp_path / name).mkdir()
        file, remarks = write_grid(tmp_path / name, axes, run_dir=folder), Remarks()
        status = run_grid(load_grid(file), remarks)
        assert [own.state for own in status.cells] == ["finished"] * 4
        assert sum("which has equal inputs" in line for line in remarks.said) == 2
        again = Remarks()
        run_grid(load_grid(file), again)
        assert again.said == []
        code, _, err = mft("eval", folder, "--task", "addition", "--eval-questions", "3")
        assert (code, err) == (0, "")
        code, table, err = mft("table", folder)
        assert (code, err) == (0, "")
        said[name] = [table]
    assert said["remote"] == said["local"]
    remote, local = (Store(to_path(folder)) for folder in folders)
    names = [name for name in files_of(local) if name.endswith(("eval.jsonl", "questions.json"))]
    assert len(names) == 4 * 4  # of each cell: questions and answers, of the run and of the evaluation
    assert [name for name in names if remote.read(name) != local.read(name)] == []
    assert remote.read(layout.REPORT).startswith(b"<!doctype html>")


def test_a_directory_in_a_bucket_is_taken_as_a_local_one_is(bucket):
    config = dataclasses.replace(SMALL, run_dir=f"{bucket}/run")
    first, second = RunDirectory(config.run_dir), RunDirectory(config.run_dir)
    assert (first.take(config), first.exists) == ("new", False)
    first.create(config)
    with pytest.raises(UserError, match=f"{bucket}/run is in use by the process with pid {os.getpid()} on "):
        second.take(config)
    first.stop("failed", "for a test")
    with pytest.raises(UserError, match=f"{bucket}/run holds a run of another configuration: seed is 0 there, 1 given"):
        second.take(dataclasses.replace(config, seed=1))
    assert second.take(config) == "resumed"
    second.release()
    assert (second.config(), str(second.path)) == (config, f"{bucket}/run")
    assert find_run(f"{bucket}/run").path == second.path
    Store(f"{bucket}/full").write("a", b"")
    with pytest.raises(UserError, match=f"{bucket}/full is not empty and not a run"):
        RunDirectory(f"{bucket}/full").take(config)
