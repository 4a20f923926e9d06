import io
import re
import time

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


def test_the_share_of_the_peak_is_shown_on_a_terminal_only(console):
    calls = []
    reporter = TerminalReporter(console, peak=lambda: calls.append(1) or 1e-6)  # FLOPs per second
    with reporter.stage("debate", 2, "samples") as stage:
        stage.advance(1, 10)
        stage.add_flops(0)
        assert stage.summary.endswith("0.0 % of the matmul peak") == console.is_terminal
        stage.add_flops(600)
        stage.add_flops(400)
        time.sleep(0.01)
        stage.add_flops(0)
    last = console.file.getvalue().rstrip("\n").rpartition("\n")[2]
    shown = re.search(r" tokens/s, (\d+) % of the matmul peak$", last)
    assert bool(shown) == bool(calls) == console.is_terminal
    if shown:  # 1000 FLOPs in more than 0.01 seconds
        assert 1 < int(shown[1]) < 100 * 1000 / 0.01 / 1e-6


def test_no_share_is_shown_if_the_peak_is_not_known(console):
    with TerminalReporter(console, peak=lambda: None).stage("debate", 1, "samples") as stage:
        stage.advance(1, 10)
        stage.add_flops(1000)
        assert stage.summary.endswith(" tokens/s")


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
