"""The table of a grid's cells."""

import dataclasses

import pytest
from rich.console import Console

from mft_jax.config import Cell, ExperimentConfig
from mft_jax.metrics.ledger import Cost
from mft_jax.report.grid_table import render_grid, time_left
from mft_jax.runs.grid_status import CellStatus, GridStatus
from mft_jax.runs.survey import StageStatus
from tests.report.made import result

STAGE = StageStatus("debate (untuned)", 4, 4, "questions", Cost(new_tokens=1500, wall_seconds=60), is_done=True)
LEFT = dataclasses.replace(STAGE, done=1, cost=Cost(), is_done=False)


def cell(name):
    return Cell(name=name, method="base", model="", task="", override="", config=ExperimentConfig())


def shown(status):
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render_grid(status), soft_wrap=True)
    return capture.get()


def test_the_table_of_all_cells():
    cells = (
        CellStatus(cell=cell("one"), state="finished", results=(result(), result(method="other")), stages=(STAGE,)),
        CellStatus(cell=cell("two"), state="interrupted", stages=(STAGE, LEFT), copied=frozenset({STAGE.name})),
        CellStatus(cell=cell("three"), state="failed", error="No [such] file."),
        CellStatus(cell=cell("four"), state="left"),
    )
    text = shown(GridStatus(path="runs/g", cells=cells, seconds_left=7800.0, is_whole=True))
    assert "runs/g: 1 of 4 cells are done; 1 failed; time left: about 2 h 10 min." in text
    assert "three failed: No [such] file." in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip() and "failed:" not in line}
    assert rows["one"][1:] == ["done", "0", "54.0", "±", "3.5", "67", "1,234.6"]
    assert rows["two"][1:3] == ["interrupted", "1/2"]
    assert rows["three"][1] == "failed"
    assert rows["four"][1:] == ["left", "-", "-", "-", "-"]
    assert rows["all,"][-3:] == ["1.5", "k", "60.0"]  # the copied stage counts once
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_means_over_seeds():
    """With the standard error over the seeds; a setting with one finished seed has none."""
    accuracies = {"a": (0.5, 0.6, 0.7), "b": (0.4,)}
    cells = [
        CellStatus(
            cell=dataclasses.replace(cell(f"base-{override}-{seed}"), override=override),
            state="finished",
            results=(result(accuracy=value),),
        )
        for override, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    cells.append(CellStatus(cell=dataclasses.replace(cell("base-b-1"), override="b"), state="left"))
    text = shown(GridStatus(path="g", cells=tuple(cells), seconds_left=1.0, is_whole=True))
    rows = [line.split() for line in text.splitlines() if "base-a " in line or "base-b " in line]
    assert rows == [["base-a", "3", "60.0", "±", "5.8"]]  # 0.1 / sqrt(3)


@pytest.mark.parametrize(
    ("seconds", "is_whole", "words"),
    [(None, False, "unknown"), (0.0, True, "about 1 min"), (100.0, False, "more than 2 min"), (3600.0, True, "about 1 h 0 min")],
)  # fmt: skip
def test_the_time_that_is_left(seconds, is_whole, words):
    assert time_left(seconds, is_whole) == words
