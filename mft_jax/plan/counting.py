"""Counts what a compiled program does on one device: FLOPs, bytes to and from memory, collectives, and seconds.

Loops are counted by their number of passes, conditionals by their most expensive branch. FLOPs are those of matmuls.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

from mft_jax.plan.hlo import ArrayType, Computation, Instruction, Module
from mft_jax.plan.operations import COLLECTIVES, known_passes, matmul_flops, sent_bytes

# Instructions that move no bytes: their result is another name for memory that exists, or is of no size.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "domain",
    "opt-barrier", "add-dependency", "infeed", "outfeed",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_PASSED_ON = ("bitcast", "reshape", "copy", "convert", "pad", "transpose")


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What one device can do in a second."""

    flops: float
    memory_bytes: float
    link_bytes: float  # that it can send to its neighbours in a ring
    cycles: float
    hop_seconds: float  # least time of one step of a collective


@dataclasses.dataclass(frozen=True)
class Counts:
    """The work of one device. Counts can be added, and multiplied by a number of passes."""

    flops: float = 0.0  # of matmuls; a multiply-add counts as two
    bytes_read: float = 0.0  # from main memory
    bytes_written: float = 0.0
    sent: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # bytes sent to other devices, by kind of collective
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)  # number of executions, by kind
    seconds: float = 0.0  # of all instructions one after another, without those that run beside others
    compute_seconds: float = 0.0  # the part of `seconds` in which the matrix and vector units work
    link_seconds: float = 0.0  # of all collectives

    @property
    def bytes(self) -> float:
        return self.bytes_read + self.bytes_written

    def step_seconds(self, speeds: "Speeds") -> float:
        """The estimated time: one instruction after another, or what memory or links need for everything, if that is longer."""
        return max(self.seconds, self.bytes / speeds.memory_bytes, self.link_seconds)

    def bound(self, speeds: "Speeds") -> str:
        """What takes the largest part of the time: "compute", "memory" or "links"."""
        parts = {
            "compute": self.compute_seconds,
            "memory": self.bytes / speeds.memory_bytes,
            "links": self.link_seconds,
        }
        return max(parts, key=lambda name: parts[name])

    def __add__(self, other: "Counts") -> "Counts":
        return self._merge(other, lambda a, b: a + b)

    def __mul__(self, times: float) -> "Counts":
        return self._merge(self, lambda a, _: a * times)

    def floored(self) -> "Counts":
        """The same with 0 for what is negative, which a difference of two counts can be."""
        return self._merge(self, lambda a, _: max(0.0, a))

    def _merge(self, other: "Counts", function: Callable[[float, float], float]) -> "Counts":
        """Applies a function to each number of both counts; a collective that one of them lacks is 0 there."""
        by_kind = lambda a, b: {kind: function(a.get(kind, 0.0), b.get(kind, 0.0)) for kind in {**a, **b}}
        numbers = {name: function(getattr(self, name), getattr(other, name)) for name in _NUMBERS}
        return Counts(
            sent=by_kind(self.sent, other.sent), collectives=by_kind(self.collectives, other.collectives), **numbers
        )


_NUMBERS = tuple(field.name for field in dataclasses.fields(Counts) if field.name not in ("sent", "collectives"))


def count(module: Module, speeds: Speeds, unknown_passes: Sequence[float] = ()) -> Counts:
    """The work of one run of a program.

    `unknown_passes` are the passes of loops whose number depends on the data: of an outermost one, of one inside it, and
    so on. Raises ValueError if a loop needs one that is not given.
    """
    return _Counter(module, speeds, tuple(unknown_passes)).computation(module.entry, 0)


class _Counter:
    def __init__(self, module: Module, speeds: Speeds, unknown_passes: tuple[float, ...]):
        self.module, self.speeds, self.unknown = module, speeds, unknown_passes
        self._known: dict[tuple[str, int], Counts] = {}

    def computation(self, computation: Computation, depth: int) -> Counts:
        """`depth` is the number of loops with an unknown number of passes around the computation."""
        key = computation.name, depth
        if key not in self._known:
            parts = (self._instruction(own, computation, depth) for own in computation.instructions.values())
            self._known[key] = functools.reduce(Counts.__add__, parts, Counts())
        return self._known[key]

    def _instruction(self, own: Instruction, inside: Computation, depth: int) -> Counts:
        named = lambda *keys: [self.module.computations[name] for name in own.called(*keys)]
        if own.opcode in _FREE or own.opcode.endswith(("-done", "-update")):
            return Counts()
        if own.opcode == "while":
            passes = known_passes(own, inside, self.module)
            if passes is None and depth >= len(self.unknown):
                raise ValueError(f"the number of passes of the loop {own.name} is not known")
            inner, passes = (depth, passes) if passes is not None else (depth + 1, self.unknown[depth])
            parts = [self.computation(part, inner) for part in named("body", "condition")]
            return functools.reduce(Counts.__add__, parts) * passes
        if own.opcode == "conditional":
            branches = named("branch_computations", "true_computation", "false_computation")
            return max((self.computation(branch, depth) for branch in branches), key=lambda counts: counts.seconds)
        if own.opcode == "call" or (own.opcode == "async-start" and _names_computation(own)):
            return functools.reduce(
                Counts.__add__, (self.computation(part, depth) for part in named("to_apply", "calls")), Counts()
            )
        return self._one(own, inside)

    def _one(self, own: Instruction, inside: Computation) -> Counts:
        """The work of an instruction that calls no computation, or of a fusion."""
        kind = next((name for name in COLLECTIVES if own.opcode in (name, f"{name}-start")), None)
        beside = own.opcode.endswith("-start")  # runs beside the instructions that follow
        read, written = self._bytes(own, inside)
        speeds = self.speeds
        if kind is not None:
            sent, steps = sent_bytes(kind, own, inside)
            taken = max(sent / speeds.link_bytes, steps * speeds.hop_seconds)
            return Counts(
                bytes_read=read, bytes_written=written, sent={kind: sent}, collectives={kind: 1.0},
                link_seconds=taken, seconds=0.0 if beside else taken,
            )  # fmt: skip
        flops = self._flops(own, inside)
        compute = max(own.cycles / speeds.cycles, flops / speeds.flops)
        taken = 0.0 if beside else max(compute, (read + written) / speeds.memory_bytes)
        return Counts(
            flops=flops, bytes_read=read, bytes_written=written, seconds=taken,
            compute_seconds=0.0 if beside else compute,
        )  # fmt: skip

    def _flops(self, own: Instruction, inside: Computation) -> float:
        if own.opcode in ("dot", "convolution"):
            return matmul_flops(own, inside)
        if own.opcode == "custom-call":
            return float(own.attribute(r'"flops":"?(\d+)') or 0)
        if own.opcode not in ("fusion", "async-start"):
            return 0.0
        called = [self.module.computations[name] for name in own.called("calls")]
        return sum(
            self._flops(part, computation) for computation in called for part in computation.instructions.values()
        )

    def _bytes(self, own: Instruction, inside: Computation) -> tuple[float, float]:
        """Bytes (read, written) in main memory. Of an array of which only a slice is used, only the slice counts."""
        operands = list(inside.operands(own))
        main = lambda kind: kind.bytes if kind.memory == 0 else 0
        if own.opcode == "dynamic-update-slice":
            return sum(main(kind) for kind in operands[1].types), float(_slice_size(own, operands[1]))
        if own.opcode in _SLICES:
            return float(sum(main(kind) and own.types[0].bytes for kind in operands[0].types)), float(
                main(own.types[0])
            )
        if own.opcode == "slice-start":
            return float(own.types[1].bytes if main(own.types[0]) else 0), float(main(own.types[1]))
        if own.opcode == "copy-start":
            return float(main(own.types[1])), float(main(own.types[0]))
        if own.opcode.endswith("-start"):  # a collective: its operands, then its results, or its results only
            results = own.types[len(operands) : 2 * len(operands)] or own.types
            source = sum(main(kind) for operand in operands for kind in operand.types)
            return float(source), float(sum(map(main, results)))
        if own.opcode == "fusion":
            (called,) = (self.module.computations[name] for name in own.called("calls"))
            read = sum(
                min(main(kind), self._used(called, called.parameters[index]))
                for index, operand in enumerate(operands)
                for kind in operand.types[:1]
                if main(kind)
            )
            return float(read), float(sum(self._written(called, own.types)))
        read = sum(main(kind) for operand in operands for kind in operand.types)
        written = sum(main(kind) for kind in own.types)
        known = own.attribute(r'"bytes_accessed":"?(\d+)') if own.opcode == "custom-call" else None
        if known is not None:  # a kernel that says so: of arrays that it updates in place it touches only a part
            arrays = [*(kind for operand in operands for kind in operand.types), *own.types]
            # What lies on the chip it touches too, but that is no traffic of the main memory.
            on_chip = sum(kind.bytes for kind in arrays if kind.memory != 0)
            touched = max(0, int(known) - on_chip)
            return float(min(read, touched)), float(min(written, max(0, touched - read)))
        return float(read), float(written)

    def _used(self, inside: Computation, own: Instruction) -> float:
        """How many bytes of `own`, an array in main memory, the instructions of a fusion read. An upper bound."""
        used = float(own.types[0].bytes) if own is inside.root else 0.0  # the fusion returns it
        for user in inside.users[own.name]:
            size = own.types[0].element_bytes
            if user.opcode in _SLICES and user.operands[0] == own.name:
                used += user.types[0].elements * size
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == own.name:
                continue  # updated in place
            elif user.opcode in _PASSED_ON:
                used += self._used(inside, user) / max(user.types[0].element_bytes, 1) * size
            elif user.opcode == "fusion":
                (called,) = (self.module.computations[name] for name in user.called("calls"))
                places = [place for place, name in enumerate(user.operands) if name == own.name]
                used += sum(self._used(called, called.parameters[place]) for place in places)
            else:
                used += own.types[0].bytes
        return min(used, own.types[0].bytes)

    def _written(self, called: Computation, types: Sequence[ArrayType]) -> Iterator[float]:
        """The bytes that a fusion writes to main memory, for each array of its result."""
        roots = list(called.operands(called.root)) if called.root.opcode == "tuple" else [called.root]
        for kind, root in zip(types, roots if len(roots) == len(types) else [called.root] * len(types), strict=True):
            if kind.memory == 0:
                yield float(self._update_size(called, root) or kind.bytes)

    def _update_size(self, inside: Computation, own: Instruction) -> int | None:
        """The bytes that `own` replaces in an array that is updated in place; None if it makes a new array."""
        while own.opcode in ("bitcast", "reshape") and own.operands:
            own = inside.instructions[own.operands[0]]
        if own.opcode == "dynamic-update-slice":
            return _slice_size(own, inside.instructions[own.operands[1]])
        if own.opcode == "fusion":
            (called,) = (self.module.computations[name] for name in own.called("calls"))
            return self._update_size(called, called.root)
        return None


def _slice_size(update: Instruction, new: Instruction) -> int:
    """Bytes of the slice that a dynamic-update-slice replaces, in the element type of its result."""
    return math.ceil(new.types[0].elements * update.types[0].element_bytes)


def _names_computation(own: Instruction) -> bool:
    return own.attribute(r"calls=%([\w.\-]+)") is not None
