"""Makes the pictures of the README from a finished run of configs/quickstart.yaml:

    pip install -e '.[test]'
    python docs/pictures.py runs/quickstart docs/pictures

They show what the commands show: a plot of `mft plots`, the page of `mft report` in Chromium, and the terminal of
`mft ask`, for a question that the agents of the run debate. Chromium is the command `chromium`, or that in MFT_CHROMIUM.
"""

import argparse
import contextlib
import io
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Generator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

import mft_jax
from mft_jax.errors import UserError
from mft_jax.report.debate_view import LiveView, render_header, render_outcome
from mft_jax.report.page import write_report
from mft_jax.report.plot_style import encode
from mft_jax.report.plots import average, iterations_plot
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.results import read_results

if TYPE_CHECKING:
    from playwright.sync_api import Browser

QUESTION = "What is 14+27*3+9-8*6?"
WIDTH, HEIGHT = 1180, 1000  # of the browser's window, in pixels
COLUMNS = 100  # of the terminal
MAX_BYTES = 200_000  # of a picture


def make_pictures(
    run_dir: str, session: mft_jax.Session | None = None, browser: "Browser | None" = None
) -> dict[str, bytes]:
    """{file name: content} of all pictures. Raises UserError if there is no run with results and training debates.

    Without `browser`, Chromium is opened for them.
    """
    accuracies = plot_of_accuracies(run_dir)
    with contextlib.nullcontext(browser) if browser else open_chromium() as opened:
        report = pictures_of_report(run_dir, opened)
    return {
        "accuracy.svg": accuracies,
        **report,
        "ask.svg": picture_of_ask(run_dir, session),
    }


def plot_of_accuracies(run_dir: str) -> bytes:
    directory = RunDirectory(run_dir)
    task = directory.config().task.name
    points = average([result for result in read_results(directory.results_file) if result.task == task])
    return encode(iterations_plot(points, task), "svg")


@contextlib.contextmanager
def open_chromium() -> "Generator[Browser]":
    """Chromium without a window. Raises UserError if it is not installed."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("MFT_CHROMIUM") or shutil.which("chromium")
    if program is None:
        raise UserError("The pictures of the report need Chromium: install it, or set MFT_CHROMIUM to the program.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def pictures_of_report(run_dir: str, browser: "Browser") -> dict[str, bytes]:
    """The first charts of the summary, and a training debate in which an agent corrected itself and learned from it."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.html")
        write_report([run_dir], report)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(60_000)
        page.goto(f"file://{report}")
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_selector(".charts svg")
        first, fifth = (page.locator(".charts").first.locator("figure h3").nth(n).bounding_box() for n in (0, 4))
        # From the first heading to the fifth: two rows of two charts.
        clip = {"x": 0, "y": first["y"] - 12, "width": WIDTH, "height": fifth["y"] - first["y"]}
        charts = page.screenshot(full_page=True, clip=clip)
        iteration = RunDirectory(run_dir).config().iterations
        for flags in ("wrong_to_right,vote_right,vote_changed,trained", "wrong_to_right", ""):
            page.goto("about:blank")  # so that the next address is loaded anew
            page.goto(f"file://{report}#debates?split=train&iteration={iteration}&flags={flags}")
            page.wait_for_selector(".list-status")
            if page.locator(".row").count():
                break
        page.locator(".row").first.click()
        page.wait_for_selector(".agents .cell")
        debate = page.screenshot()
        page.close()
    return {"report.png": charts, "debate.png": debate}


class _WithoutGrowth(LiveView):
    """A recorded terminal keeps everything that it has shown, so texts are shown when they are complete."""

    def on_text(self, *args: object) -> None:
        del args


def picture_of_ask(run_dir: str, session: mft_jax.Session | None) -> bytes:
    """The terminal after `mft ask RUN_DIR QUESTION`."""
    console = Console(
        file=io.StringIO(),
        record=True,
        force_terminal=True,
        width=COLUMNS,
        color_system="truecolor",
        legacy_windows=False,
    )
    panel = mft_jax.open_panel(run_dir, session=session)
    panel.ask(QUESTION)  # compiles, so that the seconds in the picture are those of the debate
    console.print(render_header(QUESTION, panel.describe()))
    asked = panel.ask(QUESTION, _WithoutGrowth(console))
    console.print(render_outcome(asked.transcript, asked.agreeing, asked.cost))
    svg = console.export_svg(title=f'mft ask {run_dir} "{QUESTION}"', theme=DEFAULT_TERMINAL_THEME)
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).encode()  # a picture loads nothing from outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", help="the directory of a finished run")
    parser.add_argument("out", type=pathlib.Path, help="the folder for the pictures")
    arguments = parser.parse_args()
    try:
        pictures = make_pictures(arguments.run_dir)
    except UserError as error:
        sys.exit(f"pictures: {error}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        (arguments.out / name).write_bytes(content)
        print(f"{arguments.out / name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
