"""What a person sees while a run works: one line per stage, with its pace, and remarks between them."""

import contextlib
import time
from collections.abc import Generator
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
        """`done` more units of work (rows, steps) and `tokens` more tokens."""

    def note(self, text: str) -> None:
        """Replaces the remark beside the bar: a running accuracy, a loss."""


class Reporter(Protocol):
    """Where an experiment says what it is doing."""

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> contextlib.AbstractContextManager[Stage]:
        """A stage of `total` units ("samples", "steps"), of which `done` were done by an earlier start of the run."""
        ...

    def say(self, text: str) -> None:
        """A remark of one line."""


class _SilentStage:
    def advance(self, done: int, tokens: int) -> None:
        del done, tokens

    def note(self, text: str) -> None:
        del text


class SilentReporter:
    """For notebooks and tests: says nothing."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Generator[Stage]:
        del name, total, unit, done
        yield _SilentStage()

    def say(self, text: str) -> None:
        del text


class TerminalReporter:
    """A live bar for the stage at work, and a line that stays for each one that is done; without a terminal, only the
    lines. Names and remarks are shown literally."""

    def __init__(self, console: Console):
        self.console = console

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Generator[Stage]:
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}  {task.fields[rate]}  {task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            bar = progress.add_task(clean(name), total=total, completed=done, unit=unit, rate="", note="")
            stage = _Bar(progress, bar)
            yield stage
        self.say(f"{name}: {total} {unit}, {stage.summary}")

    def say(self, text: str) -> None:
        self.console.print(literal(text), soft_wrap=True)


class _Bar:
    def __init__(self, progress: Progress, bar: TaskID):
        self.progress, self.bar = progress, bar
        self.started, self.tokens, self.remark = time.perf_counter(), 0, ""

    def advance(self, done: int, tokens: int) -> None:
        self.tokens += tokens
        self.progress.update(self.bar, advance=done, rate=self.rate)

    def note(self, text: str) -> None:
        self.remark = clean(text)
        self.progress.update(self.bar, note=self.remark)

    @property
    def rate(self) -> str:
        return f"{self.tokens / max(time.perf_counter() - self.started, 1e-9):,.0f} tokens/s" if self.tokens else ""

    @property
    def summary(self) -> str:
        """What is worth keeping of a stage that is done."""
        parts = [f"{time.perf_counter() - self.started:.1f} s", self.rate, self.remark]
        return ", ".join(part for part in parts if part)
