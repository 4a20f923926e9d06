"""The questions a + b * c + d - e * f, and which of them are kept out of the shipped base model's training text.

One question in eight is reserved, by a fixed hash of its six integers: the task draws its training and evaluation
questions from the reserved ones only, the base model's demonstrations from the others only.
"""

import zlib
from collections.abc import Sequence

LARGEST = 29  # each of the six integers is uniform in 0..LARGEST
RESERVED_ONE_IN = 8


def reserved(numbers: Sequence[int]) -> bool:
    """Whether the question of these six integers is the task's. The same on every machine and in every version."""
    return zlib.crc32(",".join(str(int(number)) for number in numbers).encode()) % RESERVED_ONE_IN == 0


def question_text(numbers: Sequence[int]) -> str:
    a, b, c, d, e, f = numbers
    return f"What is {a}+{b}*{c}+{d}-{e}*{f}?"


def value(numbers: Sequence[int]) -> int:
    a, b, c, d, e, f = numbers
    return a + b * c + d - e * f
