import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.config import TARGETS, MeshConfig
from mft_jax.errors import UserError
from mft_jax.models.config import parse_model_config
from mft_jax.models.lora import resolve_targets
from mft_jax.parallel.mesh import make_mesh
from tests.conftest import TINY, place_base, random_base

LONGROPE = {name: value for name, value in TINY.items() if name != "tie_word_embeddings"} | {
    "model_type": "phi3",
    "original_max_position_embeddings": 8,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4},
    "pad_token_id": 0,
}


def test_an_adapter_equals_merged_weights(tiny):
    """x W + scale x a b = x (W + scale a b), for every target of every layer."""
    tokens = jnp.arange(24).reshape(2, 12)
    run = jax.jit(lambda base, adapter: nnx.merge(tiny.graphdef, base)(tokens, adapter))

    @jax.jit
    def merged(base, adapter):
        model = nnx.merge(tiny.graphdef, base)
        for layer, block in enumerate(model.blocks):
            for target, pair in adapter.weights.items():
                kernel = getattr(block, target).kernel
                kernel[...] = kernel[...] + tiny.lora.scale * pair["a"][layer] @ pair["b"][layer]
        return model(tokens)

    adapted = run(tiny.base, tiny.agent(1))
    np.testing.assert_allclose(adapted, merged(tiny.base, tiny.agent(1)), atol=2e-4)
    assert np.abs(adapted - run(tiny.base, None)).max() > 0.1


def test_packed_segments_do_not_attend_to_each_other(tiny):
    hidden_of = jax.jit(lambda *rows: nnx.merge(tiny.graphdef, tiny.base).hidden(*rows))
    first, second = jnp.arange(1, 8), jnp.arange(50, 60)
    row = jnp.concatenate([first, second])[None]
    positions = jnp.concatenate([jnp.arange(7), jnp.arange(10)])[None]
    segments = jnp.concatenate([jnp.full(7, 1), jnp.full(10, 2)])[None]
    hidden = hidden_of(row, positions, segments)
    alone = hidden_of(second[None], jnp.arange(10)[None], jnp.zeros((1, 10), int))
    np.testing.assert_allclose(hidden[:, 7:], alone, atol=1e-5)


def test_longrope_frequencies_depend_on_the_length_of_each_packed_dialogue():
    config = parse_model_config(LONGROPE)
    graphdef, base = random_base(config)
    hidden_of = jax.jit(lambda *rows: nnx.merge(graphdef, base).hidden(*rows))
    lengths = (5, 12)  # one within the original context of 8 tokens, one longer
    tokens = jnp.concatenate([jnp.arange(3, 3 + length) for length in lengths])[None]
    positions = jnp.concatenate([jnp.arange(length) for length in lengths])[None]
    segments = jnp.concatenate([jnp.full(length, 1 + i) for i, length in enumerate(lengths)])[None]
    packed = hidden_of(tokens, positions, segments)
    for length, part in zip(lengths, jnp.split(packed, [lengths[0]], axis=1), strict=True):
        rows = jnp.arange(3, 3 + length)[None], jnp.arange(length)[None], jnp.zeros((1, length), int)
        np.testing.assert_allclose(part, hidden_of(*rows), atol=1e-4)


def test_targets_of_fused_projections():
    """All parts of a fused layer together name that layer. A single part cannot be adapted."""
    fused = parse_model_config(LONGROPE)
    assert resolve_targets(fused, TARGETS) == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert resolve_targets(fused, ["down_proj", "gate_up_proj"]) == ("gate_up_proj", "down_proj")
    with pytest.raises(
        UserError, match=r"lora\.targets has q_proj, but this model computes q_proj, k_proj, v_proj in one"
    ):
        resolve_targets(fused, ["q_proj", "o_proj"])


def test_sharded_fused_projections_compute_the_same():
    config = parse_model_config(LONGROPE)
    graphdef, base = random_base(config)
    tokens = jnp.arange(24).reshape(2, 12)
    run = jax.jit(lambda base: nnx.merge(graphdef, base)(tokens))
    split = place_base(make_mesh(MeshConfig(model=2)), base)
    kernel = nnx.to_pure_dict(split)["blocks"][0]["qkv_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape[1] == kernel.shape[1] // 2
    np.testing.assert_allclose(run(split), run(base), atol=1e-4)
