import dataclasses
import re

import pytest
from rich.console import Console

from mft_jax.report.table import comparisons_table, costs_table, render_results, results_table, short_count
from tests.report.made import COMPARISON, LEDGER, TUNED, result


def shown(results, title=None, width=120):
    """The lines of the table of accuracies that are not empty."""
    return lines_of(results_table(results, title), width)


def lines_of(table, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return [line.strip() for line in capture.get().splitlines() if line.strip() and "─" not in line]


def rows(results):
    above, *rows = shown(results)
    assert above.split() == ["accuracy", "prompt", "new"]
    return [re.split(r"\s{2,}", row) for row in rows]


def test_a_row_per_result():
    assert rows([result(), result(**TUNED)]) == [
        ["method", "iter.", "%", "tokens", "tokens", "seconds", "diversity"],
        ["base", "0", "54.0 ± 3.5", "12.3 k", "67", "1,234.6", "-"],
        ["multiagent_ft", "2", "72.0 ± 3.5", "12.3 k", "67", "1,234.6", "0.25"],
    ]


def test_several_tasks_get_a_column():
    _, header, _, last = shown([result(), result(**TUNED, task="gsm8k")])
    assert header.split()[1] == "task"
    assert last.split()[:2] == ["multiagent_ft", "gsm8k"]


@pytest.mark.parametrize(
    "others",
    [
        [result(method="single_agent_ft_no_debate"), result(method="multiagent_ft_no_summary")],
        [result(**TUNED, task="arithmetic"), result(**TUNED, task="addition")],
    ],
)
def test_no_cell_is_broken_on_a_terminal_of_80_columns(others):
    large = {"prompt_tokens": 123_456, "new_tokens": 123_456, "accuracy": 1.0, "stderr": 0.25, "wall_seconds": 12345.6}
    results = [dataclasses.replace(one, **large) for one in others]
    lines = shown(results, width=80)
    assert len(lines) == 2 + len(results)
    for one, line in zip(results, lines[2:], strict=True):
        assert line.startswith(one.method)
        assert "100.0 ± 25.0 123 k 123 k 12,345.6" in re.sub(r" +", " ", line)


def test_questions_without_answers_have_no_accuracy():
    row = rows([result(**(TUNED | {"accuracy": None, "stderr": None}))])[-1]
    assert row == ["multiagent_ft", "2", "-", "12.3 k", "67", "1,234.6", "0.25"]


def test_what_was_lost_stands_below_the_table():
    lost = [result(cut=1000), result(**TUNED, cut=200, unanswered=1, grading_timeouts=0)]
    assert shown(lost)[-1] == "1,200 answers were cut by a limit; 1 turn had no room in the model's context."
    lost = [result(cut=1, unanswered=2, grading_timeouts=3)]
    assert shown(lost, width=200)[-2:] != shown([result()], width=200)[-2:]
    assert " ".join(shown(lost)[-2:]).endswith(
        "1 answer was cut by a limit; 2 turns had no room in the model's context; "
        "3 comparisons of answers ran out of time."
    )


def test_names_are_shown_literally():
    name = "[bold]mine[/] :smile: \x1b[31m"
    lines = shown([result(method=name), result(task="[/]")], title=f"{name}, 3 questions")
    assert lines[0] == "[bold]mine[/] :smile: , 3 questions"
    assert lines[-2].startswith("[bold]mine[/] :smile: ")
    assert lines[-1].split()[:2] == ["base", "[/]"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (94_200, "94.2 k"), (999_499, "999 k"), (999_999, "1 M"),
     (1_110_000, "1.11 M"), (2 * 10**9, "2 G"), (3 * 10**12, "3 T"), (45 * 10**14, "4.5 P"), (6 * 10**19, "60 E")],
)  # fmt: skip
def test_counts_are_short(count, text):
    assert short_count(count) == text


def test_the_costs_at_test_time_and_in_all():
    old, new = result(), result(**TUNED, ledger=LEDGER)
    title, *_, row, caption, more = lines_of(costs_table([old, new]))
    assert (title, caption[:5]) == ("cost", "test:")
    assert more.endswith("up to this one.")
    assert re.sub(r" +", " ", row) == "multiagent_ft 2 5 T 3 P 2 M 812 94.2 k 100.0 3 GB"


def test_the_comparisons_with_the_first_method():
    title, *_, row, caption = lines_of(comparisons_table([result(), result(**TUNED, comparison=COMPARISON)]))
    assert title == "compared with base on the same questions"
    assert re.sub(r" +", " ", row) == "multiagent_ft 2 +18.0 +10.5 to +25.5 50 14 7e-06 0.014"
    assert "(Holm)" in caption


def test_tables_without_rows_are_left_out():
    all_lines = lines_of(render_results([result(), result(**TUNED, ledger=LEDGER, comparison=COMPARISON)], "held out"))
    titles = ["held out", "cost", "compared with base on the same questions"]
    assert [line for line in all_lines if line in titles] == titles
    assert lines_of(render_results([result()], "held out")) == shown([result()], "held out", 80)
