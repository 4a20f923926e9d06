"""What the compiler says of one program: its memory on each device, and what one run of it does."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mft_jax.plan.compiled import Compiled, compile_program
from mft_jax.plan.counting import Counts, Speeds, count
from mft_jax.plan.hlo import parse_module
from mft_jax.programs.program import Program

TEMPORARIES, OTHER = "temporaries", "other"


@dataclasses.dataclass(frozen=True)
class Case:
    """A program and the shapes that it is compiled for."""

    program: Program
    arguments: tuple[Any, ...]
    kinds: Mapping[str, Any]  # the arrays among the arguments, by kind of memory
    unknown_passes: Sequence[float] = ()  # as in `count`
    steps: int = 1  # that one run of the program makes; the figures are those of one of them


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of one device, in one step of a program: for `decode`, one token of every row."""

    counts: Counts
    memory: Mapping[str, float]  # bytes by kind, while the program runs
    compile_seconds: float  # on the machine that compiled it

    def combine(self, other: "Figures", own_share: float, other_share: float) -> "Figures":
        """A weighted sum of two figures. Nothing becomes negative."""
        both = dict.fromkeys([*self.memory, *other.memory])
        weigh = lambda a, b: max(0.0, own_share * a + other_share * b)
        return Figures(
            (self.counts * own_share + other.counts * other_share).floored(),
            {kind: weigh(self.memory.get(kind, 0), other.memory.get(kind, 0)) for kind in both},
            weigh(self.compile_seconds, other.compile_seconds),
        )


def measure(case: Case, speeds: Speeds, topology: str) -> Figures:
    """Compiles a program, or finds it among those compiled before, and reads its figures.

    Raises DoesNotFit if the compiler refuses it for its memory.
    """
    return read_figures(case, speeds, compile_program(case.program.lower(*case.arguments), topology))


def read_figures(case: Case, speeds: Speeds, compiled: Compiled) -> Figures:
    """The figures of a compiled program. What the compiler adds to the arguments, such as padding, is of the kind "other"."""
    memory = {kind: float(bytes_on_device(tree)) for kind, tree in case.kinds.items()}
    memory[OTHER] = max(0.0, compiled.arguments + compiled.outputs + compiled.code - sum(memory.values()))
    memory[TEMPORARIES] = float(compiled.temporaries)
    counts = count(parse_module(compiled.text), speeds, case.unknown_passes) * (1 / case.steps)
    return Figures(counts, memory, compiled.seconds)


def bytes_on_device(tree: Any) -> int:
    """The bytes of the arrays of a tree on one device, by their shardings; without the padding of their layouts."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total
