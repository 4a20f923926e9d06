"""The questions a + b * c + d - e * f, and which of them are reserved for the arithmetic task.

A fixed hash of the six integers reserves one question in eight. The task draws its training and evaluation questions
from the reserved ones only. The training data of the base model in the package contains the others only.
"""

import zlib
from collections.abc import Sequence

LARGEST = 29  # each of the six integers is uniform in 0..LARGEST
RESERVED_ONE_IN = 8


def reserved(numbers: Sequence[int]) -> bool:
    """Whether the question with these six integers is reserved. The same on every machine and in every version."""
    return zlib.crc32(",".join(str(int(number)) for number in numbers).encode()) % RESERVED_ONE_IN == 0


def question_text(numbers: Sequence[int]) -> str:
    a, b, c, d, e, f = numbers
    return f"What is {a}+{b}*{c}+{d}-{e}*{f}?"


def value(numbers: Sequence[int]) -> int:
    a, b, c, d, e, f = numbers
    return a + b * c + d - e * f
