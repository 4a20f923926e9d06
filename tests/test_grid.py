"""Grids of a few small runs: what they share, how they are resumed, and cells that fail."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

import mft_jax.grid
from mft_jax import cli
from mft_jax.config import TaskConfig, load_grid, to_dict
from mft_jax.errors import UserError
from mft_jax.grid import plan_cells, run_grid
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.grid_status import read_grid_status
from mft_jax.runs.outcomes import read_outcomes
from mft_jax.sampling import Sampler
from tests.small_run import SMALL, Remarks, run_files

SHARED = to_dict(dataclasses.replace(SMALL, task=TaskConfig(train_questions=1, eval_questions=8)))
for name in ("method", "baselines", "run_dir"):
    del SHARED[name]
# Untuned methods, so that nothing is trained; majority@2 is majority, because there are two agents.
AXES = {
    "methods": ["majority", "majority@2", "debate"],
    "overrides": {"plain": None, "hot": {"methods": ["debate"], "sampling": {"temperature": 2.0}}},
}
CELLS = ["majority-plain", "majority@2-plain", "debate-plain", "debate-hot"]


def write_grid(folder, axes=AXES, **settings):
    path = folder / "grid.yaml"
    content = SHARED | {"run_dir": str(folder / "grid")} | settings | {"grid": axes}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def opened(answering):
    """The sessions that grids open: the one that all tests share, instead of one that is loaded again."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mft_jax.grid, "open_session", lambda *source: asked.append(source) or answering)
        yield asked


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, opened):
    """A finished grid: (its folder, its status, the statuses shown before, the remarks, the number of sampled texts)."""
    folder, shown, remarks, sampled = tmp_path_factory.mktemp("grid"), [], Remarks(), []
    sample = Sampler.sample

    def count(self, requests, *rest, **options):
        sampled.append(len(requests))
        return sample(self, requests, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "sample", count)
        status = run_grid(load_grid(write_grid(folder)), remarks, shown.append)
    return folder, status, shown, remarks.said, sum(sampled)


def test_a_grid_runs_its_cells_in_one_session_and_samples_equal_debates_once(undisturbed, opened):
    folder, status, (before,), said, sampled = undisturbed
    assert opened == [(SMALL.model, SMALL.mesh)]
    assert [(cell.cell.name, cell.state) for cell in before.cells] == [(name, "left") for name in CELLS]
    assert before.seconds_left is None
    assert [(cell.cell.name, cell.state) for cell in status.cells] == [(name, "finished") for name in CELLS]
    assert status.seconds_left == 0
    # Of eight questions: two answers, and in each of two debates two agents in two rounds with two summaries.
    assert sampled == 8 * (2 + 6 + 6)
    votes = [folder / "grid" / name / f"baselines/{name[:-6]}/eval.jsonl" for name in CELLS[:2]]
    assert votes[0].read_bytes() == votes[1].read_bytes()
    assert [remark for remark in said if "copied" in remark] == [
        f"majority@2 (untuned): copied from {votes[0]}, which has equal inputs."
    ]


def test_a_shared_stage_counts_for_each_method_and_once_for_the_grid(undisturbed):
    _, status, *_ = undisturbed
    (original,), (copy,) = (cell.results for cell in status.cells[:2])
    assert (original.new_tokens, original.wall_seconds) == (copy.new_tokens, copy.wall_seconds)
    assert [cell.copied for cell in status.cells] == [set(), {"majority@2 (untuned)"}, set(), set()]
    separately = sum(result.new_tokens for cell in status.cells for result in cell.results)
    assert status.cost.new_tokens == separately - copy.new_tokens
    assert copy.new_tokens > 0


def test_every_cell_is_an_ordinary_run(undisturbed):
    folder, status, *_ = undisturbed
    for cell in status.cells:
        directory = RunDirectory(folder / "grid" / cell.cell.name)
        assert directory.is_finished
        assert directory.config() == cell.cell.config
        assert [result.method for result in cell.results] == [cell.cell.method]
    read = read_grid_status(folder / "grid")
    assert dataclasses.replace(read, path="") == dataclasses.replace(status, path="")


@pytest.mark.slow
def test_a_killed_grid_ends_with_the_bytes_of_an_undisturbed_one(undisturbed, opened, tmp_path, capsys, monkeypatch):
    path = write_grid(tmp_path)
    midway = tmp_path / "grid" / CELLS[2] / "baselines/debate/eval.chunks/000000.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "mft_jax", "run", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not midway.exists():
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    status = read_grid_status(tmp_path / "grid")
    assert [cell.state for cell in status.cells] == ["finished", "finished", "interrupted", "left"]
    assert status.seconds_left > 0
    monkeypatch.setattr(sys, "argv", ["mft", "run", str(path)])
    cli.main()
    shown = capsys.readouterr().out
    assert "2 of 4 cells are done; time left: about 1 min." in shown
    assert "4 of 4 cells are done." in shown
    assert f"Resuming the run in {tmp_path / 'grid' / CELLS[2]}." in shown
    assert f"Cell {CELLS[0]}" not in shown
    for name in CELLS:
        killed, whole = (RunDirectory(folder / "grid" / name) for folder in (tmp_path, undisturbed[0]))
        assert run_files(killed, iterations=0) == run_files(whole, iterations=0)


def test_a_failed_cell_does_not_stop_the_others(tmp_path, opened, capsys, monkeypatch):
    """The table and the exit code say so, and the next start runs it again."""
    missing = tmp_path / "own.jsonl"
    tasks = {
        "jsonl": {"task": {"train_path": str(missing), "train_questions": 1, "eval_questions": 1}},
        "arithmetic": None,
    }
    path = write_grid(tmp_path, {"methods": ["base"], "tasks": tasks})
    monkeypatch.setattr(sys, "argv", ["mft", "run", str(path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert "1 of 2 cells are done; 1 failed; time left: " in out
    assert "base-jsonl failed: " in out
    assert str(missing) in out
    assert "1 of 2 cells failed (base-jsonl): correct what is named above" in err
    monkeypatch.setattr(sys, "argv", ["mft", "status", str(tmp_path / "grid")])
    cli.main()
    assert "base-jsonl failed: " in capsys.readouterr().out
    missing.write_text("".join(json.dumps({"question": f"What is 1+2*{i}+3-1*2?"}) + "\n" for i in range(2)))
    remarks = Remarks()
    status = run_grid(load_grid(path), remarks)
    assert [cell.state for cell in status.cells] == ["finished", "finished"]
    assert remarks.said == ["Cell base-jsonl:"]
    assert json.loads((tmp_path / "grid/grid.json").read_text())["cells"][0]["error"] is None


def test_a_damaged_cell_is_repaired(undisturbed, opened, tmp_path):
    """It is copied again from the cell that it was copied from."""
    shutil.copytree(undisturbed[0] / "grid", tmp_path / "grid")
    file = tmp_path / "grid" / CELLS[1] / "baselines/majority@2/eval.jsonl"
    before = file.read_bytes()
    file.write_bytes(before.replace(b"1", b"2", 1))
    remarks = Remarks()
    run_grid(load_grid(write_grid(tmp_path)), remarks)
    assert file.read_bytes() == before
    assert [remark for remark in remarks.said if remark.startswith("Cell")] == [f"Cell {CELLS[1]}:"]


def test_changed_settings_are_refused_before_anything_is_run(undisturbed, tmp_path):
    folder = undisturbed[0]
    written = (folder / "grid/grid.json").read_bytes()
    hotter = load_grid(
        write_grid(tmp_path, run_dir=str(folder / "grid"), sampling=SHARED["sampling"] | {"temperature": 3.0})
    )
    with pytest.raises(
        UserError, match=r"majority-plain was run with sampling\.temperature = 1\.0, but the grid has 3\.0"
    ):
        run_grid(hotter)
    assert (folder / "grid/grid.json").read_bytes() == written


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"methods": ["multagent_ft"]}, r"cell multagent_ft: Unknown method .* did you mean 'multiagent_ft'\?"),
        ({"methods": ["multiagent_ft", "ttrl"]}, r"cell multiagent_ft: The baseline majority@debate needs the cost"),
        ({"methods": ["base"], "tasks": ["aritmetic"]}, r"There is no task .* did you mean 'arithmetic'\?"),
    ],
)
def test_unknown_names_are_refused_and_nothing_is_written(tmp_path, axes, message):
    with pytest.raises(UserError, match=message):
        run_grid(load_grid(write_grid(tmp_path, axes, baselines=["majority@debate"])))
    assert not (tmp_path / "grid").exists()


def test_directories_that_are_refused(finished, undisturbed, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    for path, message in (
        (finished[0].path, "is a run, expected a grid"),
        (tmp_path / "full", r"is not empty and not a grid \(it holds notes.txt"),
    ):
        with pytest.raises(UserError, match=message):
            run_grid(load_grid(write_grid(tmp_path, run_dir=str(path))))
    with pytest.raises(UserError, match=r"grid is not empty and not a run"):
        mft_jax.run(dataclasses.replace(SMALL, run_dir=str(undisturbed[0] / "grid")))


def test_the_finished_cells_of_a_grid_are_evaluated_on_other_questions(
    undisturbed, tmp_path, opened, capsys, monkeypatch
):  # fmt: skip
    """Untuned methods too. A cell that is not finished is left out, and one that fails does not stop the others."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "copy")
    grid = folder / "grid"
    run = json.loads((grid / "majority@2-plain" / "run.json").read_text())
    (grid / "majority@2-plain" / "run.json").write_text(json.dumps(run | {"status": "interrupted"}))
    (grid / "debate-hot" / "evaluations").write_text("in the way")
    monkeypatch.setattr(sys, "argv", ["mft", "eval", str(grid), "--task", "addition", "--eval-questions", "3"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    shown = capsys.readouterr()
    assert "not finished, and left out: majority@2-plain." in shown.out
    assert "1 of 3 finished cells could not be evaluated: debate-hot." in " ".join(shown.err.split())
    rows = [line.split() for line in shown.out.splitlines() if line.split()[1:2] == ["addition"]]
    assert [(row[0], row[2]) for row in rows] == [("majority-plain", "0"), ("debate-plain", "0")]
    lines = (grid / "debate-plain/evaluations/addition/baselines/debate/eval.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["agents"]) for line in lines] == [2, 2, 2]
    found = [(own.result.method, own.result.n) for own in read_outcomes([grid]) if own.result.task == "addition"]
    assert found == [("majority", 3), ("debate", 3)]
    (grid / "debate-hot" / "evaluations").unlink()
    cli.main()
    shown = capsys.readouterr().out
    assert "debate-hot" in shown
    assert "accuracy" in shown
    for cell in ("majority-plain", "debate-plain", "debate-hot"):
        shutil.rmtree(grid / cell / "evaluations")
        (grid / cell / "evaluations").write_text("in the way")
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    shown = capsys.readouterr()
    assert "3 of 3 finished cells could not be evaluated" in " ".join(shown.err.split())
    assert "accuracy" not in shown.out  # no table without rows
    for cell in CELLS:
        (grid / cell / "run.json").write_text(json.dumps(run | {"status": "interrupted"}))
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert "is a grid without a finished cell" in " ".join(capsys.readouterr().err.split())


def test_an_untuned_method_is_evaluated_as_its_own_baseline(tmp_path):
    axes, found = {"methods": ["debate", "multiagent_ft"]}, []
    for baselines in ((), ("base",)):
        cells = plan_cells(load_grid(write_grid(tmp_path, axes, baselines=list(baselines))))
        found.append([(cell.config.method, cell.config.baselines) for cell in cells])
    assert found == [
        [("debate", ("debate",)), ("multiagent_ft", ())], [("debate", ("debate",)), ("multiagent_ft", ("base",))]
    ]  # fmt: skip


def test_the_table_of_a_grid(undisturbed, capsys, monkeypatch):
    """Cells with equal answers of a method are one row, and those with other settings have the label of the override."""
    folder, *_ = undisturbed
    monkeypatch.setattr(sys, "argv", ["mft", "table", str(folder / "grid"), "--against", "majority"])
    cli.main()
    headings, _, *rows = [line.strip("| \n").split(" | ") for line in capsys.readouterr().out.splitlines()]
    names = {(row[0], row[1]) for row in rows}
    assert headings[:3] == ["method", "setting", "accuracy, %"]
    assert names == {("majority", "plain"), ("majority@2", "plain"), ("debate", "plain"), ("debate", "hot")}
    assert [row[4] for row in rows if row[0] == "majority@2"] == ["0 : 0"]  # it has the same answers


def test_outcomes_of_several_directories_are_told_apart_by_their_names(undisturbed):
    """Unless they are the same answers at the same cost, such as those of cells with the same baselines."""
    folder, *_ = undisturbed
    debates = [folder / "grid" / name for name in ("debate-plain", "debate-hot")]
    labels = lambda *paths: [(own.result.method, own.label) for own in read_outcomes(paths)]
    assert labels(debates[0]) == [("debate", "")]
    assert labels(*debates) == [("debate", str(path)) for path in debates]
    assert labels(folder / "grid", debates[0])[:3] == [
        ("majority", f"{folder / 'grid'}, plain"), ("majority@2", f"{folder / 'grid'}, plain"), ("debate", "")
    ]  # fmt: skip
