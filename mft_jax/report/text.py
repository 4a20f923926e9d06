"""Makes text from outside (paths, names, errors, model answers) safe to print literally in a terminal."""

import re
import unicodedata

from rich.text import Text

# Terminal escapes (ECMA-48): control sequences, terminated strings such as window titles, two-character escapes.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]).*?(?:\x1b\\|\x9c|\x07)|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
# Bidirectional control characters such as U+202E reorder the text around them, which can disguise a name.
_REORDERING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CHANGED = dict.fromkeys(_REORDERING) | {ord("\t"): " "}


def clean(text: object) -> str:
    """The text in one line, without control characters and terminal escapes. Undecodable bytes become U+FFFD."""
    line = " ".join(_ESCAPES.sub("", str(text)).splitlines()).translate(_CHANGED)
    return "".join(map(_printable, line))


def clean_lines(text: object) -> str:
    """As `clean`, but the line breaks stay: for the texts of models."""
    return "\n".join(map(clean, _ESCAPES.sub("", str(text)).splitlines()))


def literal(text: object, style: str = "") -> Text:
    """The text as a rich Text. In a plain string, rich would interpret [brackets] as markup and :names: as emoji."""
    return Text(clean(text), style)


def _printable(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":  # a surrogate: a byte of a file name that is not UTF-8
        return "\N{REPLACEMENT CHARACTER}"
    return "" if category == "Cc" else character
