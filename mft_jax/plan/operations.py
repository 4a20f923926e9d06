"""What single operations of a compiled program need: the FLOPs of a matmul, the bytes of a collective, the passes of a loop."""

import math
import re

import numpy as np

from mft_jax.plan.hlo import Computation, Instruction, Module

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def matmul_flops(own: Instruction, inside: Computation) -> float:
    """FLOPs of a dot or a convolution, which is what matmuls are compiled to on TPUs. A multiply-add counts as two."""
    left, right = (operand.types[0] for operand in inside.operands(own))
    out = own.types[0]
    if own.opcode == "dot":
        axes = own.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        return 2.0 * out.elements * math.prod(left.shape[int(axis)] for axis in axes.split(",") if axis)
    left_labels, right_labels, out_labels = re.split(r"_|->", own.attribute(r"dim_labels=([\w?>\-]+)") or "")
    size = lambda labels, kind, label: kind.shape[labels.index(label)]
    pairs = 2.0 * size(out_labels, out, "b") * size(out_labels, out, "f") * size(right_labels, right, "i")
    window = own.attribute(r"window=\{([^}]*)\}") or ""
    for axis, label in enumerate(sorted(label for label in out_labels if label.isdigit())):
        given = lambda name, default, axis=axis: _window_field(window, name, axis, default)
        padding = int(str(given("pad", "0_0")).split("_")[0])
        spaced = int(given("lhs_dilate", 1)), int(given("rhs_dilate", 1)), int(given("stride", 1))
        sizes = (size(left_labels, left, label), size(right_labels, right, label), size(out_labels, out, label))
        pairs *= _window_pairs(*sizes, padding, *spaced)
    return pairs


def _window_field(window: str, name: str, axis: int, default: str | int) -> str | int:
    found = re.search(rf"\b{name}=([\d_x\-]+)", window)
    return found[1].split("x")[axis] if found else default


def _window_pairs(left: int, kernel: int, out: int, padding: int, dilate: int, kernel_dilate: int, stride: int) -> int:
    """The number of pairs of an output and a kernel element that meet an element of the input, along one axis."""
    if (left, padding, dilate, stride) == (out, 0, 1, 1) and kernel == 1:
        return out
    starts = np.arange(out) * stride - padding
    pairs = 0
    for element in range(kernel):
        places = starts + element * kernel_dilate
        pairs += int(np.count_nonzero((places >= 0) & (places <= (left - 1) * dilate) & (places % dilate == 0)))
    return pairs


def sent_bytes(kind: str, own: Instruction, inside: Computation) -> tuple[float, int]:
    """(bytes that a device sends, steps) of a collective over a ring, the usual algorithm for large arrays.

    An all-reduce is a reduce-scatter and an all-gather.
    """
    size = float(sum(array.bytes for operand in inside.operands(own) for array in operand.types))
    if kind == "collective-permute":
        return size, 1
    devices = group_size(own)
    if devices <= 1:
        return 0.0, 0
    if kind == "all-gather":
        return size * (devices - 1), devices - 1
    share = (devices - 1) / devices
    return (2 * size * share, 2 * (devices - 1)) if kind == "all-reduce" else (size * share, devices - 1)


def group_size(own: Instruction) -> int:
    """The number of devices that take part in a collective together."""
    if listed := own.attribute(r"replica_groups=\{\{([\d,]*)\}"):
        return len(listed.split(","))
    if counted := own.attribute(r"replica_groups=\[\d+,(\d+)\]"):
        return int(counted)
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\][^{]*(?:\([^)]*\)(?:T\([\d,]*\))?\)?)?\s*\{([^}]*)\}", own.attributes
    ):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    raise ValueError(f"the devices of the collective {own.name} are given in a form that is not known")


def known_passes(loop: Instruction, inside: Computation, module: Module) -> int | None:
    """The number of passes of a `while`, if it counts from one constant to another; None if it depends on the data."""
    if stated := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}'):
        return int(stated)
    condition = module.computations[loop.called("condition")[0]]
    body = module.computations[loop.called("body")[0]]
    compare, arguments = _comparison(condition, module)
    if compare is None or compare.attribute(r"direction=(\w+)") != "LT" or len(arguments) != 2:
        return None
    counter, limit = arguments
    start = inside.instructions[loop.operands[0]]
    if counter.opcode != "get-tuple-element" or start.opcode != "tuple":
        return None
    place = int(counter.attribute(r"index=(\d+)") or 0)
    last = _constant(limit, condition)
    if last is None and limit.opcode == "get-tuple-element":
        other = int(limit.attribute(r"index=(\d+)") or 0)
        if _is_passed_through(body, other):
            last = _constant(inside.instructions[start.operands[other]], inside)
    first = _constant(inside.instructions[start.operands[place]], inside)
    return None if first is None or last is None else max(0, last - first)


def _comparison(condition: Computation, module: Module) -> tuple[Instruction | None, list[Instruction]]:
    """The comparison that ends a loop, and its arguments as instructions of the condition."""
    root = condition.root
    if root.opcode == "compare":
        return root, list(condition.operands(root))
    if root.opcode == "fusion":
        called = module.computations[root.called("calls")[0]]
        if called.root.opcode == "compare":
            given = list(condition.operands(root))
            inner = list(called.operands(called.root))
            return called.root, [given[int(own.literal)] if own.opcode == "parameter" else own for own in inner]
    return None, []


def _is_passed_through(body: Computation, place: int) -> bool:
    """Whether a loop returns a part of its state unchanged."""
    if body.root.opcode != "tuple":
        return False
    own = body.instructions[body.root.operands[place]]
    return own.opcode == "get-tuple-element" and int(own.attribute(r"index=(\d+)") or -1) == place


def _constant(own: Instruction, inside: Computation) -> int | None:
    while own.opcode in ("copy", "bitcast", "convert") and own.operands:
        own = inside.instructions[own.operands[0]]
    return int(own.literal) if own.opcode == "constant" and re.fullmatch(r"-?\d+", own.literal) else None
