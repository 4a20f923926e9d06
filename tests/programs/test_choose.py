import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.config import MeshConfig
from mft_jax.parallel.mesh import make_mesh
from mft_jax.programs import choose_kernel
from mft_jax.programs.choose import MAX_DRAWS, Choice, choose, inverse_cdf
from mft_jax.programs.choose_split import choose_split
from mft_jax.seeds import row_key


def nucleus(logits, temperature, top_p):
    """The definition of top-p: sort, keep the smallest set of tokens with a total probability of top_p, renormalize."""
    scaled = np.asarray(logits, np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros_like(probabilities)
    kept[order[before < top_p]] = probabilities[order[before < top_p]]
    return kept / kept.sum()


def masses_from(weights, thresholds):
    return jnp.sum(jnp.where(weights[:, None] >= thresholds[..., None], weights[:, None], 0), axis=-1)


def draw(weights, least, target):
    sums = jnp.cumsum(jnp.where(weights >= least, weights, 0), axis=1)
    index = jnp.minimum(jnp.sum(sums <= target, axis=1, keepdims=True), weights.shape[1] - 1)
    return index, jnp.take_along_axis(weights, index, axis=1) >= least


def split_in(parts):
    """`choose_split` over that many devices, with the arguments of `choose`."""
    mesh = make_mesh(MeshConfig(model=parts))

    def choose(logits, keys, index, active, temperature, top_p):
        arrays = (jnp.asarray(x)[None] for x in (logits, keys, index))
        settings = jnp.float32(temperature), jnp.float32(top_p)
        choice = choose_split(*arrays, *settings, mesh, masses_from=masses_from, draw=draw)
        return Choice(choice.token[0], choice.finite[0])

    return choose


ALGORITHMS = [pytest.param(choose, id="choose"), *(pytest.param(split_in(n), id=f"split in {n}") for n in (1, 4))]


@pytest.mark.parametrize("choose", ALGORITHMS)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.7, 0.5), (1.5, 1.0), (1.0, 0.05)])
def test_tokens_follow_the_renormalized_nucleus_distribution(choose, temperature, top_p):
    logits = 2.5 * np.random.default_rng(0).normal(size=300).astype(np.float32)
    draws = 20_000
    keys = np.stack([row_key("test", i) for i in range(draws)])
    active = jnp.ones(draws, bool)
    choice = jax.jit(choose)(jnp.tile(logits, (draws, 1)), keys, jnp.zeros(draws, int), active, temperature, top_p)
    tokens = choice.token
    assert choice.finite.all()
    counts = np.bincount(tokens, minlength=300)
    expected = nucleus(logits, temperature, top_p) * draws
    assert counts[expected == 0].sum() == 0
    usual = expected >= 5
    chi2 = ((counts[usual] - expected[usual]) ** 2 / expected[usual]).sum()
    freedom = max(usual.sum() - 1, 1)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("choose", ALGORITHMS)
def test_temperature_zero_is_greedy(choose):
    logits = np.random.default_rng(1).normal(size=(7, 300)).astype(np.float32)
    keys = np.stack([row_key(i) for i in range(7)])
    choice = jax.jit(choose)(jnp.asarray(logits), keys, jnp.zeros(7, int), jnp.ones(7, bool), 0.0, 0.9)
    np.testing.assert_array_equal(choice.token, logits.argmax(-1))


@pytest.mark.parametrize("choose", ALGORITHMS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_with_invalid_logits_are_flagged(choose, temperature):
    """Logits with NaN, with +inf, or with only -inf. The valid rows get the same tokens as without the invalid rows."""
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
    masked[:, 200:] = -np.inf  # -inf for some tokens only is valid
    assert draw(masked, keys, jnp.zeros(6, int), jnp.ones(6, bool), temperature, 0.9).finite.all()


def test_inactive_rows_do_not_lengthen_the_loop():
    """The loop ends when all active rows have a token. Their tokens do not depend on the inactive rows."""
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
        all_active = choose(jnp.asarray(logits), keys, jnp.zeros(rows, int), jnp.ones(rows, bool), 1.0, 0.3)
        few = choose(jnp.asarray(logits), keys, jnp.zeros(rows, int), jnp.arange(rows) < 3, 1.0, 0.3)
        none = choose(jnp.asarray(logits), keys, jnp.zeros(rows, int), jnp.zeros(rows, bool), 1.0, 0.3)
    assert few.token[:3].tolist() == all_active.token[:3].tolist()
    assert few.token[3:].tolist() == none.token[3:].tolist() == logits[3:].argmax(-1).tolist()
    assert 0 == draws[2] < draws[1] < draws[0] < MAX_DRAWS


def test_inverse_cdf_equals_searchsorted():
    rng = np.random.default_rng(2)
    weights = (rng.random((50, 333)) * (rng.random((50, 333)) < 0.3)).astype(np.float32)
    uniform = rng.random(50).astype(np.float32)
    expected = [np.searchsorted(np.cumsum(w), u * w.sum(), side="right") for w, u in zip(weights, uniform, strict=True)]
    got = np.asarray(inverse_cdf(jnp.asarray(weights), jnp.asarray(uniform)))
    assert (got == expected).mean() >= 0.98  # the two sums are rounded differently
    assert (weights[np.arange(50), got] > 0).all()


def test_kernels_for_a_split_vocabulary():
    """Two blocks of rows, the second not full, and two and a half blocks of 128 columns."""
    rng = np.random.default_rng(5)
    weights = jnp.asarray(np.pad(rng.random((11, 300)), ((0, 0), (0, 84))) ** 4, jnp.float32)
    thresholds = jnp.asarray(rng.random((11, 3)), jnp.float32)
    masses = choose_kernel.masses_from(weights, thresholds, interpret=True)
    np.testing.assert_allclose(masses, masses_from(weights, thresholds), rtol=1e-6)
    least = thresholds[:, :1]
    target = masses[:, :1] * jnp.asarray(rng.random((11, 1)), jnp.float32)
    index, counts = choose_kernel.draw(weights, least, target, interpret=True)
    np.testing.assert_array_equal(index, draw(weights, least, target)[0])
    assert counts.all()
    assert not choose_kernel.draw(weights, least, masses[:, :1] + 1, interpret=True)[1].any()
