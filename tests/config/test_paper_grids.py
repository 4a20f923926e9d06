"""The grids in configs/: each can be planned, and has the cells that its table needs."""

import pathlib

import pytest

from mft_jax.config import load_grid
from mft_jax.grid import plan_cells
from mft_jax.methods import METHODS

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CELLS = {
    "main": 5 * 3 * 3 * 3, "iterations": 4 * 3, "ablations": 7 * 3 + 3, "agents": 3 * 4, "rounds": 2 * 3, "appendix": 5 * 2,
    "zero_shot": 2 * 2, "fast": 11,
}  # fmt: skip


def cells(name):
    return plan_cells(load_grid(CONFIGS / f"paper/{name}.yaml"))


def test_there_is_a_grid_for_each_table():
    assert {path.stem for path in CONFIGS.glob("paper/*.yaml")} == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_a_grid_has_its_cells(name):
    found = cells(name)
    assert len(found) == CELLS[name]
    assert load_grid(CONFIGS / f"paper/{name}.yaml").shared.run_dir == f"runs/paper/{name}"
    for cell in found:
        expected = (500, 500) if name != "fast" else (100, 100)
        assert (cell.config.task.train_questions, cell.config.task.eval_questions) == expected
        assert cell.config.iterations == (5 if name == "iterations" else 1)


def test_the_fast_grid_has_all_methods_of_the_paper():
    assert {cell.method for cell in cells("fast")} <= set(METHODS)
    assert all(cell.config.model.path is None for cell in cells("fast"))


def test_the_high_temperature_control_is_for_one_method():
    hot = [(cell.method, cell.config.sampling.temperature) for cell in cells("ablations") if cell.override != "plain"]
    assert hot == [("single_agent_ft", 2.0)] * 3


def test_numbers_of_agents_and_rounds():
    assert {cell.config.debate.agents for cell in cells("agents")} == {2, 3, 5, 8}
    assert {cell.config.debate.rounds for cell in cells("rounds")} == {1, 2, 3}
