"""The estimate of the time that a grid still needs."""

import dataclasses

import pytest

from mft_jax.config import Cell, DebateConfig, ExperimentConfig, TaskConfig
from mft_jax.metrics.ledger import Cost
from mft_jax.runs.grid_status import CellStatus, estimate_seconds_left, own_stages
from mft_jax.runs.survey import StageStatus

CONFIG = ExperimentConfig(
    task=TaskConfig(train_questions=10, eval_questions=20), debate=DebateConfig(agents=2, rounds=2), baselines=()
)
DEBATE, TUNING, EVALUATION = "iteration 1: debate", "iteration 1: finetuning", "iteration 1: evaluation"
TEXTS = 6  # per question: two agents, two rounds, two summaries


def cell(name, method="multiagent_ft", task="", **changes):
    config = dataclasses.replace(CONFIG, method=method, **changes)
    return Cell(name=name, method=method, model="", task=task, override="", config=config)


def stage(name, total, seconds=0.0, done=None):
    done = total if done is None else done
    return StageStatus(name, done, total, "questions", Cost(wall_seconds=seconds), is_done=done == total)


def finished(of, debate=60.0, tuning=80.0, evaluation=120.0):
    stages = (stage(DEBATE, 10, debate), stage(TUNING, 7, tuning), stage(EVALUATION, 20, evaluation))
    return CellStatus(cell=of, state="finished", stages=stages)


def left(of, *stages):
    return CellStatus(cell=of, state="interrupted" if stages else "left", stages=stages)


def test_nothing_is_known_before_a_stage_is_finished():
    assert estimate_seconds_left([left(cell("a"))]) == (None, False)
    assert estimate_seconds_left([finished(cell("a"))]) == (0.0, True)


def test_a_stage_takes_as_long_per_text_as_the_finished_ones():
    one, two = cell("one", seed=0), cell("two", seed=1)
    # 60 + 120 s for (10 + 20) x 6 texts: 1 s per text. 80 s for 10 questions x 2 epochs x 4 adapters: 1 s per example.
    assert estimate_seconds_left([finished(one), left(two)]) == (10 * TEXTS + 80 + 20 * TEXTS, True)
    half = stage(EVALUATION, 20, 30.0, done=5)
    status = left(two, stage(DEBATE, 10, 60.0), stage(TUNING, 7, 80.0), half)
    assert estimate_seconds_left([finished(one), status]) == (0.75 * 20 * TEXTS, True)


def test_an_untuned_debate_that_cells_share_counts_once():
    cells = [cell(name, method, seed=3) for name, method in (("a", "multiagent_ft"), ("b", "multiagent_ft_no_critic"))]
    other = cell("c", seed=4)
    seconds = lambda *names: estimate_seconds_left([finished(cell("done")), *map(left, names)])[0]
    tuning = [80.0, 40.0]  # half as many adapters
    assert seconds(*cells) == pytest.approx(sum(tuning) + 2 * 20 * TEXTS + 10 * TEXTS)
    assert seconds(*cells, other) == pytest.approx(sum(tuning) + 80 + 3 * 20 * TEXTS + 2 * 10 * TEXTS)
    # And not at all once one of them has it; a copied stage says nothing about speed.
    copy = CellStatus(
        cell=cells[0], state="interrupted", stages=(stage(DEBATE, 10, 9999.0),), copied=frozenset({DEBATE})
    )
    found = estimate_seconds_left([finished(cell("done")), copy, left(cells[1])])[0]
    assert found == pytest.approx(sum(tuning) + 2 * 20 * TEXTS)


def test_the_speed_is_that_of_the_same_task_if_it_is_known():
    """Twice as slow on sums; there only the debates are measured, so the finetuning is that of the other task."""
    statuses = [
        finished(cell("a", task="arithmetic")),
        left(cell("b", task="sums", seed=1), stage(DEBATE, 10, 120.0)),
        left(cell("c", task="sums", seed=2)),
    ]
    assert estimate_seconds_left(statuses) == (80 + 2 * 20 * TEXTS + 2 * 10 * TEXTS + 80 + 2 * 20 * TEXTS, True)


def test_a_kind_of_stage_without_any_measurement_makes_the_estimate_a_lower_bound():
    statuses = [left(cell("a"), stage(DEBATE, 10, 60.0))]
    assert estimate_seconds_left(statuses) == (20 * TEXTS, False)


def test_an_untuned_cell_has_no_iterations():
    """And a cell keeps all others of its stages, also those that the estimate does not know."""
    untuned = (stage("debate (untuned)", 20), stage("debate: nll", 20))
    tuned = (stage(DEBATE, 10), stage("iteration 1: nll", 20))
    assert own_stages(cell("a", "debate"), (*untuned, *tuned)) == untuned
    assert own_stages(cell("b", "multiagent_ft"), tuned) == tuned
