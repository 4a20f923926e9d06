"""Reads the text of an optimized XLA program: its computations, their instructions, and the arrays that these use.

The text is that of `jax.stages.Compiled.as_text`. Only what the costs of a program depend on is parsed.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # the other types end in their number of bits, as bf16 and s32 do
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """The type of an array: its element type, its size along each axis, and the memory that it is in."""

    element: str
    shape: tuple[int, ...]
    memory: int = 0  # 0: the main memory, HBM on TPUs; others are on-chip memories

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def element_bytes(self) -> float:
        if self.element in _BITS:
            return _BITS[self.element] / 8
        digits = re.search(r"\d+", self.element)
        return int(digits[0]) / 8 if digits else 0

    @property
    def bytes(self) -> int:
        """Its size in bytes, without the padding of the layout."""
        return math.ceil(self.elements * self.element_bytes)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction. `types` are the arrays of its result: one, or those of a tuple in order, nested ones flattened."""

    name: str
    opcode: str
    types: tuple[ArrayType, ...]
    operands: tuple[str, ...]  # names of instructions of the same computation
    literal: str  # the text between the parentheses: the value of a constant, the number of a parameter
    attributes: str  # the rest of the line

    def called(self, *keys: str) -> tuple[str, ...]:
        """The names of the computations given by these attributes, such as "body" or "calls"."""
        found = []
        for key in keys:
            for single, several in re.findall(rf"[ ,]{key}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.attributes):
                found += [single] if single else _NAME.findall(several)
        return tuple(found)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in the attributes; None if it does not match."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @functools.cached_property
    def cycles(self) -> int:
        """The compiler's estimate of the cycles that it computes, without waiting for memory; 0 if there is none."""
        return int(self.attribute(r'"estimated_cycles":"(\d+)"') or 0)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program. `instructions` are in the order in which they are executed."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    def operands(self, instruction: Instruction) -> Iterator[Instruction]:
        return (self.instructions[name] for name in instruction.operands if name in self.instructions)

    @functools.cached_property
    def users(self) -> Mapping[str, Sequence[Instruction]]:
        """The instructions that use the result of each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                if name in found:
                    found[name].append(instruction)
        return found

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        return {int(own.literal): own for own in self.instructions.values() if own.opcode == "parameter"}


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: Mapping[str, Computation]
    entry: Computation


def parse_module(text: str) -> Module:
    """Parses the text of a program. Raises ValueError if there is no entry computation in it."""
    computations: dict[str, Computation] = {}
    entry, name, body, root = None, None, {}, None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, body, root = header[2], {}, None
            entry = name if header[1] else entry
        elif name is not None and line.rstrip() == "}":  # attributes of kernels can have lines that begin with it
            if root is not None:
                computations[name] = Computation(name, body, root)
            name = None
        elif name is not None and (start := _INSTRUCTION.match(line)):
            own = _parse_instruction(start[2], line[start.end() :])
            body[own.name] = own
            root = own if start[1] else root
    if entry is None or entry not in computations:
        raise ValueError("this is not the text of a compiled program: it has no entry computation")
    return Module(computations, computations[entry])


def parse_types(text: str) -> tuple[ArrayType, ...]:
    """The arrays in the text of a type, in order."""
    return tuple(_array_type(*found) for found in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", text)))


@functools.lru_cache(maxsize=4096)
def _array_type(element: str, sizes: str, layout: str) -> ArrayType:
    shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    memory = re.search(r"S\((\d+)\)", layout)
    return ArrayType(element, shape, int(memory[1]) if memory else 0)


def _parse_instruction(name: str, text: str) -> Instruction:
    """Parses what follows "name = ": the type, the opcode, the operands in parentheses, and the attributes."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing - 1]
    return Instruction(name, rest[:opening], parse_types(kind), tuple(_NAME.findall(inside)), inside, rest[closing:])


def _closing(text: str, opening: int) -> int:
    """The index after the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")
