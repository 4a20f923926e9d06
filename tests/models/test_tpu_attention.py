"""The kernels of TPUs, in interpret mode, against the plain functions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.config import MeshConfig
from mft_jax.models.attention_backend import XlaAttention
from mft_jax.models.decode_kernel import attend_and_write
from mft_jax.models.tpu_attention import TpuAttention
from mft_jax.parallel.mesh import make_mesh

MASKS = [
    pytest.param(None, None, id="causal"),
    pytest.param(40, None, id="window"),
    pytest.param(700, 20.0, id="long window, soft cap"),
]


def normal(rng, *shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(size=shape), dtype)


@pytest.mark.parametrize(("window", "softcap"), MASKS)
def test_decode_kernel_equals_plain_attention(window, softcap):
    """Rows at the first and the last column, and at both sides of the border between two blocks.

    Columns that are not filled yet contain NaN, which no row may see.
    """
    rng, columns, dim = np.random.default_rng(0), 1024, 16
    q, k, v = normal(rng, 5, 1, 6, dim), normal(rng, 5, 1, 2, dim), normal(rng, 5, 1, 2, dim)
    position = jnp.asarray([0, columns - 1, 17, columns // 2, columns // 2 - 1])
    unfilled = (jnp.arange(columns) >= position[:, None])[:, None, :, None]
    keys, values = (normal(rng, 5, 2, columns, dim) for _ in range(2))
    xla, tpu = XlaAttention(), TpuAttention(make_mesh(MeshConfig()), interpret=True)
    settings = {"window": window, "softcap": softcap}
    expected, *_ = xla.decode(q, k, v, jnp.where(unfilled, 0, keys).swapaxes(2, 3), values, position, **settings)
    dirty = [jnp.where(unfilled, jnp.nan, cache) for cache in (keys, values)]
    output, *written = jax.jit(lambda *given: tpu.decode(*given, **settings))(q, k, v, *dirty, position)
    np.testing.assert_allclose(output, expected, atol=2e-6)
    for cache, old, new in zip(written, dirty, (k, v), strict=True):
        by_hand = np.array(old)
        for row, at in enumerate(position):
            by_hand[row, :, at] = new[row, 0]
        np.testing.assert_array_equal(cache, by_hand)


@pytest.mark.parametrize(
    ("dim", "kv_heads", "model", "shape"),
    [
        pytest.param(24, 2, 1, (2, 64, 128), id="padded"),
        pytest.param(64, 3, 1, (3, 64, 128), id="padded, because of an odd number"),
        pytest.param(64, 2, 2, (2, 64, 128), id="padded, because each device has one head"),
        pytest.param(64, 4, 1, (2, 64, 128), id="two side by side"),
        pytest.param(64, 4, 2, (2, 64, 128), id="two side by side on each device"),
        pytest.param(96, 4, 1, (1, 64, 384), id="four side by side"),
        pytest.param(128, 2, 1, (2, 64, 128), id="one fills the lanes"),
    ],
)
def test_heads_that_do_not_fill_the_lanes(dim, kv_heads, model, shape):
    """Two steps after a prompt of 40 columns are the same as without padding."""
    rng, settings = np.random.default_rng(4), {"window": None, "softcap": None}
    xla, tpu = XlaAttention(), TpuAttention(make_mesh(MeshConfig(model=model)), interpret=True)
    assert tpu.cache_shapes(kv_heads, 64, dim) == (shape, shape)
    prompt = [jnp.pad(normal(rng, 3, 40, kv_heads, dim), ((0, 0), (0, 24), (0, 0), (0, 0))) for _ in "kv"]
    decode = jax.jit(lambda *given: tpu.decode(*given, **settings))
    plain, cache = xla.to_cache(*prompt), tpu.to_cache(*prompt)
    assert cache[0].shape == cache[1].shape == (3, *shape)
    for step in range(2):
        q, position = normal(rng, 3, 1, 2 * kv_heads, dim) * dim**-0.5, jnp.asarray([5, 17, 40]) + step
        k, v = (normal(rng, 3, 1, kv_heads, dim) for _ in "kv")
        expected, *plain = xla.decode(q, k, v, *plain, position, **settings)
        output, *cache = decode(q, k, v, *cache, position)
        np.testing.assert_allclose(output, expected, atol=2e-6)


def test_decode_kernel_writes_whole_tiles_only():
    """A cache whose columns do not fill tiles is refused, because the last tile would be written beyond it."""
    rng = np.random.default_rng(1)
    cache, new = normal(rng, 1, 1, 20, 8, dtype=jnp.bfloat16), normal(rng, 1, 1, 1, 8, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="20 columns, expected a multiple of 16"):
        attend_and_write(new, new, new, cache, cache, jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize(("window", "softcap"), MASKS)
def test_splash_attention_equals_plain_attention(window, softcap):
    """Rows of three packed segments and padding, whose length is no multiple of a block; also the gradients."""
    rng, time = np.random.default_rng(2), 150
    q, k, v = normal(rng, 2, time, 4, 16), normal(rng, 2, time, 2, 16), normal(rng, 2, time, 2, 16)
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 2, 0, 0]], [60, 50, 30, 10], axis=1))
    real = (segments > 0)[..., None]
    weights = jnp.where(real, normal(rng, 2, time, 4 * 16), 0)

    def loss(backend):
        def of(q, k, v):
            output = backend.causal(q, k, v, segments, window=window, softcap=softcap)
            return jnp.sum(output * weights), output

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True))

    (_, expected), expected_gradients = loss(XlaAttention())(q, k, v)
    (_, output), gradients = loss(TpuAttention(make_mesh(MeshConfig()), interpret=True))(q, k, v)
    np.testing.assert_allclose(jnp.where(real, output, 0), jnp.where(real, expected, 0), atol=3e-6)
    for got, plain in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, plain, atol=1e-5)


@pytest.mark.parametrize(("window", "softcap"), MASKS)
@pytest.mark.parametrize("kind", ["xla", "tpu"])
def test_attention_after_a_prefix_is_that_of_the_last_tokens(kind, window, softcap):
    """160 tokens after 70, more than one chunk of queries and one block; also of two segments."""
    rng, (before, time) = np.random.default_rng(6), (70, 160)
    q = normal(rng, 2, before + time, 4, 16) * 16**-0.5
    k, v = (normal(rng, 2, before + time, 2, 16) for _ in "kv")
    segments = jnp.asarray(np.repeat([[1, 2], [1, 1]], [90, 140], axis=1))
    backend = XlaAttention() if kind == "xla" else TpuAttention(make_mesh(MeshConfig()), interpret=True)
    attend = jax.jit(partial(backend.causal, window=window, softcap=softcap))
    whole = jax.jit(partial(XlaAttention().causal, window=window, softcap=softcap))
    for ids in (None, segments):
        np.testing.assert_allclose(attend(q[:, before:], k, v, ids), whole(q, k, v, ids)[:, before:], atol=3e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2), (1, 2, 2)])
def test_kernels_on_a_mesh_mapped_over_agents(shape):
    """Decoding and prefill of two agents on one device, and on meshes that split agents, rows and heads."""
    rng, mesh = np.random.default_rng(3), make_mesh(MeshConfig(agent=shape[0], data=shape[1], model=shape[2]))
    backend, plain = TpuAttention(mesh, interpret=True), XlaAttention()
    agents, rows, columns, dim = 2, 2, 64, 8
    q = normal(rng, agents, rows, 1, 4, dim)
    k, v = (normal(rng, agents, rows, 1, 2, dim) for _ in range(2))
    keys, values = (normal(rng, agents, rows, 2, columns, dim) for _ in range(2))
    position = jnp.asarray([[3, 60], [0, 33]])
    settings = {"window": None, "softcap": None}
    mapped = jax.jit(jax.vmap(lambda *own: backend.decode(*own, **settings), spmd_axis_name="agent"))
    output, new_keys, new_values = mapped(q, k, v, keys, values, position)
    expected = jax.vmap(lambda *own: plain.decode(*own, **settings))(q, k, v, keys.swapaxes(3, 4), values, position)
    np.testing.assert_allclose(output, expected[0], atol=2e-6)
    np.testing.assert_array_equal(new_keys, expected[1].swapaxes(3, 4))
    np.testing.assert_array_equal(new_values, expected[2])
    long = normal(rng, agents, rows, 20, 4, dim), *(normal(rng, agents, rows, 20, 2, dim) for _ in range(2))
    mapped = jax.jit(jax.vmap(lambda *own: backend.causal(*own, None, **settings), spmd_axis_name="agent"))
    expected = jax.vmap(lambda *own: plain.causal(*own, None, **settings))(*long)
    np.testing.assert_allclose(mapped(*long), expected, atol=2e-6)
