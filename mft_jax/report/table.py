"""The tables of results, which are printed at the end of a run: accuracies, costs, answers, and comparisons."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from mft_jax.report.text import literal

if TYPE_CHECKING:  # importing this module takes seconds
    from mft_jax.runs.results import Result

NOT_MEASURED = "-"
_USUAL_NAME = 13  # characters; with longer method names, the padding is reduced to fit 80 columns


def render_results(results: "Sequence[Result]", title: str | None = None) -> RenderableType:
    """All tables of the results: accuracies, costs, answers, and comparisons. Empty tables are left out."""
    parts: list[RenderableType] = [results_table(results, title)]
    if any(result.ledger for result in results):
        parts += ["", costs_table(results)]
    if any(result.answers for result in results):
        parts += ["", answers_table(results)]
    if any(result.comparison for result in results):
        parts += ["", comparisons_table(results)]
    return Group(*parts)


def results_table(results: "Sequence[Result]", title: str | None = None) -> Table:
    """A table with one row per result, in the given order. It has a task column only if there are several tasks.

    Accuracies are in percent with their standard error, seconds are wall time, and diversity is 1 - consensus. A
    caption counts the answers that were cut, the turns left unanswered, and the comparisons that ran out of time.
    """
    headings = ("accuracy\n%", "prompt\ntokens", "new\ntokens", "seconds", "diversity")
    return _table(results, headings, _cells, title, _caption(results))


def costs_table(results: "Sequence[Result]") -> Table:
    """What each result has cost: at test time, and cumulative, with the training of all its iterations.

    Results without a ledger, which an older version has written, are left out.
    """
    headings = (
        "test\nFLOPs", "all\nFLOPs", "prompt\ntokens", "new\ntokens", "trained\ntokens", "device\nseconds", "memory"
    )  # fmt: skip
    caption = "test: the evaluation alone; all other columns: with the training of all iterations up to this one."
    return _table([result for result in results if result.ledger], headings, _cost_cells, "cost", caption)


def answers_table(results: "Sequence[Result]") -> Table:
    """What happened to the answers: in the debate, and in the votes that the agents were trained on.

    Accuracies are in percent, and changed and missing answers are counted. Results without known answers are left out.
    """
    headings = (
        "first\nvote", "last\nvote", "best of\nagents", "wrong to\nright", "right to\nwrong", "no\nanswer",
        "labels\nright",
    )  # fmt: skip
    caption = (
        "Votes, best of agents and labels in %, all others are numbers of answers. best of agents: questions that at least "
        "one agent answers correctly. labels right: votes on training questions that are right."
    )
    return _table([result for result in results if result.answers], headings, _answer_cells, "answers", caption)


def comparisons_table(results: "Sequence[Result]") -> Table:
    """The difference of each result to the first of its task, with interval and p values.

    Differences are in percentage points of accuracy. Results that were not compared are left out.
    """
    compared = [result for result in results if result.comparison]
    firsts = {result.task: result for result in reversed(results)}
    names = {firsts[result.task].method for result in compared}
    title = f"compared with {names.pop() if len(names) == 1 else 'the first method'} on the same questions"
    caption = "p: exact McNemar test; (Holm): corrected for all tests of the task."
    headings = ("difference\n%", "95 %\ninterval", "only\nthis", "only\nother", "p", "p\n(Holm)")
    return _table(compared, headings, _comparison_cells, title, caption)


def short_count(count: float) -> str:
    """Formats a count in at most seven characters, so that a table fits a terminal: 812, 94.2 k, 1.11 M."""
    for size, unit in ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:  # otherwise 999,999 would be shown as 1e+03 k
            return f"{count / size:.3g} {unit}"
    return str(count)


def percent(share: float) -> str:
    """Formats a share in percent: 7.3 %, 81 %."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _table(
    results: "Sequence[Result]",
    headings: Sequence[str],
    cells: "Callable[[Result], Sequence[str]]",
    title: str | None,
    caption: str,
) -> Table:
    """A table with the names of each result, and its `cells` under `headings`."""
    has_tasks = len({result.task for result in results}) > 1
    is_wide = has_tasks or len(headings) > 5 or any(len(result.method) > _USUAL_NAME for result in results)
    table = Table(
        title=literal(title, "table.title") if title else None,
        caption=literal(caption, "table.caption") if caption else None,
        box=box.SIMPLE_HEAD,
        padding=(0, 0) if is_wide else (0, 1),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    if has_tasks:
        table.add_column("task", no_wrap=True)
    for name in ("iter.", *headings):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        names = [literal(name) for name in (result.method, *([result.task] if has_tasks else []))]
        table.add_row(*names, str(result.iteration), *cells(result))
    return table


def _cells(result: "Result") -> tuple[str, ...]:
    has_accuracy = result.accuracy is not None and result.stderr is not None
    return (
        f"{100 * result.accuracy:.1f} ± {100 * result.stderr:.1f}" if has_accuracy else NOT_MEASURED,
        short_count(result.prompt_tokens),
        short_count(result.new_tokens),
        f"{result.wall_seconds:,.1f}",
        NOT_MEASURED if result.diversity is None else f"{result.diversity['diversity']:.2f}",
    )


def _cost_cells(result: "Result") -> tuple[str, ...]:
    ledger = result.ledger
    assert ledger is not None, "results without a ledger are left out"
    spent = ledger.cumulative
    counts = (ledger.evaluation.flops, spent.flops, spent.prompt_tokens, spent.new_tokens, spent.train_tokens)
    memory = f"{short_count(spent.peak_memory_bytes)}B" if spent.peak_memory_bytes else NOT_MEASURED
    return (*map(short_count, counts), f"{spent.device_seconds:,.1f}", memory)


def _answer_cells(result: "Result") -> tuple[str, ...]:
    found, votes = result.answers, result.training_vote
    assert found is not None, "results without known answers are left out"
    changes = found.transitions
    return (
        f"{100 * found.vote_accuracy[0]:.1f}",
        f"{100 * found.vote_accuracy[-1]:.1f}",
        f"{100 * found.best_of_agents:.1f}",
        str(sum(own.wrong_to_right for own in changes)) if changes else NOT_MEASURED,
        str(sum(own.right_to_wrong for own in changes)) if changes else NOT_MEASURED,
        short_count(result.unparsed + result.cut),
        NOT_MEASURED if votes is None or votes.precision is None else f"{100 * votes.precision:.1f}",
    )


def _comparison_cells(result: "Result") -> tuple[str, ...]:
    found = result.comparison
    assert found is not None, "results that were not compared are left out"
    return (
        f"{100 * found.difference:+.1f}",
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
        str(found.only_this),
        str(found.only_other),
        short_p(found.p_value),
        short_p(found.p_holm),
    )


def short_p(p_value: float) -> str:
    """Formats a p value: 0.25, 0.031, 2e-07."""
    return f"{p_value:.2g}" if p_value >= 0.001 else f"{p_value:.0e}"


def _caption(results: "Sequence[Result]") -> str:
    """The numbers of answers that were cut, unanswered or not graded in all rows; empty if all are 0."""
    kinds = (
        ("cut", "answer was cut by a limit", "answers were cut by a limit"),
        ("unanswered", "turn had no room in the model's context", "turns had no room in the model's context"),
        ("grading_timeouts", "comparison of answers ran out of time", "comparisons of answers ran out of time"),
    )
    totals = [(sum(getattr(result, field) for result in results), *words) for field, *words in kinds]
    parts = [f"{total:,} {one if total == 1 else many}" for total, one, many in totals if total]
    return "; ".join(parts) + "." if parts else ""
