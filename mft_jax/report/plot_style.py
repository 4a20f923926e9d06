"""The style of all plots: colours that people with any colour vision can tell apart, markers, sizes, and the files."""

import contextlib
import io
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing matplotlib takes a second
    from matplotlib.figure import Figure

# The colours and symbols of the report's charts, in their order (page/style.css and page/script/charts.js). The first six
# colours are those of Okabe and Ito 2008, without yellow, which is too light for lines. Black is for the curve that all
# plots share.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#555555")
MARKERS = ("o", "s", "^", "D", "P", "*")  # circle, square, triangle, diamond, cross, star
REFERENCE = "#000000"
SIZE = (6.4, 4.2)  # inches

_SETTINGS: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "errorbar.capsize": 2.5,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mft_jax",  # with no date, equal plots are equal files
}


@contextlib.contextmanager
def style() -> Generator[None]:
    """Applies the style to figures that are made and drawn inside."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The colour and marker of each name. No two names look the same unless there are more than 48."""
    count = len(COLOURS)
    return {
        name: {"color": COLOURS[index % count], "marker": MARKERS[(index % count + index // count) % len(MARKERS)]}
        for index, name in enumerate(names)
    }


def encode(figure: "Figure", kind: str) -> bytes:
    """The content of an "svg" or "png" file."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
