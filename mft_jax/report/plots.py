"""Plots of results: accuracy against compute, with the majority vote over k answers, and accuracy over iterations."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mft_jax.report.plot_style import REFERENCE, SIZE, encode, looks, style

if TYPE_CHECKING:  # importing these modules takes seconds
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mft_jax.runs.results import Result

_BESIDE = 0.04  # iterations between two points at iteration 0
NO_CURVE = "no majority@k: evaluate the baseline majority for it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A method after an iteration, averaged over runs."""

    method: str
    iteration: int
    accuracy: float  # percent
    stderr: float  # percentage points
    test_flops: float  # per question
    all_flops: float  # with training, for all questions


def make_plots(results: "Sequence[Result]") -> "dict[str, Figure]":
    """The figures of each task by name: TASK_test_compute, TASK_all_compute and TASK_iterations.

    Results of the same method, iteration and task, such as those of runs with different seeds, are averaged. Results
    without an accuracy or a ledger are left out, and so are tasks without results. TASK_iterations is drawn only if a
    method was finetuned.
    """
    figures = {}
    for task in dict.fromkeys(result.task for result in results):
        own = [result for result in results if result.task == task]
        points = average(own)
        if not points:
            continue
        figures[f"{task}_test_compute"] = compute_plot(own, points, task, cumulative=False)
        figures[f"{task}_all_compute"] = compute_plot(own, points, task, cumulative=True)
        if any(point.iteration for point in points):
            figures[f"{task}_iterations"] = iterations_plot(points, task)
    return figures


def encode_plots(results: "Sequence[Result]") -> dict[str, bytes]:
    """The content of the plots by file name, each as SVG and as PNG."""
    figures = make_plots(results)
    return {f"{name}.{kind}": encode(figure, kind) for name, figure in figures.items() for kind in ("svg", "png")}


def average(results: "Sequence[Result]") -> list[Point]:
    """One point for each method and iteration, in the order of the results."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        if result.accuracy is not None and result.ledger is not None:
            groups.setdefault((result.method, result.iteration), []).append(result)
    return [_average(*key, own) for key, own in groups.items()]


def _average(method: str, iteration: int, results: "Sequence[Result]") -> Point:
    count = len(results)
    errors = [result.stderr or 0.0 for result in results]
    ledgers = [(result.n, result.ledger) for result in results if result.ledger]
    return Point(
        method=method,
        iteration=iteration,
        accuracy=100 * sum(result.accuracy or 0.0 for result in results) / count,
        stderr=100 * math.sqrt(sum(error**2 for error in errors)) / count,
        test_flops=sum(ledger.evaluation.flops / n for n, ledger in ledgers) / count,
        all_flops=sum(ledger.cumulative.flops for _, ledger in ledgers) / count,
    )


def compute_plot(results: "Sequence[Result]", points: Sequence[Point], task: str, *, cumulative: bool) -> "Figure":
    """Accuracy against the FLOPs of one answer at test time, or of all training and the evaluation together.

    The iterations of a method are joined by a line and numbered; at test time, only the last one is numbered.
    """
    cost: Callable[[Point], float] = (lambda point: point.all_flops) if cumulative else (lambda point: point.test_flops)
    with style():
        figure, axes = _figure()
        _draw_majority(axes, results, cumulative)
        for method, look in looks(_names(points)).items():
            own = [point for point in points if point.method == method]
            axes.errorbar(
                [cost(point) for point in own], [point.accuracy for point in own], [point.stderr for point in own],
                label=method, markersize=6, linewidth=1.2, **look,
            )  # fmt: skip
            numbered = own if cumulative else own[-1:]  # iterations cost about the same at test time
            for point in numbered if len(own) > 1 else ():
                place = (cost(point), point.accuracy)
                axes.annotate(str(point.iteration), place, xytext=(4, 5), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs with training and evaluation" if cumulative else "FLOPs per question at test time")
        _finish(axes, task)
    return figure


def iterations_plot(points: Sequence[Point], task: str) -> "Figure":
    """Accuracy over iterations. Methods without finetuning are points at iteration 0 with a horizontal line.

    These points are a little beside each other, so that their error bars can be told apart.
    """
    with style():
        figure, axes = _figure()
        untuned = [point.method for point in points if not point.iteration]
        for method, look in looks(_names(points)).items():
            own = [point for point in points if point.method == method]
            if method in untuned:
                axes.axhline(own[0].accuracy, color=look["color"], linestyle="--", linewidth=1, alpha=0.6)
            axes.errorbar(
                [point.iteration or _BESIDE * untuned.index(method) for point in own],
                [point.accuracy for point in own], [point.stderr for point in own],
                label=method, markersize=6, linewidth=1.4, **look,
            )  # fmt: skip
        axes.set_xticks(sorted({point.iteration for point in points}))
        axes.set_xlabel("iteration")
        _finish(axes, task)
    return figure


def _names(points: Sequence[Point]) -> list[str]:
    """The methods in the order of the results, as in the report. They have the same looks in all plots of a task."""
    return list(dict.fromkeys(point.method for point in points))


def _draw_majority(axes: "Axes", results: "Sequence[Result]", cumulative: bool) -> None:
    """The vote over k = 1, 2, ... answers of the base model, from the results with the most answers; the last k is named."""
    curves = [(result.vote_curve, result.n) for result in results if result.vote_curve and not result.iteration]
    most = max((len(curve) for curve, _ in curves), default=0)
    if not most:
        axes.annotate(NO_CURVE, (0.5, 0.02), xycoords="axes fraction", ha="center", fontsize=8)
        return
    same = [(curve, n) for curve, n in curves if len(curve) == most]  # one of each run
    mean = lambda numbers: sum(numbers) / len(same)
    costs = [mean([curve[k].flops / (1 if cumulative else n) for curve, n in same]) for k in range(most)]
    values = [100 * mean([curve[k].accuracy for curve, _ in same]) for k in range(most)]
    errors = [100 * mean([curve[k].stderr ** 2 for curve, _ in same]) ** 0.5 / len(same) ** 0.5 for k in range(most)]
    axes.plot(costs, values, color=REFERENCE, linewidth=1.2, linestyle=":", marker=".", label="majority@k", zorder=1)
    low, high = ([v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(costs, low, high, color=REFERENCE, alpha=0.1, linewidth=0)
    axes.annotate(f"k={most}", (costs[-1], values[-1]), xytext=(3, -10), textcoords="offset points", fontsize=8)


def _figure() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # no pyplot, which would keep the figures and need a display

    figure = Figure(figsize=SIZE)
    return figure, figure.add_subplot()


def _finish(axes: "Axes", task: str) -> None:
    axes.set_ylabel("accuracy (%)")
    axes.set_title(task, loc="left", fontsize=10, parse_math=False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
