import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.sampling.choose import choose, inverse_cdf
from mft_jax.sampling.sampler import row_key


def nucleus(logits, temperature, top_p):
    """The plain definition: sort, keep the smallest set with top_p of the mass, renormalise."""
    scaled = np.asarray(logits, np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros_like(probabilities)
    kept[order[before < top_p]] = probabilities[order[before < top_p]]
    return kept / kept.sum()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.7, 0.5), (1.5, 1.0), (1.0, 0.05)])
def test_tokens_are_distributed_as_the_renormalised_nucleus(temperature, top_p):
    logits = 2.5 * np.random.default_rng(0).normal(size=300).astype(np.float32)
    draws = 20_000
    keys = np.stack([row_key("test", i) for i in range(draws)])
    tokens = jax.jit(choose)(jnp.tile(logits, (draws, 1)), keys, jnp.zeros(draws, int), temperature, top_p)
    counts = np.bincount(tokens, minlength=300)
    expected = nucleus(logits, temperature, top_p) * draws
    assert counts[expected == 0].sum() == 0
    usual = expected >= 5
    chi2 = ((counts[usual] - expected[usual]) ** 2 / expected[usual]).sum()
    freedom = max(usual.sum() - 1, 1)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)


def test_temperature_zero_is_greedy():
    logits = np.random.default_rng(1).normal(size=(7, 300)).astype(np.float32)
    keys = np.stack([row_key(i) for i in range(7)])
    tokens = choose(jnp.asarray(logits), keys, jnp.zeros(7, int), 0.0, 0.9)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))


def test_inverse_cdf_equals_searchsorted():
    rng = np.random.default_rng(2)
    weights = (rng.random((50, 333)) * (rng.random((50, 333)) < 0.3)).astype(np.float32)
    uniform = rng.random(50).astype(np.float32)
    expected = [np.searchsorted(np.cumsum(w), u * w.sum(), side="right") for w, u in zip(weights, uniform, strict=True)]
    got = np.asarray(inverse_cdf(jnp.asarray(weights), jnp.asarray(uniform)))
    assert (got == expected).mean() >= 0.98  # the two round their sums differently
    assert (weights[np.arange(50), got] > 0).all()
