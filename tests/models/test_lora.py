"""The low-rank product and its hand-written gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from mft_jax.models.lora import Adapter, LowRank, low_rank_product


def plain(x, a, b, scale):
    return scale * (x @ a @ b)


def ours(x, a, b, scale):
    return low_rank_product(x, LowRank(a, b, scale))


def test_the_gradient_of_the_low_rank_product_is_that_of_autodiff():
    """For two agents that share x, in rows of tokens, as in a training step."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, a, b, weight = draw(3, 5, 8), draw(2, 8, 4), draw(2, 4, 6), draw(3, 5, 6)
    scale = jnp.asarray([2.0, 0.3])

    def gradients(product):
        loss = lambda x, a, b, scale: jnp.sum(weight * jnp.sin(product(x, a, b, scale)))
        return jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), in_axes=(None, 0, 0, 0))(x, a, b, scale)

    for mine, theirs in zip(gradients(ours), gradients(plain), strict=True):
        assert jnp.abs(theirs).max() > 1
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_product_is_computed_in_the_dtype_of_x():
    pair = LowRank(jnp.ones((8, 2)), jnp.ones((2, 3)), jnp.float32(0.5))
    y = low_rank_product(jnp.ones((4, 8), jnp.bfloat16), pair)
    assert y.dtype == jnp.bfloat16
    assert y.tolist() == [[8.0] * 3] * 4


def test_an_unstacked_adapter_has_the_scaled_factors_of_each_layer_in_their_dtype():
    rng = np.random.default_rng(1)
    weights = {"o_proj": {"a": rng.normal(size=(2, 8, 4)), "b": rng.normal(size=(2, 4, 6))}}
    adapter = Adapter(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), weights), jnp.float32(0.3))
    unstacked = adapter.unstack()
    assert len(unstacked.layers) == 2
    for index in range(2):
        pair = unstacked.by_layer()[index]["o_proj"]
        assert pair.a.dtype == pair.b.dtype == jnp.bfloat16
        np.testing.assert_array_equal(pair.a, adapter.weights["o_proj"]["a"][index])
        np.testing.assert_allclose(pair.b, 0.3 * weights["o_proj"]["b"][index], rtol=1e-2)
        x = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
        scaled, stacked = (low_rank_product(x, own.by_layer()[index]["o_proj"]) for own in (unstacked, adapter))
        np.testing.assert_allclose(scaled, stacked, rtol=0.02, atol=0.02)


def test_the_gradient_of_an_adapter_by_layer_is_one_concatenation():
    """That of an index would pad each layer's gradient to the size of the stack, and add up the stacks."""
    rng = np.random.default_rng(2)
    weights = {"o_proj": {"a": jnp.asarray(rng.normal(size=(3, 8, 4))), "b": jnp.asarray(rng.normal(size=(3, 4, 6)))}}

    def loss(weights):
        layers = Adapter(weights, jnp.float32(0.5)).by_layer()
        return sum((i + 1) * jnp.sum(own["o_proj"].a ** 2) for i, own in enumerate(layers))

    gradient = jax.grad(loss)
    factors = 2 * np.arange(1, 4).reshape(3, 1, 1)
    np.testing.assert_allclose(gradient(weights)["o_proj"]["a"], factors * weights["o_proj"]["a"], rtol=1e-6)
    program = str(jax.make_jaxpr(gradient)(weights))
    assert "concatenate" in program
    assert "pad[" not in program
