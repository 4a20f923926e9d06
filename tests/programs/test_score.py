"""Scores of batches of texts, compared with the definition computed for one text at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.errors import UserError
from mft_jax.programs import score
from mft_jax.sampling import ComparedText, Text, compare_speakers, score_texts
from tests.conftest import NAMES


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    speakers = (*NAMES, None, "ann", None, "ann")
    lengths = (5, 23, 1, 17, 30, 2, 9)
    draw = lambda length: rng.integers(0, 300, size=length).tolist()
    pooled = (None, [False] * 20 + [True] * 3, None, None, [True] + [False] * 29, None, [False] * 9)
    return [Text(s, draw(n), p) for s, n, p in zip(speakers, lengths, pooled, strict=True)]


@pytest.fixture(scope="module")
def forward(tiny):
    """Computes hidden states and log-probabilities over the vocabulary for 32 tokens and one adapter.

    Shorter texts are padded on the right, which does not change the earlier tokens.
    """

    @jax.jit
    def run(tokens, adapter):
        model = nnx.merge(tiny.graphdef, tiny.base)
        hidden = model.hidden(tokens[None], jnp.arange(32)[None], jnp.ones((1, 32), int), adapter)[0]
        return hidden, jax.nn.log_softmax(model.logits(hidden), axis=-1)

    return run


def plain(forward, tiny, text):
    """(log-probability of each token given the tokens before it, mean hidden state of the pooled tokens)."""
    adapter = None if text.speaker is None else tiny.agent(NAMES.index(text.speaker))
    hidden, scores = forward(jnp.asarray(text.tokens + [0] * (32 - len(text.tokens))), adapter)
    hidden = hidden[: len(text.tokens)]
    log_probs = [0.0] + [float(scores[t - 1, text.tokens[t]]) for t in range(1, len(text.tokens))]
    mask = np.ones(len(text.tokens), bool) if text.pooled is None else np.asarray(text.pooled)
    mean = hidden[mask].mean(axis=0) if mask.any() else np.zeros(hidden.shape[-1])
    return log_probs, mean


def test_texts_that_the_model_or_the_society_does_not_know(tiny, programs):
    with pytest.raises(ValueError, match="has the token id 300, but those of the model are 0 to 299"):
        score_texts(programs, tiny.base, [Text(None, [1, 300])])
    with pytest.raises(KeyError, match="unknown adapter 'nobody'"):
        score_texts(programs, tiny.base, [Text("nobody", [1, 2])], tiny.society)


@pytest.mark.parametrize(
    "most", [score.MAX_LOGITS, 3 * 4 * 300 * 5], ids=["all tokens at once", "five tokens at a time"]
)
def test_batched_scores_equal_those_of_single_texts(forward, tiny, programs, texts, monkeypatch, most):
    monkeypatch.setattr(score, "MAX_LOGITS", most)
    fresh = programs.__class__(tiny.graphdef, tiny.config, programs.mesh)
    scores = score_texts(fresh, tiny.base, texts, tiny.society, rows=2)
    for text, found in zip(texts, scores, strict=True):
        log_probs, mean = plain(forward, tiny, text)
        assert found.log_probs.shape == (len(text.tokens),)
        np.testing.assert_allclose(found.log_probs, log_probs, atol=2e-4)
        np.testing.assert_allclose(found.pooled, mean, atol=2e-4)


def test_texts_longer_than_the_context(tiny, programs):
    assert score_texts(programs, tiny.base, []) == []
    with pytest.raises(UserError, match="A text to score has 129 tokens, but the model's context is 128 tokens"):
        score_texts(programs, tiny.base, [Text(None, [1] * 129)])


@pytest.mark.parametrize(
    "most", [score.MAX_LOGITS, 2 * 6 * 300 * 5], ids=["all tokens at once", "few tokens at a time"]
)
def test_divergences_of_pairs_of_speakers(forward, tiny, programs, texts, monkeypatch, most):
    """Compared with the definition. A speaker does not diverge from itself."""
    monkeypatch.setattr(score, "MAX_LOGITS", most)
    fresh = programs.__class__(tiny.graphdef, tiny.config, programs.mesh)
    pairs = [("ann", "bob"), ("bob", "ann"), ("cy", "ann"), ("ann", None), ("bob", "bob"), (None, None), ("ann", "bob")]
    compared = [ComparedText(*pair, text.tokens) for pair, text in zip(pairs, texts, strict=True)]
    for text, found in zip(compared, compare_speakers(fresh, tiny.base, compared, tiny.society, rows=2), strict=True):
        tokens = jnp.asarray(list(text.tokens) + [0] * (32 - len(text.tokens)))
        logs = [
            forward(tokens, None if name is None else tiny.agent(NAMES.index(name)))[1]
            for name in (text.speaker, text.other)
        ]
        expected = np.concatenate([[0.0], jnp.sum(jnp.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)])[: len(text.tokens)]
        np.testing.assert_allclose(found, expected, atol=2e-4)
        assert (found.max() > 0.01) == (text.speaker != text.other and len(text.tokens) > 1)


def test_the_base_model_is_compared_with_adapters_only_as_the_other(tiny, programs):
    with pytest.raises(ValueError, match="only an adapter with the base model"):
        compare_speakers(programs, tiny.base, [ComparedText(None, "ann", [1, 2])], tiny.society)
