"""Prefill of one agent after the other, as on TPUs with long prompts, against prefill of all agents together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.config import LoraConfig, MeshConfig
from mft_jax.models.config import parse_model_config
from mft_jax.models.decoder import build
from mft_jax.models.lora import Adapter, init_society
from mft_jax.models.tpu_attention import TpuAttention
from mft_jax.parallel.mesh import make_mesh, sharding
from mft_jax.parallel.placement import to_devices
from mft_jax.programs import Programs
from mft_jax.programs.slots import Prompts, empty_slots
from tests.conftest import TINY, place_base, random_base

AGENTS, ROWS, COLUMNS, LENGTH, PREFIX = 3, 4, 64, 16, 8
# Five layers in passes of two: the last one is not in the loop.
MODEL = dataclasses.replace(parse_model_config(TINY), layers=5, windows=(7, None, 7, None, 7))
INTO = np.array([[2, ROWS, 3, 0], [ROWS, 1, 2, ROWS], [1, 0, 3, 2]])  # ROWS: no prompt in this place
INTO_OWN = np.array([[1, ROWS, 3, 2], [ROWS, 0, 2, ROWS], [1, 0, 3, 2]])  # on two devices: rows 0, 1 and rows 2, 3


@pytest.mark.parametrize("prefixed", [False, True], ids=["whole prompts", "after a prefix"])
@pytest.mark.parametrize("different", [4, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2)], ids=["one device", "four devices"])
def test_agent_by_agent_writes_the_same_cache(shape, different, prefixed):
    """`different` prompts in four places. Rows that get no prompt, and columns after the prompts, keep every bit.

    On four devices, each pair of them has half of the rows.
    """
    mesh = make_mesh(MeshConfig(agent=shape[0], data=shape[1], model=shape[2]))
    base, rng = place_base(mesh, random_base(MODEL)[1]), np.random.default_rng(0)
    lora = LoraConfig(rank=4, alpha=8.0)
    weights = jax.tree.map(lambda leaf: leaf + 0.02, init_society(MODEL, lora, jax.random.key(0), AGENTS))
    adapters = Adapter(weights, jnp.full(AGENTS, lora.scale))
    into = INTO if shape[1] == 1 else INTO_OWN
    rows = np.tile([0, 0, 1, 1] if different == 2 else np.arange(4), (AGENTS, 1))
    prompts = Prompts(
        rng.integers(0, 300, (AGENTS, different, LENGTH)), rng.integers(1, LENGTH, (AGENTS, different)), rows, into,
        np.zeros((AGENTS, 4)), np.full((AGENTS, 4), 9), rng.integers(0, 99, (AGENTS, 4, 2)),
    )  # fmt: skip
    prompts = Prompts(*(array.astype(np.int32) for array in prompts[:6]), prompts.keys.astype(np.uint32))
    before = rng.integers(0, 300, (AGENTS, PREFIX)).astype(np.int32)

    def prefilled(apart_from):
        backend = TpuAttention(mesh, interpret=True, apart_from=apart_from)
        graphdef, _ = build(MODEL, mesh=mesh, backend=backend, scan_layers=True)
        programs, tokens = Programs(graphdef, MODEL, mesh), different * LENGTH // shape[1]
        assert (backend.prompt_writer(different, LENGTH) is not None) == (tokens >= apart_from)
        slots = empty_slots(
            MODEL, mesh, agents=AGENTS, rows=ROWS, columns=COLUMNS, new_tokens=16, dtype="float32", backend=backend
        )
        old = np.random.default_rng(1)
        noise = lambda leaf: jax.device_put(old.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding)
        slots = jax.tree.map(noise, slots)
        untouched = jax.device_get(slots.keys), jax.device_get(slots.values)
        prefix = programs.read_prefix(base, adapters, before, np.bool_(False)) if prefixed else None
        placed = to_devices(prompts, sharding(mesh, "agent", "batch"))
        return untouched, jax.device_get(programs.prefill(base, adapters, slots, placed, np.bool_(False), prefix))

    old, together = prefilled(apart_from=1000)
    _, apart = prefilled(apart_from=different * LENGTH // shape[1])
    jax.tree.map(np.testing.assert_array_equal, together[2:], apart[2:])
    ends = PREFIX * prefixed + LENGTH
    for layer in range(MODEL.layers):
        for kind in range(2):
            before_it, wanted, found = old[kind][layer], together[kind][layer], apart[kind][layer]
            written = np.zeros(found.shape, bool)
            for agent in range(AGENTS):
                written[agent, into[agent][into[agent] < ROWS], :, :ends] = True
            np.testing.assert_allclose(found, wanted, atol=1e-4)
            np.testing.assert_array_equal(found[~written], before_it[~written])
            assert np.abs(found - before_it)[written].max() > 0.1
