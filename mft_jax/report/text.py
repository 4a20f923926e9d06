"""Foreign text (paths, names, errors, models' answers) for a terminal: shown literally, whatever it holds."""

import re
import unicodedata

from rich.text import Text

# Terminal escapes (ECMA-48): control sequences, strings such as window titles with their end, two-character escapes.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]).*?(?:\x1b\\|\x9c|\x07)|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
# Marks that reorder the text around them (U+202E and its kind) make a name read as another one.
_REORDERING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CHANGED = dict.fromkeys(_REORDERING) | {ord("\t"): " "}


def clean(text: object) -> str:
    """One line without control characters, terminal escapes and undecodable bytes; line breaks become spaces."""
    line = " ".join(_ESCAPES.sub("", str(text)).splitlines()).translate(_CHANGED)
    return "".join(map(_printable, line))


def literal(text: object, style: str = "") -> Text:
    """The text for rich, which takes [brackets] and :colons: in a plain string for markup and emoji."""
    return Text(clean(text), style)


def _printable(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":  # a byte of a file name that is not UTF-8
        return "\N{REPLACEMENT CHARACTER}"
    return "" if category == "Cc" else character
