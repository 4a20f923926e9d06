"""The views of a live debate, with scripted texts."""

import io

import pytest
from rich.console import Console

from mft_jax.debate import Protocol, everyone
from mft_jax.metrics.ledger import Cost
from mft_jax.report.debate_view import debate_view, render_header, render_outcome
from tests.debate.scripted import make_debate, questions

HOSTILE = "[bold]a[/bold]\x1b[2J\x1b]0;title\x07 \x9b31m:smile:\r\n[/]=7"


def console_of(terminal, width=100, height=30):
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None, legacy_windows=False
    )


def shown(script, protocol, console):
    """What a debate on one question leaves on a console."""
    debate, _ = make_debate(script, protocol)
    with debate_view(console) as view:
        (transcript,), _ = debate.run(questions(1), watcher=view)
    console.print(
        render_outcome(transcript, 2, Cost(prompt_tokens=1234, new_tokens=56, flops=7 * 10**9, wall_seconds=1))
    )
    return console.file.getvalue()


def test_a_debate_as_plain_lines():
    script = lambda asked: ("they differ", "limit") if asked.is_summary else f"step\nx={len(asked.messages)}"
    assert shown(script, Protocol(speakers=(("ann", None), ("bob", None))), console_of(False)).splitlines() == [
        "round 1",
        "  agent 1 (ann):", "    step", "    x=1", "    -> 1",
        "  agent 2 (base model):", "    step", "    x=1", "    -> 1",
        "vote after round 1: 1",
        "summaries before round 2",
        "  for agent 1 (base model):", "    they differ",
        "  for agent 2 (base model):", "    they differ",
        "round 2",
        "  agent 1 (bob):", "    step", "    x=3", "    -> 3",
        "  agent 2 (base model):", "    step", "    x=3", "    -> 3",
        "vote after round 2: 3",
        "Vote: 3, the answer of 2 of 2 agents",
        "Cost: 1.23 k prompt tokens, 56 new tokens, 7 GFLOPs, 1.0 s",
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
def test_foreign_text_is_shown_harmlessly(terminal):
    written = shown(lambda asked: HOSTILE, Protocol(speakers=everyone(None, 2, 2)), console_of(terminal))
    assert "[bold]a[/bold]" in written
    assert ":smile:" in written
    assert "-> 7" in written
    for escape in ("\x1b[2J", "\x1b]0", "\x07", "\x9b"):
        assert escape not in written


def test_texts_grow_side_by_side_on_a_terminal():
    """The display shows the end of a long text; what stays on the terminal is whole."""
    text = lambda asked: " ".join(f"word{n}" for n in range(200)) + f"={len(asked.messages)}"
    console = console_of(True, width=80, height=12)
    written = shown(text, Protocol(speakers=everyone(None, 3, 1), shows="nothing"), console)
    growing, _, whole = written.rpartition("\x1b[?25h")  # the cursor is shown again when the display ends
    assert "round 1 ..." in growing
    assert max(frame.count("\n") for frame in growing.split("\x1b[2K")) < 12
    assert "agent 1 (base model)" in whole
    assert sum(line.count("agent ") for line in whole.splitlines() if "agent 3" in line) == 3
    assert all(f"word{n}" in whole for n in (0, 100))
    assert "vote after round 1: 1" in whole


def test_an_error_leaves_the_terminal_as_it_was():
    console = console_of(True)
    debate, sampler = make_debate(lambda asked: "x=1", Protocol(speakers=everyone(None, 2, 1)))

    def broken(asked):
        raise KeyboardInterrupt

    sampler.script = broken
    with pytest.raises(KeyboardInterrupt), debate_view(console) as view:
        debate.run(questions(1), watcher=view)
    assert console.file.getvalue().count("\x1b[?25h") == 1  # the cursor is visible


def test_agents_without_an_answer():
    script = lambda asked: ("", "unanswerable") if asked.messages[0]["content"] else ""
    written = shown(script, Protocol(speakers=everyone(None, 2, 1)), console_of(False))
    assert written.count("(no room in the model's context)") == 2
    assert "vote after round 1: none" in written
    assert "No vote: no agent gave an answer that could be read." in written


def test_the_header_says_who_debates():
    console = console_of(False)
    panel = {"speakers": [["a", "b"]] * 3, "model": "m", "run": None, "iteration": None, "method": "debate"}
    console.print(render_header("What\n[is] it?", panel))
    console.print(render_header("q", panel | {"run": "runs/x", "iteration": 2, "method": "cooperative"}))
    assert console.file.getvalue().splitlines() == [
        "What", "[is] it?", "debate: 2 agents, 3 rounds, m", "q", "cooperative: 2 agents, 3 rounds, runs/x after iteration 2"
    ]  # fmt: skip
