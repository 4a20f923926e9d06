r"""Parsers of answers for the public data sets: numbers with units, expressions, and choices.

Each parser takes the content of the last box, and has a fallback for texts without a box. All take linear time, because
a text may have 100,000 characters.
"""

import re

from mft_jax.tasks.answers import MAX_LENGTH, boxed, canonical, number, number_of_quantity, parse_numeric

_MARK = "####"  # marks the answer in the solutions of GSM8K
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\\[dt]?frac\s*\d\s*\d|[^\s{}$\\]+)")
# "the answer is" or "Answer:". The answer follows.
_ANNOUNCED = re.compile(r"\banswer(?:\s+is|\s*:)(?:\s|:|\*|option\b|choice\b)*", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\(((?:[^\\]|\\[^()])+)\\\)")
_SENTENCE_END = re.compile(r"\.(?:\s|$)|[\n;!?]|,\s+[a-z]{2,}")
_TEXT = re.compile(r"\\text\s*\{[^{}]*\}")
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|rm|bf)\b|[{}$*]|\\[ ,;!]")
_WHOLE_CHOICE = re.compile(r"\(?([A-Da-d])[).:]?")
_FIRST_CHOICE = re.compile(r"\(?([A-D])[).:]")
_ANNOUNCED_CHOICE = re.compile(r"[\s*$]*\(?([A-D])(?![\w'])")
# The first alternative skips the article "A" at the beginning of a sentence.
_CHOICE = re.compile(r"(?:^|[.!?:\n])[ \t]{0,4}A\s(?=[a-z])|(?<![\w'\\])([A-D])(?![\w'])")


def parse_number(text: str) -> str | None:
    """For GSM8K: the number in the last box, or after the last "####", or the last number. Units are removed."""
    content = boxed(text)
    if content is not None:
        return _number_in(content) if re.search(r"\d", content) else None
    _, mark, after = text.rpartition(_MARK)
    marked = parse_numeric(after.strip().partition("\n")[0]) if mark else None
    return marked or parse_numeric(text)


def _number_in(content: str) -> str | None:
    """The number of a quantity with a unit, or on the right of an equation; otherwise the canonical form."""
    form = canonical(content)
    for candidate in (form, canonical(content.rpartition("=")[2]), canonical(_TEXT.sub(" ", content))):
        if candidate is not None and number(candidate) is not None:
            return candidate
        quantity = number_of_quantity(candidate or "")
        if quantity is not None:
            return quantity
    return form


def parse_final(text: str) -> str | None:
    r"""The answer in the last box, also without braces (\boxed 5) as in a few solutions of MATH; None if no box."""
    content = boxed(text)
    if content is None and (bare := _last_match(_BARE_BOX, text)):
        content = bare[1]
    return None if content is None else canonical(content)


def parse_expression(text: str) -> str | None:
    r"""For MATH: the last box, or the text after "the answer is", or the last formula, or the last number."""
    if (final := parse_final(text)) is not None:
        return final
    if announced := _last_match(_ANNOUNCED, text):
        rest = text[announced.end() : announced.end() + MAX_LENGTH]
        formula = _FORMULA.match(rest)
        return canonical(formula[0] if formula else _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" *"))
    if formula := _last_match(_FORMULA, text):
        return canonical(next(filter(None, formula.groups())).rpartition("=")[2])
    return parse_numeric(text)


def parse_choice(text: str) -> str | None:
    """For MMLU: the letter in the last box, or after "the answer is", or the last single letter A to D."""
    content = boxed(text)
    if content is None:
        return _choice_in_prose(text)
    plain = _STYLE.sub(" ", content[:MAX_LENGTH]).strip()
    found = _WHOLE_CHOICE.fullmatch(plain) or _FIRST_CHOICE.match(plain)
    return found[1].upper() if found else _choice_in_prose(plain)


def parse_written(task: str, text: str) -> str | None:
    """The canonical form of an answer to a question of a task that a person wrote, in a box or without one.

    None if it is empty or too long, or for MMLU if it is not one of the letters.
    """
    if task == "mmlu":
        return parse_choice(text if boxed(text) else rf"\boxed{{{text}}}")
    return canonical(boxed(text) or text)


def _choice_in_prose(text: str) -> str | None:
    announced = [_ANNOUNCED_CHOICE.match(text, match.end()) for match in _ANNOUNCED.finditer(text)]
    letters = [match[1] for match in announced if match] or [match[1] for match in _CHOICE.finditer(text) if match[1]]
    return letters[-1] if letters else None


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found
