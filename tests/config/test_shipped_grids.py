"""The grids in configs/: each can be planned, and has the cells that its table needs."""

import dataclasses
import pathlib

import pytest

from mft_jax.config import load_config, load_grid
from mft_jax.grid import plan_cells
from mft_jax.methods import METHODS

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CELLS = {
    "paper/main": 6 * 3 * 3 * 3, "paper/iterations": 4 * 3, "paper/ablations": 7 * 3 + 3, "paper/agents": 3 * 4,
    "paper/rounds": 2 * 3, "paper/appendix": 5 * 2, "paper/zero_shot": 5 * 2, "paper/fast": 12,
    "field/methods": 20 * 3 + 2 * 3, "field/sizes": 5 * 3, "field/weights": 4 * 3, "field/iterations": 6 * 3,
    "field/untuned": 6 * 3 + 2 * 3, "field/fast": 10, "field/critics": 10, "field/rates": 4 * 4,
    "field/validation": 6 * 2, "field/smollm2": 16, "field/diversity": 6,
}  # fmt: skip


def cells(name):
    return plan_cells(load_grid(CONFIGS / f"{name}.yaml"))


def test_all_grids_are_known():
    found = [path for path in CONFIGS.rglob("*.yaml") if load_grid(path) is not None]
    assert {str(path.relative_to(CONFIGS).with_suffix("")) for path in found} == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_a_grid_has_its_cells(name):
    found = cells(name)
    assert len(found) == CELLS[name]
    assert load_grid(CONFIGS / f"{name}.yaml").shared.run_dir == f"runs/{name}"
    for cell in found:
        expected = (
            (100, 100)
            if name in ("paper/fast", "field/fast", "field/smollm2")
            else (300, 500)
            if name in ("field/critics", "field/rates")
            else (500, 500)
        )
        assert (cell.config.task.train_questions, cell.config.task.eval_questions) == expected
        assert cell.config.iterations == {
            "paper/iterations": 5,
            "field/iterations": 5,
            "field/diversity": 5,
            "field/critics": 3,
            "field/validation": 3,
        }.get(name, 1)


def test_the_grid_of_a_real_model_has_the_settings_of_its_single_run():
    shared = load_grid(CONFIGS / "field/smollm2.yaml").shared
    single = load_config(CONFIGS / "smollm2_addition.yaml")
    differing = {"run_dir": shared.run_dir, "debate": dataclasses.replace(single.debate, samples=9)}
    assert shared == dataclasses.replace(single, **differing)


def test_the_fast_grids_use_the_model_of_the_package():
    assert all(cell.config.model.path is None for name in ("paper/fast", "field/fast") for cell in cells(name))


def test_every_finetuned_method_is_in_a_grid():
    named = {cell.method for name in ("paper/fast", "field/methods") for cell in cells(name)}
    assert set(METHODS) - named == {"long_answer"}  # a baseline of field/methods


def test_the_high_temperature_control_is_for_one_method():
    hot = [(c.method, c.config.sampling.temperature) for c in cells("paper/ablations") if c.override != "plain"]
    assert hot == [("single_agent_ft", 2.0)] * 3


def test_numbers_of_agents_and_rounds():
    assert {cell.config.debate.agents for cell in cells("paper/agents")} == {2, 3, 5, 8}
    assert {cell.config.debate.rounds for cell in cells("paper/rounds")} == {1, 2, 3}
    sizes = [(cell.config.debate.agents, cell.config.debate.rounds) for cell in cells("field/sizes")]
    assert sorted(set(sizes)) == [(2, 2), (3, 1), (3, 3), (5, 2), (8, 2)]


def test_shares_of_corrected_dialogues():
    mixes = [(c.config.finetuning.critic_rule, c.config.finetuning.critic_mix) for c in cells("field/weights")]
    assert sorted(set(mixes)) == [("share", 0), ("share", 0.5), ("share", 0.6667), ("share", 1)]


def critics_of(cell):
    """How the critics of a cell learn."""
    tuning = cell.config.finetuning
    return tuning.critic_rule, tuning.critic_answers, tuning.critic_support


def test_only_the_paper_grids_train_critics_as_in_the_paper():
    for name in CELLS:
        own = {
            critics_of(cell)
            for cell in cells(name)
            if name not in ("field/critics", "field/validation", "field/weights")
        }
        expected = {("share", "all", 0)} if name.startswith("paper/") else {("all", "last", 0.5)}
        assert own <= expected | ({("share", "all", 0)} if name == "field/methods" else set())


def test_no_table_but_one_asks_validation_questions():
    asked = {name: {cell.config.task.validation for cell in cells(name)} for name in CELLS}
    assert {name for name, values in asked.items() if values != {False}} == {"field/validation"}
    assert {critics_of(cell) for cell in cells("field/validation")} == {
        ("all", "last", 0.5), ("all", "agreeing", 0.5), ("all", "last", 0), ("all", "agreeing", 0), ("all", "all", 0),
        ("share", "all", 0),
    }  # fmt: skip


def test_the_ways_to_mix_the_training_sets_of_critics():
    own = [cell.config.finetuning for cell in cells("field/critics")]
    assert [tuning.critic_mix for tuning in own if tuning.critic_rule == "share"] == [0.5, 0.2, 0.6667, 0, 1]
    assert {tuning.critic_rule for tuning in own} == {"share", "all", "weighted"}
