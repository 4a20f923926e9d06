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

from mft_jax.report.text import clean, literal


class Stage(Protocol):
    """A stage in progress."""

    def advance(self, done: int, tokens: int) -> None:
        """Reports that `done` more units of work (samples, steps) and `tokens` more tokens are done."""

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
    `outlook` is called at the start of each stage, and its text is shown beside the bar: what is left of the whole run.
    """

    def __init__(self, console: Console, outlook: Callable[[], str] = lambda: ""):
        self.console, self.outlook = console, outlook

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Generator[Stage]:
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}  {task.fields[rate]}  {task.fields[note]}", markup=False),
            TimeRemainingColumn(), TextColumn("{task.fields[outlook]}", markup=False, style="dim"),
        )  # fmt: skip
        outlook = clean(self.outlook()) if self.console.is_terminal else ""
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            bar = progress.add_task(
                clean(name), total=total, completed=done, unit=unit, rate="", note="", outlook=outlook
            )
            stage = _Bar(progress, bar, done)
            yield stage
        self.say(f"{name}: {stage.done} {unit}, {stage.summary}")  # fewer than `total` if debates ended early

    def say(self, text: str) -> None:
        self.console.print(literal(text), soft_wrap=True)


class _Bar:
    def __init__(self, progress: Progress, bar: TaskID, done: int):
        self.progress, self.bar, self.done = progress, bar, done
        self.started, self.tokens, self.remark = time.perf_counter(), 0, ""

    def advance(self, done: int, tokens: int) -> None:
        self.done += done
        self.tokens += tokens
        self.progress.update(self.bar, advance=done, rate=self.rate)

    def note(self, text: str) -> None:
        self.remark = clean(text)
        self.progress.update(self.bar, note=self.remark)

    def show(self, example: str) -> None:
        if self.progress.console.is_terminal:
            self.progress.console.print(literal(example, "dim"), soft_wrap=True)

    @property
    def rate(self) -> str:
        return f"{self.tokens / max(time.perf_counter() - self.started, 1e-9):,.0f} tokens/s" if self.tokens else ""

    @property
    def summary(self) -> str:
        """Time, speed and last remark of the stage, for the line that is printed at its end."""
        parts = [f"{time.perf_counter() - self.started:.1f} s", self.rate, self.remark]
        return ", ".join(part for part in parts if part)
