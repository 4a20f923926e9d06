"""Markdown tables of the outcomes of several runs: means over seeds, costs, and paired comparisons."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mft_jax.errors import UserError
from mft_jax.report.table import NOT_MEASURED, short_count, short_p

if TYPE_CHECKING:  # importing these modules takes seconds
    from mft_jax.metrics.statistics import PairedTest
    from mft_jax.metrics.vote_curve import VotePoint
    from mft_jax.runs.outcomes import Outcome
    from mft_jax.runs.results import Result


@dataclasses.dataclass(frozen=True)
class _Row:
    """One method after one iteration, with the outcome of each seed."""

    task: str
    label: str
    method: str
    iteration: int
    outcomes: "list[Outcome]"

    @property
    def results(self) -> "list[Result]":
        return [own.result for own in self.outcomes]


_Column = tuple[str, Callable[[_Row], str]]  # its heading, and its cell in a row


def markdown_table(
    outcomes: "Sequence[Outcome]",
    *,
    against: str | None = None,
    answers: bool = False,
    last: bool = False,
    equal_cost: bool = False,
    diversity: bool = False,
) -> str:
    """A table with one row per method, iteration and label, averaged over seeds, in the order of the outcomes.

    Accuracies are in percent, with the standard error of their mean, which comes from the number of questions and not from
    the spread over seeds. `against` names the method that the others are compared with on the same questions: all seeds
    together, by the exact McNemar test, corrected by Holm's method for all rows. A finetuned method is compared with the
    same iteration of `against`, or, if there is none, with `against` without finetuning. `answers` adds what happened to
    the answers in a debate. `last` leaves out all iterations but the last of each method. `equal_cost` adds the majority
    vote over as many answers of the base model as cost as much as the row, training included; its accuracy is the mean
    over all choices of so many answers from the baseline of the same seed with the most answers. `diversity` adds how much
    the agents differ: one minus the consensus, and the measures of `metrics.diversity`. Raises UserError if there is no
    result of `against`, or no such baseline at all.
    """
    rows = _rows(outcomes)
    if last:
        final = {(row.task, row.label, row.method): row.iteration for row in rows}  # later rows replace earlier ones
        rows = [row for row in rows if final[row.task, row.label, row.method] == row.iteration]
    columns = [*_name_columns(rows), ("accuracy, %", _accuracy)]
    lines = [[cell(row) for _, cell in columns] for row in rows]
    headings = [name for name, _ in columns]
    if against is not None:
        headings += [f"against {against}, points", f"only this : only {against}", "p (Holm)"]
        lines = [line + cells for line, cells in zip(lines, _comparisons(rows, outcomes, against), strict=True)]
    more: list[_Column] = [("FLOPs of an answer", _test_flops), ("FLOPs with training", _all_flops)]
    if equal_cost:
        more.append(("vote at this cost", _vote_at_equal_cost(outcomes)))
    if answers:
        more += [(name, _mean_of(read)) for name, read in _ANSWERS]
    if diversity:
        more += [(name, _mean_of(_diversity(key), scale, digits)) for name, key, scale, digits in _DIVERSITY]
    headings += [name for name, _ in more]
    lines = [line + [cell(row) for _, cell in more] for line, row in zip(lines, rows, strict=True)]
    ruler = ["---" if name in ("method", "task", "setting") else "---:" for name in headings]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, ruler, *lines))


def _rows(outcomes: "Sequence[Outcome]") -> list[_Row]:
    rows: dict[tuple, _Row] = {}
    for own in outcomes:
        result = own.result
        key = (result.task, own.label, result.method, result.iteration)
        rows.setdefault(key, _Row(*key, [])).outcomes.append(own)
    return list(rows.values())


def _name_columns(rows: Sequence[_Row]) -> list[_Column]:
    """The columns that name a row; those in which all rows would be equal are left out, except for the method."""
    columns: list[_Column] = [("method", lambda row: _escape(row.method))]
    if len({row.task for row in rows}) > 1:
        columns.append(("task", lambda row: _escape(row.task)))
    if any(row.label for row in rows):
        columns.append(("setting", lambda row: _escape(row.label)))
    if any(row.iteration for row in rows):
        columns.append(("iteration", lambda row: str(row.iteration)))
    if max(len(row.outcomes) for row in rows) > 1:
        columns.append(("seeds", lambda row: str(len(row.outcomes))))
    return columns


def _accuracy(row: _Row) -> str:
    known = [(own.accuracy, own.stderr or 0.0) for own in row.results if own.accuracy is not None]
    if not known:
        return NOT_MEASURED
    mean = statistics.mean(accuracy for accuracy, _ in known)
    error = math.sqrt(sum(stderr**2 for _, stderr in known)) / len(known)
    each = f" ({', '.join(f'{100 * accuracy:.1f}' for accuracy, _ in known)})" if len(known) > 1 else ""
    return f"{100 * mean:.1f} ± {100 * error:.1f}{each}"


def _test_flops(row: _Row) -> str:
    costs = [own.ledger.evaluation.flops / own.n for own in row.results if own.ledger]
    return short_count(round(statistics.mean(costs))) if costs else NOT_MEASURED


def _all_flops(row: _Row) -> str:
    costs = [own.ledger.cumulative.flops for own in row.results if own.ledger]
    return short_count(round(statistics.mean(costs))) if costs else NOT_MEASURED


def _vote_at_equal_cost(outcomes: "Sequence[Outcome]") -> Callable[[_Row], str]:
    """A column: accuracy and number k of answers of the vote whose cost is nearest to that of a row with training.

    "k > 81" says that the row costs more than a vote over 81 answers, the largest of the runs, whose accuracy is given.
    """
    curves: dict[tuple[int, str], tuple[VotePoint, ...]] = {}
    for own in outcomes:
        curve, key = own.result.vote_curve or (), (own.seed, own.result.task)
        if not own.result.iteration and len(curve) > len(curves.get(key, ())):
            curves[key] = curve
    if not curves:
        raise UserError(
            "No run has a vote of the base model to compare costs with: add a baseline such as majority@27 and run it."
        )

    def cell(row: _Row) -> str:
        found = []
        for own in row.outcomes:
            curve = curves.get((own.seed, row.task))
            if curve and own.result.ledger:
                spent = own.result.ledger.cumulative.flops
                near = min(curve, key=lambda point: abs(point.flops - spent))
                found.append((near.accuracy, near.k, spent > curve[-1].flops + curve[0].flops / 2))
        if not found:
            return NOT_MEASURED
        accuracy, k = (statistics.mean(own[i] for own in found) for i in (0, 1))
        return f"{100 * accuracy:.1f} (k {'>' if any(own[2] for own in found) else '='} {k:.0f})"

    return cell


def _mean_of(read: "Callable[[Result], float | None]", scale: float = 100, digits: int = 1) -> Callable[[_Row], str]:
    def cell(row: _Row) -> str:
        values = [value for value in map(read, row.results) if value is not None]
        return f"{scale * statistics.mean(values):.{digits}f}" if values else NOT_MEASURED

    return cell


def _diversity(key: str) -> "Callable[[Result], float | None]":
    return lambda result: result.diversity.get(key) if result.diversity else None


def _share_changed(kind: str) -> "Callable[[Result], float | None]":
    """The share of all agents' answers that changed in later rounds: "wrong_to_right" or "right_to_wrong"."""

    def read(result: "Result") -> float | None:
        if result.answers is None or not result.answers.transitions:
            return None
        changes = result.answers.transitions
        total = sum(own.wrong_to_right + own.right_to_wrong + own.kept_right + own.kept_wrong for own in changes)
        return sum(getattr(own, kind) for own in changes) / total if total else None

    return read


_ANSWERS: "tuple[tuple[str, Callable[[Result], float | None]], ...]" = (
    ("first vote, %", lambda result: result.answers.vote_accuracy[0] if result.answers else None),
    ("last vote, %", lambda result: result.answers.vote_accuracy[-1] if result.answers else None),
    ("best of agents, %", lambda result: result.answers.best_of_agents if result.answers else None),
    ("wrong to right, %", _share_changed("wrong_to_right")),
    ("right to wrong, %", _share_changed("right_to_wrong")),
    ("labels right, %", lambda result: result.training_vote.precision if result.training_vote else None),
)


# Heading, name in results.json, and how the number is shown. Divergences and likelihoods are in nats per token.
_DIVERSITY = (
    ("1 - consensus, %", "diversity", 100, 1),
    ("NLL, nats", "nll", 1, 4),
    ("embedding", "embedding", 1, 4),
    ("KL, nats", "kl", 1, 4),
    ("KL to base, nats", "kl_to_base", 1, 4),
)


def _comparisons(rows: Sequence[_Row], outcomes: "Sequence[Outcome]", against: str) -> list[list[str]]:
    """For each row: the difference in points, the questions that only one of the two answers correctly, and the p value."""
    from mft_jax.metrics.statistics import holm

    if not any(own.result.method == against for own in outcomes):
        names = ", ".join(dict.fromkeys(own.result.method for own in outcomes))
        raise UserError(f"There is no result of the method {against} to compare with: choose one of {names}.")
    tests = [None if row.method == against else _pooled_test(row, outcomes, against) for row in rows]
    corrected = iter(holm([test.p_value for test in tests if test]))
    return [
        [NOT_MEASURED] * 3
        if test is None
        else [f"{100 * test.difference:+.1f}", f"{test.only_first} : {test.only_second}", short_p(next(corrected))]
        for test in tests
    ]


def _pooled_test(row: _Row, outcomes: "Sequence[Outcome]", against: str) -> "PairedTest | None":
    """The paired test over the questions of all seeds that the other method was evaluated on too; None without any."""
    from mft_jax.metrics.statistics import paired_test

    pairs = [
        (bool(own.correct[question]), bool(other.correct[question]))
        for own in row.outcomes
        if (other := _partner(own, outcomes, against)) is not None
        for question in own.correct
        if own.correct[question] is not None and other.correct.get(question) is not None
    ]
    return paired_test([first for first, _ in pairs], [second for _, second in pairs]) if pairs else None


def _partner(own: "Outcome", outcomes: "Sequence[Outcome]", against: str) -> "Outcome | None":
    """The outcome of `against` for the same seed and task: of the same iteration and label, if there is one."""
    others = [
        one
        for one in outcomes
        if (one.result.method, one.seed, one.result.task) == (against, own.seed, own.result.task)
    ]
    nearness = lambda one: (one.result.iteration == own.result.iteration, one.label == own.label)
    usable = [one for one in others if one.result.iteration in (0, own.result.iteration)]
    return max(usable, key=nearness, default=None)


def _escape(text: str) -> str:
    """The text as the content of a Markdown table's cell."""
    return (
        text.replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("\n", " ")
        .replace("*", "\\*")
        .replace("`", "\\`")
        .replace("<", "\\<")
    )
