import io

import pytest
from rich.console import Console

from mft_jax.report.progress import SilentReporter, TerminalReporter

HOSTILE = "iteration 1 [/] [bold]debate[/bold]\n:smile:\x1b[2J"
PLAIN = "iteration 1 [/] [bold]debate[/bold] :smile:"


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def console(request):
    return Console(file=io.StringIO(), force_terminal=request.param, width=160, color_system=None, legacy_windows=False)


def test_a_stage_leaves_one_line(console):
    with TerminalReporter(console).stage("finetuning", 40, "steps", done=10) as stage:
        stage.advance(15, 3000)
        stage.advance(15, 3000)
        stage.note("loss 0.123")
    last = console.file.getvalue().rstrip("\n").rpartition("\n")[2]
    assert "finetuning: 40 steps, " in last
    assert last.endswith("tokens/s, loss 0.123")


def test_names_and_remarks_are_shown_literally(console):
    reporter = TerminalReporter(console)
    with reporter.stage(HOSTILE, 2, "samples") as stage:
        stage.advance(1, 0)
        stage.note(HOSTILE)
    reporter.say(HOSTILE)
    written = console.file.getvalue()
    *_, summary, said = written.rstrip("\n").split("\n")
    assert f"{PLAIN}: 1 samples, " in summary  # what was done, not what was planned
    assert summary.endswith(f" s, {PLAIN}")
    assert said == PLAIN
    assert "\x1b[2J" not in written
    if console.is_terminal:  # the bar shows both, side by side
        assert any(line.count(PLAIN) == 2 and "1/2" in line for line in written.replace("\r", "\n").split("\n"))


def test_a_long_remark_is_not_broken(console):
    TerminalReporter(console).say("word " * 100)
    assert console.file.getvalue().count("\n") == 1


def test_silence(capsys):
    reporter = SilentReporter()
    with reporter.stage("debate", 3, "samples") as stage:
        stage.advance(1, 2)
        stage.note("text")
    reporter.say("text")
    assert capsys.readouterr() == ("", "")


def test_examples_and_what_is_left_are_shown_on_a_terminal_only(console):
    calls = []
    reporter = TerminalReporter(console, lambda: calls.append(1) or "whole run: about 3 min left")
    with reporter.stage("debate", 2, "samples") as stage:
        stage.advance(1, 0)
        stage.show(HOSTILE)
    written = console.file.getvalue()
    assert ("about 3 min left" in written) == (PLAIN in written) == bool(calls) == console.is_terminal
    assert "\x1b[2J" not in written
