"""Puts the page together: one HTML file with its scripts, style, libraries and data inside.

The Content-Security-Policy allows nothing from outside, and scripts by their hash only, so even a mistake in the page's
own scripts could not run a text of a model as a script. Data are base64 in elements that browsers do not execute.
Styles may be inline, because the chart and formula libraries need it; they cannot load anything either.
"""

import base64
import dataclasses
import hashlib
import html
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from mft_jax.report.page.debates import deflate, to_text

MAX_BYTES = 5_000_000  # of the HTML file; debates that do not fit are written beside it

PART = re.compile(r"[0-9a-f]{16}\.js")  # the names of the parts

_HERE = pathlib.Path(__file__).parent
_LIBRARIES = ("d3.min.js", "plot.umd.min.js", "temml.min.js")
_SCRIPTS = (
    "elements.js", "data.js", "text.js", "format.js", "save.js", "charts.js", "summary.js", "list.js", "feedback.js", "debate.js",
    "compare.js", "main.js",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Document:
    """The report, ready to be written."""

    page: bytes
    parts: dict[str, bytes]  # {file name: content} of the scripts that hold the other debates


def make_document(
    title: str,
    summary: Any,
    index: Any,
    chunks: Sequence[bytes],
    folder: str,
    *,
    max_bytes: int = MAX_BYTES,
    served: bool = False,
) -> Document:
    """The page with this data. `folder` is the name of the directory beside the page for the parts.

    The chunks that fit into `max_bytes` are inside the page, in their order, and the others are parts. `served`: the page
    may send verdicts to the server that it comes from.
    """
    data = {"summary": to_text(deflate(summary)), "index": to_text(deflate(index))}
    texts = [to_text(chunk) for chunk in chunks]
    room = max_bytes - len(_page(title, data, {}, split=True, served=served)) - 100 * len(texts)
    inside, parts, places = {}, {}, []
    for number, text in enumerate(texts):
        if len(text) <= room and not parts:
            inside[f"chunk-{number}"] = text
            room -= len(text)
            places.append(None)
        else:
            part = f'receivePart({number},"{text}");\n'.encode()
            name = f"{hashlib.sha256(part).hexdigest()[:16]}.js"
            parts[name] = part
            places.append(f"{folder}/{name}")
    data["places"] = to_text(deflate(places))
    return Document(_page(title, data, inside, split=bool(parts), served=served).encode(), parts)


def _page(title: str, data: dict[str, str], chunks: dict[str, str], *, split: bool, served: bool) -> str:
    """The HTML. `split`: whether there are parts beside the page, which its scripts may then load."""
    scripts = [_read(f"vendor/{name}") for name in _LIBRARIES]
    scripts.append('"use strict";\n(() => {\n' + "\n".join(_read(f"script/{name}") for name in _SCRIPTS) + "})();\n")
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {hashes}" + (" 'strict-dynamic'" if split else ""),
            "style-src 'unsafe-inline'",
            "img-src data:",
            *(["connect-src 'self'"] if served else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    blocks = [f'<script type="text/plain" id="{name}">{text}</script>' for name, text in (data | chunks).items()]
    values = {
        "POLICY": html.escape(policy, quote=True),
        "TITLE": html.escape(title),
        "STYLE": _read("style.css"),
        "DATA": "\n".join(blocks),
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda name: values[name[1]], _read("page.html"))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    """The hash of a script as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
