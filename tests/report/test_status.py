from rich.console import Console

from mft_jax.metrics.ledger import Cost
from mft_jax.report.status import render_status
from tests.report.made import COST, result, stage, status


def shown(state):
    """The lines that `mft status` prints on a terminal of the usual width."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render_status(state), soft_wrap=True)
    return [line.strip() for line in capture.get().splitlines() if line.strip() and "─" not in line]


def test_what_is_done_what_is_left_and_what_it_cost():
    stages = (
        stage("base (untuned)", 200, 200),
        stage("iteration 1: finetuning", 30, 1250, "steps"),
        stage("iteration 1: evaluation", 0, 600, cost=Cost()),
        stage("iteration 2: finetuning", 0, None, "steps", cost=Cost()),
    )
    lines = shown(status(stages=stages, results=[result()], state="interrupted"))
    assert lines[:2] == [
        "runs/mine: interrupted, started 2026-01-01T10:00:00",
        "1 of 4 stages are done. The same `mft run` command resumes the run.",
    ]
    table = [line.split() for line in lines[4:9]]
    numbers = ["2", "M", "812", "94.2", "k", "3", "P", "60.5"]
    assert table[0] == ["base", "(untuned)", "200/200", "questions", *numbers]
    assert table[1] == ["iteration", "1:", "finetuning", "30/1,250", "steps", *numbers]
    assert table[2] == ["iteration", "1:", "evaluation", "0/600", "questions", "0", "0", "0", "0", "0.0"]
    assert table[3][:4] == ["iteration", "2:", "finetuning", "0/?"]  # its training sets are not made yet
    assert table[4] == ["all", "4", "M", "1.62", "k", "188", "k", "6", "P", "121.0"]
    assert lines[9] == "results so far"
    assert lines[-1].split()[:2] == ["base", "0"]


def test_a_finished_run():
    state = status(
        state="finished", finished="2026-01-01T11:00:00", stages=(stage("base (untuned)", 9, 9),), results=[result()]
    )
    lines = shown(state)
    assert lines[:2] == [
        "runs/mine: finished, started 2026-01-01T10:00:00, finished 2026-01-01T11:00:00",
        "1 of 1 stages are done.",
    ]
    assert "results" in lines


def test_finetuning_without_training_examples_is_done_after_no_step():
    stages = (stage("iteration 1: finetuning", 0, 0, "steps", cost=Cost()),)
    lines = shown(status(stages=stages))
    assert lines[1] == "1 of 1 stages are done."
    assert any(line.startswith("iteration 1: finetuning 0/0 steps") for line in lines)


def test_a_failed_run_says_why():
    lines = shown(status(state="failed", error="UserError: no space left", stages=(stage("debate", 0, 9),)))
    assert lines[1] == "It stopped with: UserError: no space left"
    assert lines[2].endswith("The same `mft run` command resumes the run.")


def test_what_is_damaged_is_said():
    problems = ("iteration_1/eval.jsonl [/] is damaged: start the run again.", "results.json is damaged.")
    assert shown(status(problems=problems)) == ["runs/mine: running, started 2026-01-01T10:00:00", *problems]


def test_a_run_without_anything_yet():
    assert shown(status(started=None)) == ["runs/mine: running"]


def test_foreign_text_is_shown_literally():
    path = "/tmp/" + "long" * 30 + "[/] :smile:"
    state = status(path=path, error="[bold]broken[/]\x1b[2J", stages=(stage("[/red] debate", 1, 2, cost=COST),))
    lines = shown(state)
    assert lines[0].startswith(f"{path}: running")
    assert lines[1] == "It stopped with: [bold]broken[/]"
    assert any(line.startswith("[/red] debate") for line in lines)
