import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.config import TARGETS, LoraConfig, MeshConfig
from mft_jax.errors import UserError
from mft_jax.models.config import parse_model_config
from mft_jax.models.decoder import build
from mft_jax.models.lora import Adapter, init_weights, projection_shapes, resolve_targets
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
                weight = getattr(block, target).weight  # transposed: these tests run on CPUs
                weight[...] = weight[...] + (tiny.lora.scale * pair["a"][layer] @ pair["b"][layer]).T
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
    weight = nnx.to_pure_dict(split)["blocks"][0]["qkv_proj"]["weight"]
    assert weight.addressable_shards[0].data.shape[0] == weight.shape[0] // 2
    np.testing.assert_allclose(run(split), run(base), atol=1e-4)


@pytest.mark.parametrize(("layers", "remat"), [(4, False), (5, True)])  # a pass has two layers, so one of five is left
def test_scanned_layers_compute_the_same(layers, remat):
    """Hidden states, their gradients, and what attention keeps of each layer, with two layers of different windows."""
    config = dataclasses.replace(parse_model_config(TINY), layers=layers, windows=((3, None) * 3)[:layers])
    assert config.window_period == 2
    _, base = random_base(config)
    lora = LoraConfig(rank=4, alpha=8.0)
    weights = jax.tree.map(lambda leaf: leaf + 0.1, init_weights(config, lora, jax.random.key(0)))
    tokens = jnp.arange(24).reshape(2, 12)
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)

    def computed(scan_layers):
        graphdef, _ = build(config, scan_layers=scan_layers)

        @jax.jit
        def run(base, weights):
            model, adapter = nnx.merge(graphdef, base), Adapter(weights, jnp.float32(lora.scale))

            def attention(layer, q, k, v):
                window = config.windows[layer]
                return model.backend.causal(q, k, v, None, window=window, softcap=None), (k, v)

            hidden, kept = model.run(tokens, positions, adapter, attention, remat=remat)
            return jnp.sum(jnp.sin(hidden)), (hidden, kept)

        return jax.value_and_grad(run, argnums=1, has_aux=True)(base, weights)

    (_, (hidden, kept)), gradient = computed(True)
    (_, (expected, expected_kept)), expected_gradient = computed(False)
    assert len(kept) == layers
    assert np.abs(np.asarray(expected)).max() > 0.1
    for found, wanted in zip(
        jax.tree.leaves((hidden, kept, gradient)),
        jax.tree.leaves((expected, expected_kept, expected_gradient)),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"qkv_bias": True, "qk_norm": True}, id="biases and norms of heads"),
        pytest.param(
            {"out_norms": True, "norm_offset": True, "windows": (3, None, 3, None, 3)}, id="two windows, a layer left"
        ),
        pytest.param(None, id="fused, two sets of frequencies"),
    ],
)
def test_layers_in_parts_compute_the_same(changes):
    """Hidden states and gradients of packed rows on four devices, each with its rows and heads, and on one."""
    config = parse_model_config(LONGROPE if changes is None else TINY)
    config = dataclasses.replace(config, layers=5, windows=(None,) * 5)
    config, mesh = dataclasses.replace(config, **changes or {}), make_mesh(MeshConfig(data=2, model=2))
    lora = LoraConfig(rank=4, alpha=8.0, targets=resolve_targets(config, TARGETS))
    weights = jax.tree.map(lambda leaf: leaf + 0.1, init_weights(config, lora, jax.random.key(0)))
    tokens = jnp.arange(24).reshape(2, 12)
    positions, segments = (
        jnp.broadcast_to(jnp.arange(12) % 9, tokens.shape),
        1 + jnp.arange(24).reshape(2, 12) % 12 // 9,
    )

    def computed(mesh):
        graphdef, base = random_base(config)
        if mesh is not None:
            graphdef, base = build(config, mesh=mesh, scan_layers=True)[0], place_base(mesh, base)

        @jax.jit
        def run(weights, base):
            adapter = Adapter(weights, jnp.float32(lora.scale))
            hidden = nnx.merge(graphdef, base).hidden(tokens, positions, segments, adapter, remat="all but sums")
            return jnp.sum(jnp.sin(hidden)), hidden

        text = run.lower(weights, base).as_text()
        assert ("sdy.manual_computation" in text or "shard_map" in text) == (mesh is not None)
        return jax.value_and_grad(run, has_aux=True)(weights, base)

    (_, hidden), gradient = computed(mesh)
    (_, expected), expected_gradient = computed(None)
    assert np.abs(np.asarray(expected)).max() > 0.1
    for found, wanted in zip(
        jax.tree.leaves((hidden, gradient)), jax.tree.leaves((expected, expected_gradient)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())  # rounding in five layers


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])  # bfloat16: the copies are converted
def test_a_backward_pass_keeps_no_copies_of_the_weights(compute_dtype):
    """What it keeps of a scanned model are activations: no array with the weights of all layers."""
    config = dataclasses.replace(parse_model_config(TINY), layers=8, windows=(None,) * 8)
    graphdef, base = build(config, compute_dtype=compute_dtype, scan_layers=True)
    weights = jax.eval_shape(lambda: init_weights(config, LoraConfig(rank=4), jax.random.key(0)))
    tokens = jnp.arange(4)[None]

    def loss(weights, base):
        hidden = nnx.merge(graphdef, base).hidden(tokens, tokens, tokens * 0, Adapter(weights, jnp.float32(1)))
        return jnp.sum(hidden)

    backward = jax.eval_shape(lambda weights, base: jax.vjp(lambda own: loss(own, base), weights)[1], weights, base)
    kept = {leaf.shape for leaf in jax.tree.leaves(backward)}
    assert (8, 1, 4, 32) in kept  # [L, B, T, D], the input of each layer
    assert not kept & {(8, *shape) for shape in projection_shapes(config).values()}
