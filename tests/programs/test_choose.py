import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.programs.choose import MAX_DRAWS, choose, inverse_cdf
from mft_jax.seeds import row_key


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
    everyone = jnp.ones(draws, bool)
    choice = jax.jit(choose)(jnp.tile(logits, (draws, 1)), keys, jnp.zeros(draws, int), everyone, temperature, top_p)
    tokens = choice.token
    assert choice.finite.all()
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
    choice = choose(jnp.asarray(logits), keys, jnp.zeros(7, int), jnp.ones(7, bool), 0.0, 0.9)
    np.testing.assert_array_equal(choice.token, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_finite_logits_end_and_are_flagged(temperature):
    """NaN, infinity, or nothing but minus infinity; the sound rows among them get the tokens that they get alone."""
    logits = np.random.default_rng(3).normal(size=(6, 300)).astype(np.float32)
    keys = np.stack([row_key(i) for i in range(6)])
    draw = jax.jit(choose)
    alone = draw(logits, keys, jnp.zeros(6, int), jnp.ones(6, bool), temperature, 0.9)
    broken = logits.copy()
    broken[1, 7], broken[3, 9], broken[4] = np.nan, np.inf, -np.inf
    choice = draw(broken, keys, jnp.zeros(6, int), jnp.ones(6, bool), temperature, 0.9)
    assert choice.finite.tolist() == [True, False, True, False, False, True]
    assert choice.token[np.array([0, 2, 5])].tolist() == alone.token[np.array([0, 2, 5])].tolist()
    masked = broken.copy()
    masked[[1, 3, 4]] = logits[[1, 3, 4]]
    masked[:, 200:] = -np.inf  # tokens that a model rules out are no fault
    assert draw(masked, keys, jnp.zeros(6, int), jnp.ones(6, bool), temperature, 0.9).finite.all()


def test_rows_that_are_done_do_not_lengthen_the_loop():
    """Drawing ends when the active rows have their tokens, which are the same in any company, and after MAX_DRAWS."""
    rows, draws = 400, []
    logits = np.random.default_rng(4).normal(size=(rows, 300)).astype(np.float32)
    keys = np.stack([row_key(i) for i in range(rows)])

    def counted(cond, body, init):
        def step(carry):
            count, inner = carry
            return count + 1, body(inner)

        count, last = real(lambda carry: cond(carry[1]), step, (jnp.int32(0), init))
        draws.append(count)
        return last

    real = jax.lax.while_loop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "while_loop", counted)
        whole = choose(jnp.asarray(logits), keys, jnp.zeros(rows, int), jnp.ones(rows, bool), 1.0, 0.3)
        few = choose(jnp.asarray(logits), keys, jnp.zeros(rows, int), jnp.arange(rows) < 3, 1.0, 0.3)
        none = choose(jnp.asarray(logits), keys, jnp.zeros(rows, int), jnp.zeros(rows, bool), 1.0, 0.3)
    assert few.token[:3].tolist() == whole.token[:3].tolist()
    assert few.token[3:].tolist() == none.token[3:].tolist() == logits[3:].argmax(-1).tolist()
    assert 0 == draws[2] < draws[1] < draws[0] < MAX_DRAWS


def test_inverse_cdf_equals_searchsorted():
    rng = np.random.default_rng(2)
    weights = (rng.random((50, 333)) * (rng.random((50, 333)) < 0.3)).astype(np.float32)
    uniform = rng.random(50).astype(np.float32)
    expected = [np.searchsorted(np.cumsum(w), u * w.sum(), side="right") for w, u in zip(weights, uniform, strict=True)]
    got = np.asarray(inverse_cdf(jnp.asarray(weights), jnp.asarray(uniform)))
    assert (got == expected).mean() >= 0.98  # the two round their sums differently
    assert (weights[np.arange(50), got] > 0).all()
