"""Shows one debate while it is held: on a terminal in columns that grow, otherwise as plain lines.

Texts of models are foreign: they are shown without terminal escapes, and never interpreted as markup.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mft_jax.debate import QuestionDebate, TextRequest, Transcript, Watcher
from mft_jax.metrics.ledger import Cost
from mft_jax.report.table import short_count
from mft_jax.report.text import clean, clean_lines, literal

BASE = "base model"
_NARROWEST = 26  # characters of a column; more agents than fit side by side are shown below each other


class PlainView:
    """Prints the texts of each step when all of them are there, one line of the output for each of their lines."""

    def __init__(self, console: Console):
        self.console = console

    def on_text(self, debate: QuestionDebate, request: TextRequest, text: str) -> None:
        del debate, request, text

    def on_step(self, debate: QuestionDebate, requests: Sequence[TextRequest], texts: Sequence[str]) -> None:
        self._say(_title(requests[0]))
        for request, text in zip(requests, texts, strict=True):
            self._say(f"  {_name(request)}:")
            for line in clean_lines(text).split("\n"):
                self._say(f"    {line}")
            if request.kind == "round":
                self._say(f"    {_answer(debate, request.agent)}")
        if requests[0].kind == "round":
            self._say(_vote_after(debate.transcript()))

    def _say(self, line: str) -> None:
        self.console.print(literal(line), soft_wrap=True)


class LiveView:
    """Shows the texts of a step side by side as they grow, and then leaves them on the terminal in full."""

    def __init__(self, console: Console):
        self.console = console
        self.live: Live | None = None
        self.growing: dict[int, tuple[TextRequest, str]] = {}  # by agent: the text of the present step so far

    def on_text(self, debate: QuestionDebate, request: TextRequest, text: str) -> None:
        del debate
        self.growing[request.agent] = request, text
        if self.live is None:
            self.live = Live(console=self.console, transient=True, refresh_per_second=8, get_renderable=self._render)
            self.live.start()

    def on_step(self, debate: QuestionDebate, requests: Sequence[TextRequest], texts: Sequence[str]) -> None:
        self.stop()
        self.growing = {}
        cells = []
        for request, text in zip(requests, texts, strict=True):
            cell = Text(clean_lines(text))
            if request.kind == "round":
                cell.append("\n").append_text(literal(_answer(debate, request.agent), "bold"))
            cells.append(cell)
        self.console.rule(literal(_title(requests[0])), style="dim")
        self.console.print(_columns(self.console, requests, lambda number, width: cells[number]))
        if requests[0].kind == "round":
            self.console.print(literal(_vote_after(debate.transcript())), soft_wrap=True)

    def stop(self) -> None:
        """Ends the live display, if there is one, so that the terminal is as before."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _render(self) -> RenderableType:
        """The texts so far: of each the last lines, as many as fit on the screen."""
        requests, texts = [], []
        for request, text in tuple(self.growing.values()):  # the display renders in a thread
            requests.append(request)
            texts.append(text)
        if not requests:
            return Text()
        rows = -(-len(requests) // _side_by_side(self.console, len(requests)))
        height = max(1, (self.console.height - 2) // rows - 4)

        def cell(number: int, width: int) -> Text:
            text = Text(clean_lines(texts[number]))
            return Text("\n").join(text.wrap(self.console, width, overflow="fold")[-height:])

        title = literal(f"{_title(requests[0])} ...", "bold")
        return Group(title, _columns(self.console, requests, cell))


@contextlib.contextmanager
def debate_view(console: Console) -> Generator[Watcher]:
    """The view of a debate for this console. On an error, the terminal is left as it was."""
    if not console.is_terminal:
        yield PlainView(console)
        return
    view = LiveView(console)
    try:
        yield view
    finally:
        view.stop()


def render_header(question: str, panel: Mapping[str, Any]) -> RenderableType:
    """The question and who debates it; `panel` is as in `mft_jax.ask.Panel.describe`."""
    rounds, agents = len(panel["speakers"]), len(panel["speakers"][0])
    who = panel["model"] if panel["run"] is None else f"{panel['run']} after iteration {panel['iteration']}"
    size = f"{agents} agent{'s' * (agents > 1)}, {rounds} round{'s' * (rounds > 1)}"
    return Group(Text(clean_lines(question), "bold"), literal(f"{panel['method']}: {size}, {who}", "dim"))


def render_outcome(transcript: Transcript, agreeing: int, cost: Cost) -> RenderableType:
    """The vote of the society, and what the debate has cost."""
    agents = len(transcript.agents)
    if transcript.vote is None:
        vote = "No vote: no agent gave an answer that could be read."
    elif agents == 1:
        vote = f"Answer: {transcript.vote}"
    else:
        vote = f"Vote: {transcript.vote}, the answer of {agreeing} of {agents} agents"
    spent = (
        f"{short_count(cost.prompt_tokens)} prompt tokens, {short_count(cost.new_tokens)} new tokens, "
        f"{short_count(cost.flops)}FLOPs, {cost.wall_seconds:.1f} s"
    )
    return Group(literal(vote, "bold"), literal(f"Cost: {spent}", "dim"))


def _columns(console: Console, requests: Sequence[TextRequest], cell: Callable[[int, int], Text]) -> RenderableType:
    """The cells of the requests in columns, in several rows if not all fit. `cell` gets an index and a width."""
    beside = _side_by_side(console, len(requests))
    width = console.width // beside - 4  # without the borders and the padding of a panel
    grid = Table.grid(expand=True)
    for _ in range(beside):
        grid.add_column(ratio=1, overflow="fold")
    for start in range(0, len(requests), beside):
        part = range(start, min(start + beside, len(requests)))
        grid.add_row(
            *(
                Panel(cell(n, width), title=literal(_name(requests[n])), title_align="left", box=box.ROUNDED)
                for n in part
            )
        )
    return grid


def _side_by_side(console: Console, agents: int) -> int:
    return max(1, min(agents, console.width // _NARROWEST))


def _title(request: TextRequest) -> str:
    return f"round {request.round}" if request.kind == "round" else f"summaries before round {request.round}"


def _name(request: TextRequest) -> str:
    name = f"agent {request.agent + 1} ({request.speaker or BASE})"
    return name if request.kind == "round" else f"for agent {request.agent + 1} ({request.speaker or BASE})"


def _answer(debate: QuestionDebate, agent: int) -> str:
    own = debate.transcript().agents[agent]
    if own.turns[-1].end == "unanswerable":
        return "(no room in the model's context)"
    answer = own.answers[-1]
    remark = "" if own.turns[-1].complete else " (cut off)"
    return f"-> no answer{remark}" if answer is None else f"-> {clean(answer)}{remark}"


def _vote_after(transcript: Transcript) -> str:
    vote = transcript.votes[-1]
    return f"vote after round {len(transcript.votes)}: {'none' if vote is None else clean(vote)}"
