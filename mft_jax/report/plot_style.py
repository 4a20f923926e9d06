"""The style of all plots: colours that people with any colour vision can tell apart, markers, sizes, and the files."""

import contextlib
import io
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing matplotlib takes a second
    from matplotlib.figure import Figure

# Okabe and Ito 2008, without yellow, which is too light for lines. Black is for the curve that all plots share.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
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
    """The colour and marker of each name. No two names look the same unless there are more than 24."""
    count = len(COLOURS)
    return {
        name: {"color": COLOURS[index % count], "marker": MARKERS[(index + index // count) % len(MARKERS)]}
        for index, name in enumerate(names)
    }


def encode(figure: "Figure", kind: str) -> bytes:
    """The content of an "svg" or "png" file."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
