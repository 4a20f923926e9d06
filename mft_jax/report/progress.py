"""Shows the progress of a run: one line per stage with its speed, and remarks between the stages."""

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mft_jax.report.table import percent
from mft_jax.report.text import clean, literal


class Stage(Protocol):
    """A stage in progress."""

    def advance(self, done: int, tokens: int) -> None:
        """Reports that `done` more units of work (samples, steps) and `tokens` more tokens are done."""

    def add_flops(self, flops: int) -> None:
        """Reports FLOPs that the algorithm needed, by `mft_jax.metrics.flops`, since the last call."""

    def note(self, text: str) -> None:
        """Replaces the remark beside the bar, e.g. the accuracy so far or the loss."""

    def show(self, example: str) -> None:
        """Shows an example of what was done, on a terminal only."""


class Reporter(Protocol):
    """Receives the progress and the remarks of an experiment."""

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> contextlib.AbstractContextManager[Stage]:
        """Starts a stage of `total` units ("samples", "steps"). `done` of them were finished by an earlier start."""
        ...

    def say(self, text: str) -> None:
        """Shows a remark of one line."""


class _SilentStage:
    def advance(self, done: int, tokens: int) -> None:
        del done, tokens

    def add_flops(self, flops: int) -> None:
        del flops

    def note(self, text: str) -> None:
        del text

    def show(self, example: str) -> None:
        del example


class SilentReporter:
    """Shows nothing. For notebooks and tests."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Generator[Stage]:
        del name, total, unit, done
        yield _SilentStage()

    def say(self, text: str) -> None:
        del text


class TerminalReporter:
    """Shows a live progress bar for the current stage, and prints one line for each finished stage.

    If the output is not a terminal, only the lines are printed. Names, remarks and examples are shown literally.
    Two functions are called at the start of each stage, on a terminal only. The text of `outlook` is shown beside the
    bar: what is left of the whole run. `peak` gives the most FLOPs per second that the devices reach, or None if that is
    not known: the share of it that the stage reaches is shown beside its speed.
    """

    def __init__(
        self, console: Console, outlook: Callable[[], str] = lambda: "", peak: Callable[[], float | None] = lambda: None
    ):
        self.console, self.outlook, self.peak = console, outlook, peak

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Generator[Stage]:
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}  {task.fields[rate]}  {task.fields[note]}", markup=False),
            TimeRemainingColumn(), TextColumn("{task.fields[outlook]}", markup=False, style="dim"),
        )  # fmt: skip
        is_live = self.console.is_terminal
        outlook, peak = (clean(self.outlook()), self.peak()) if is_live else ("", None)
        with Progress(*columns, console=self.console, transient=True, disable=not is_live) as progress:
            bar = progress.add_task(
                clean(name), total=total, completed=done, unit=unit, rate="", note="", outlook=outlook
            )
            stage = _Bar(progress, bar, done, peak)
            yield stage
        self.say(f"{name}: {stage.done} {unit}, {stage.summary}")  # fewer than `total` if debates ended early

    def say(self, text: str) -> None:
        self.console.print(literal(text), soft_wrap=True)


class _Bar:
    def __init__(self, progress: Progress, bar: TaskID, done: int, peak: float | None):
        self.progress, self.bar, self.done, self.peak = progress, bar, done, peak
        self.started, self.tokens, self.remark = time.perf_counter(), 0, ""
        self.flops, self.share = 0, ""

    def advance(self, done: int, tokens: int) -> None:
        self.done += done
        self.tokens += tokens
        self.progress.update(self.bar, advance=done, rate=self.rate)

    def add_flops(self, flops: int) -> None:
        self.flops += flops
        if self.peak:
            share = self.flops / self._seconds / self.peak
            self.share = f"{percent(share)} of the matmul peak"
            self.progress.update(self.bar, rate=self.rate)

    def note(self, text: str) -> None:
        self.remark = clean(text)
        self.progress.update(self.bar, note=self.remark)

    def show(self, example: str) -> None:
        if self.progress.console.is_terminal:
            self.progress.console.print(literal(example, "dim"), soft_wrap=True)

    @property
    def rate(self) -> str:
        speed = f"{self.tokens / self._seconds:,.0f} tokens/s" if self.tokens else ""
        return ", ".join(part for part in (speed, self.share) if part)

    @property
    def _seconds(self) -> float:
        return max(time.perf_counter() - self.started, 1e-9)

    @property
    def summary(self) -> str:
        """Time, speed and last remark of the stage, for the line that is printed at its end."""
        parts = [f"{self._seconds:.1f} s", self.rate, self.remark]
        return ", ".join(part for part in parts if part)
