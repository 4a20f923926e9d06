"""The work of a program, counted from its text, equals a calculation by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mft_jax.plan.counting import count
from mft_jax.plan.hlo import parse_module, parse_types
from mft_jax.plan.operations import group_size, known_passes
from tests.plan.conftest import SPEEDS

# A program as it is compiled for TPUs: arrays in S(1) are on the chip, matmuls are convolutions, and only the condition of
# a loop says how often it runs.
PROGRAM = """
HloModule jit_f, is_scheduled=true

%renamed (param_0.2: bf16[64,32]) -> bf16[64,32,1] {
  %param_0.2 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %bitcast.1 = bf16[64,32,1]{1,0,2:T(8,128)(2,1)} bitcast(%param_0.2)
}

%fused_matmul (param_0: bf16[8,64], param_1: bf16[64,32]) -> bf16[8,32] {
  %param_0 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  %rows = bf16[1,8,64]{2,1,0:S(1)} bitcast(%param_0)
  %fusion.3 = bf16[64,32,1]{1,0,2:T(8,128)(2,1)} fusion(%param_1), kind=kLoop, calls=%renamed
  ROOT %convolution.1 = bf16[1,8,32]{2,1,0:S(1)} convolution(%rows, %fusion.3), window={size=1}, dim_labels=0bf_io0->0bf
}

%fused_write (param_0.1: bf16[4,1024], param_1.1: bf16[1,1024], param_2.1: s32[]) -> bf16[4,1024] {
  %param_0.1 = bf16[4,1024]{1,0} parameter(0)
  %param_1.1 = bf16[1,1024]{1,0:S(1)} parameter(1)
  %param_2.1 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = bf16[4,1024]{1,0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2.1, %zero)
}

%body (state: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %state = (s32[]{:T(128)}, bf16[64,32]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %weights = bf16[64,32]{1,0} get-tuple-element(%state), index=1
  %rows = bf16[8,64]{1,0:S(1)} broadcast(%counter), dimensions={}
  %fusion.1 = bf16[8,32]{1,0:S(1)} fusion(%rows, %weights), calls=%fused_matmul, backend_config={"estimated_cycles":"100"}
  %all-reduce.1 = bf16[8,32]{1,0:S(1)} all-reduce(%fusion.1), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%sum
  %one = s32[] constant(1)
  %next = s32[]{:T(128)} add(%counter, %one)
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[64,32]{1,0}) tuple(%next, %weights)
}

%condition (state.1: (s32[], bf16[64,32])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[64,32]{1,0}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %last = s32[] constant(5)
  ROOT %less = pred[] compare(%counter.1, %last), direction=LT
}

ENTRY %main (param.1: bf16[64,32], param.2: bf16[4,1024], param.3: s32[], param.4: bf16[1,1024]) -> (bf16[4,1024]) {
  %param.1 = bf16[64,32]{1,0} parameter(0)
  %param.2 = bf16[4,1024]{1,0} parameter(1)
  %param.3 = s32[] parameter(2)
  %param.4 = bf16[1,1024]{1,0} parameter(3)
  %copy-start.1 = (bf16[1,1024]{1,0:S(1)}, bf16[1,1024]{1,0}, u32[]{:S(2)}) copy-start(%param.4)
  %copy-done.1 = bf16[1,1024]{1,0:S(1)} copy-done(%copy-start.1)
  %start = s32[] constant(2)
  %tuple.2 = (s32[], bf16[64,32]{1,0}) tuple(%start, %param.1)
  %while.1 = (s32[], bf16[64,32]{1,0}) while(%tuple.2), condition=%condition, body=%body
  %fusion.2 = bf16[4,1024]{1,0} fusion(%param.2, %copy-done.1, %param.3), kind=kLoop, calls=%fused_write
  ROOT %tuple.3 = (bf16[4,1024]{1,0}) tuple(%fusion.2)
}
"""


def test_a_program_for_tpus_by_hand():
    counts = count(parse_module(PROGRAM), SPEEDS)
    matmul, weights = 2 * 8 * 64 * 32, 2 * 64 * 32
    assert counts.flops == 3 * matmul  # from 2 to 4
    # The weights in each pass, the counter (4 bytes: by its broadcast, addition and comparison), the prefetched row, its place.
    assert counts.bytes_read == 3 * (weights + 4 + (4 + 4) + (4 + 4)) + 2048 + 4
    # The counter and the answer of the comparison in each pass, and one of the four rows, which are updated in place.
    assert counts.bytes_written == 3 * (4 + 1) + 2048
    assert counts.collectives == {"all-reduce": 3}
    assert counts.sent == {"all-reduce": 3 * 2 * 0.75 * 2 * 8 * 32}
    assert counts.link_seconds == pytest.approx(counts.sent["all-reduce"] / 1e7)
    assert counts.compute_seconds == pytest.approx(3 * 100e-6)  # the compiler's cycles are more than the FLOPs need


def test_the_time_and_the_bound():
    """One instruction after another. The weights are read beside the matmul, which takes longer; the row that is prefetched
    takes no time of its own, but writing it to its place does."""
    counts = count(parse_module(PROGRAM), SPEEDS)
    counting = (4 + (8 + 4) + (8 + 1)) * 1e-8
    in_turn = 3 * (100e-6 + counting) + counts.link_seconds + (4 + 2048) * 1e-8
    assert counts.seconds == pytest.approx(in_turn)
    assert counts.step_seconds(SPEEDS) == counts.seconds
    assert counts.bound(SPEEDS) == "compute"
    slow_memory = dataclasses.replace(SPEEDS, memory_bytes=1e7, link_bytes=1e15)
    slower = count(parse_module(PROGRAM), slow_memory)
    assert slower.seconds == pytest.approx(3 * (4096 * 1e-7 + 10 * counting) + 2052 * 1e-7)
    assert slower.step_seconds(slow_memory) == pytest.approx(slower.bytes * 1e-7)  # the prefetched row too
    assert slower.bound(slow_memory) == "memory"


# A kernel that changes a few of 4,096 rows of the cache, and one that reduces logits. `known` is what they say they touch.
KERNELS = """
HloModule jit_g

ENTRY %main (cache: bf16[4096,128], query: bf16[8,128], logits: f32[8,1024]) -> (bf16[4096,128], f32[8,1]) {
  %cache = bf16[4096,128]{1,0} parameter(0)
  %query = bf16[8,128]{1,0QUERY} parameter(1)
  %logits = f32[8,1024]{1,0LOGITS} parameter(2)
  %attend = bf16[4096,128]{1,0} custom-call(%cache, %query), backend_config={"bytes_accessed":"1052672","flops":"5"}
  %reduce = f32[8,1]{1,0} custom-call(%logits), backend_config={"bytes_accessed":"32768"}
  ROOT %both = (bf16[4096,128]{1,0}, f32[8,1]{1,0}) tuple(%attend, %reduce)
}
"""


@pytest.mark.parametrize("query", ["", "S(1)"])
@pytest.mark.parametrize("logits", ["", "S(1)"])
def test_what_kernels_touch_in_main_memory(query, logits):
    """What they read on the chip is no traffic of the memory, and no write either."""
    counts = count(parse_module(KERNELS.replace("QUERY", query).replace("LOGITS", logits)), SPEEDS)
    cache, queries, known = 4096 * 128 * 2, 8 * 128 * 2, 1052672
    assert counts.flops == 5
    assert counts.bytes_read == cache + (0 if query else queries) + (0 if logits else 32768)
    assert counts.bytes_written == known - cache - queries


def test_loops_whose_passes_depend_on_the_data():
    module = parse_module(PROGRAM.replace("constant(5)", "add(%counter.1, %counter.1)"))
    with pytest.raises(ValueError, match=r"the number of passes of the loop while\.1 is not known"):
        count(module, SPEEDS)
    assert count(module, SPEEDS, [2.5]).flops == 2.5 * 2 * 8 * 64 * 32


def test_the_limit_of_a_loop_may_be_part_of_its_state():
    """XLA moves constants out of loops."""
    moved = PROGRAM.replace("%last = s32[] constant(5)", "%last = s32[] get-tuple-element(%state.1), index=2")
    moved = moved.replace("tuple(%start, %param.1)", "tuple(%start, %param.1, %limit)")
    moved = moved.replace("tuple(%next, %weights)", "tuple(%next, %weights, %same)")
    moved = moved.replace("  %one = s32[]", "  %same = s32[] get-tuple-element(%state), index=2\n  %one = s32[]")
    moved = moved.replace("  %start = s32[]", "  %limit = s32[] constant(9)\n  %start = s32[]")
    module = parse_module(moved)
    assert known_passes(module.entry.instructions["while.1"], module.entry, module) == 7


def test_types():
    flat = parse_types("(s32[]{:T(128)}, /*index=1*/bf16[3,5]{1,0:T(8,128)(2,1)S(1)}, pred[7], f8e4m3fn[4])")
    assert [(own.element, own.shape, own.memory, own.bytes) for own in flat] == [
        ("s32", (), 0, 4), ("bf16", (3, 5), 1, 30), ("pred", (7,), 0, 7), ("f8e4m3fn", (4,), 0, 4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[2,2,2]T(1,0,2)", 2),
        ("mesh['x'=1,'y'=2,'z'=4], device_ids=([2,2,2]T(1,0,2)) {'y'}", 2),
        ("mesh['x'=2,'y'=2,'z'=2] {'y','z'}", 4),
    ],
)
def test_the_devices_of_a_collective(groups, size):
    text = PROGRAM.replace("mesh['a'=2,'b'=4] {'b'}", groups)
    assert group_size(parse_module(text).computations["body"].instructions["all-reduce.1"]) == size


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="it has no entry computation"):
        parse_module("HloModule nothing")


def test_a_compiled_loop_of_matmuls():
    """What the compiler makes of it on this CPU: 5 matmuls, and the gradient of each argument costs another one each."""
    looped = lambda x, w: jnp.sum(jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ w), x))
    given = jax.ShapeDtypeStruct((16, 32), np.float32), jax.ShapeDtypeStruct((32, 32), np.float32)
    flops = lambda function: count(parse_module(jax.jit(function).lower(*given).compile().as_text()), SPEEDS).flops
    one = 2 * 16 * 32 * 32
    assert flops(looped) == 5 * one
    assert flops(jax.grad(looped, argnums=(0, 1))) == 15 * one


def test_a_sharded_matmul_sends_its_sum():
    mesh = Mesh(np.array(jax.devices()[:4]), ("m",))
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    given = (
        jax.ShapeDtypeStruct((16, 64), np.float32, sharding=place(None, "m")),
        jax.ShapeDtypeStruct((64, 8), np.float32, sharding=place("m", None)),
    )
    compiled = jax.jit(lambda x, w: x @ w, out_shardings=place()).lower(*given).compile()
    counts = count(parse_module(compiled.as_text()), SPEEDS)
    assert counts.flops == 2 * 16 * 64 * 8 / 4
    assert counts.collectives == {"all-reduce": 1}
    assert counts.sent == {"all-reduce": 2 * 3 / 4 * 4 * 16 * 8}
