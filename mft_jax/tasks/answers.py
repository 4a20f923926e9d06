"""Finds the answer in a text, converts it to a canonical form, and decides whether two answers are equivalent.

It follows the usual graders for MATH and GSM8K. Currency and percent signs are ignored, so "$5", "5%" and "5" are the
same answer. An "x =" before an answer is removed. Decimals are exact: 0.333 is not 1/3.
"""

import functools
import re
from fractions import Fraction

from mft_jax.tasks import grader

MAX_LENGTH = 1000  # characters; anything longer is not taken as an answer
MAX_LAYERS = 30  # of signs around an answer; with more, the text is not taken as an answer
MAX_ELEMENTS = 4  # points with at most this many are compared element by element, longer ones by math-verify
CPU_SECONDS = 0.5  # limit for one comparison by math-verify; most take milliseconds

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?")
_QUOTIENT = re.compile(r"([+-]?\d+)\s*/\s*(\d+)")
_FRAC = re.compile(r"([+-]?)\s*\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_LAST_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[-+])?[$£€]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,2}(?!\d))?(?:/\d+)?"
)
_WORDS = re.compile(r"[^\W\d_]{3,}(?:[\s,'-]+[^\W\d_]+)*")
_QUANTITY = re.compile(
    r"(?:[A-Za-z]{2,}\s+)?([+-]?[$£€]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?)"
    r"(?:\s*(?:\\text\s*\{([^{}]*)\}|([^\W\d_]{2,}\.?(?:[\s/-]+[^\W\d_]+\.?)*)))?"
)
# After a number, these words are not a unit: they are part of its value or of a formula.
_NO_UNIT = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|hal(?:f|ves)|thirds?|quarters?|and|or|to|of|mod|choose|pi|"
    r"sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt)\b",
    re.IGNORECASE,
)
# Without inner brackets, because a comma inside them would not separate elements of the point.
_TUPLE = re.compile(r"(?:\\left)?\s*([(\[])([^()\[\]]*?)(?:\\right)?\s*([)\]])")
_SPACING = re.compile(r"\\[!,;:]|~|\{,\}(?=\d{3})")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_WRAPPERS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$+(.*?)\$+",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"\*\*([^*]*)\*\*",
        r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}",
        r"\{([^{}]*)\}",
        r"(?:[A-Za-z]\s*)?=([^=]*)",
        r"(.*?)[.,;]+",
        r"([+-]?)\\?[$£€](.*)",
        r"(.*?)(?:\\?%|\s+percent)",
        r"([+-])\s+(.*)",
        r"\+(.*)",
    )
)


def boxed(text: str) -> str | None:
    r"""The content of the last complete, non-empty \boxed{...}, with matched braces; None if there is none."""
    opened: list[tuple[int, bool]] = []  # (start of the content, whether it is a box) of each open brace
    last: tuple[int, str] | None = None
    for match in _BRACES.finditer(text):  # one pass: linear time even with 100,000 open boxes
        if match[0].endswith("{") and match[0] != r"\{":
            opened.append((match.end(), len(match[0]) > 1))
        elif match[0] == "}" and opened:
            start, is_box = opened.pop()
            content = text[start : match.start()] if is_box and (last is None or start > last[0]) else ""
            if content.strip():
                last = (start, content.strip())
    return last[1] if last else None


def parse_boxed(text: str) -> str | None:
    """The canonical form of the answer in the last box; None if there is no box."""
    content = boxed(text)
    return None if content is None else canonical(content)


def parse_numeric(text: str) -> str | None:
    """For tasks with numeric answers: the last box, or else the last number. None if the box contains no digit."""
    content = boxed(text)
    if content is not None:
        return canonical(content) if re.search(r"\d", content) else None
    numbers = [match[0] for match in _LAST_NUMBER.finditer(text.replace("\u2212", "-"))]
    return canonical(numbers[-1]) if numbers else None


def canonical(text: str) -> str | None:
    """The canonical form of an answer: 5 for " $+5.00$. ".

    A whole number becomes an integer, any other decimal loses its trailing zeros, and a fraction becomes a reduced p/q.
    In anything else, only the signs around it are removed. The function is idempotent. Returns None for an empty text
    and for one of more than MAX_LENGTH characters.
    """
    return _canonical(text) if len(text) <= MAX_LENGTH else None


@functools.lru_cache(maxsize=4096)
def _canonical(text: str) -> str | None:
    for _ in range(MAX_LAYERS):
        previous, text = text, _remove_wrapper(text)
        if text == previous:
            break
    else:
        return None
    value = number(text)
    if value is not None:
        text = _format_number(value, decimal=_DECIMAL.fullmatch(text) is not None)
    return text if 0 < len(text) <= MAX_LENGTH else None


def _remove_wrapper(text: str) -> str:
    """Removes one layer of signs around an answer, e.g. $...$, \\text{...} or a full stop at its end."""
    text = " ".join(_SPACING.sub(lambda match: "," if match[0] == "{,}" else " ", text.replace("\u2212", "-")).split())
    if _THOUSANDS.fullmatch(text.replace(", ", ",") if "\\" not in text else text):
        return text.replace(",", "")
    for wrapper in _WRAPPERS:
        match = wrapper.fullmatch(text)
        if match:
            return "".join(match.groups()).strip()
    return text


def number_of_quantity(text: str) -> str | None:
    r"""The number of a quantity with a unit, e.g. 18 for "18 dollars" and 7 for "USD 7"; None for anything else."""
    match = _QUANTITY.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None or number(text) is not None or _NO_UNIT.search(text):
        return None
    return canonical(match[1])


def _format_number(value: Fraction, decimal: bool) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    if not decimal:
        return f"{value.numerator}/{value.denominator}"
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = str(abs(value.numerator * 10**places // value.denominator)).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


@functools.lru_cache(maxsize=4096)
def number(text: str) -> Fraction | None:
    r"""The exact value of an integer, a decimal, p/q or \frac{p}{q}; None for anything else."""
    if len(text) > MAX_LENGTH:
        return None
    try:
        if _DECIMAL.fullmatch(text):
            return Fraction(text)
        if match := _QUOTIENT.fullmatch(text):
            return Fraction(int(match[1]), int(match[2]))
        if match := _FRAC.fullmatch(text):
            return Fraction(int(match[1] + (match[2] or match[3])), int(match[4] or match[5]))
    except ZeroDivisionError:
        return None
    return None


def equivalent(a: str, b: str) -> bool:
    """Whether two answers are mathematically the same. Symmetric. False if math-verify needs more than CPU_SECONDS.

    Numbers are compared exactly and words as text. Everything else is compared by math-verify, in another process.
    """
    if a == b:
        return True
    first, second = canonical(a), canonical(b)
    if first is None or second is None:
        return False
    if first == second:
        return True
    values = number(first), number(second)
    if None not in values:
        return values[0] == values[1]
    if values != (None, None):  # one answer is a number: the other may be the same number with a unit
        quantity = number_of_quantity(first if values[0] is None else second)
        if quantity is not None:
            return number(quantity) == (values[0] if values[1] is None else values[1])
    if len(first) == len(second) == 1 and first.isupper() and second.isupper():
        return False  # two choices; math-verify gives the same result, but is slower
    (brackets, left), (others, right) = _split_elements(first), _split_elements(second)
    # math-verify is much slower for a pair of points, so short points are compared here. Longer points are left to
    # math-verify, because each pair of elements compared here may take CPU_SECONDS.
    if brackets and brackets == others and len(left) == len(right) <= MAX_ELEMENTS:
        return all(equivalent(a, b) for a, b in zip(left, right, strict=True))
    # math-verify would parse "east" and "seat" as the same product of four letters.
    if _WORDS.fullmatch(first) or _WORDS.fullmatch(second):
        return first.casefold() == second.casefold()
    return _same_formula(*sorted((first, second)))


def _split_elements(text: str) -> tuple[str, list[str]]:
    """(the brackets, the elements) of a point or an interval; ("", []) for anything else."""
    match = _TUPLE.fullmatch(text)
    if match is None or "," not in match[2] or r"\{" in match[2]:
        return "", []
    return match[1] + match[3], match[2].split(",")


@functools.lru_cache(maxsize=65536)
def _same_formula(a: str, b: str) -> bool:
    return grader.same_formula(a, b, CPU_SECONDS)
