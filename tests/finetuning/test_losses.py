"""The objectives: by hand, against torch with gradients, and in a compiled step over packed dialogues."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.errors import UserError
from mft_jax.finetuning import (
    ClippedPolicyGradient,
    DesirablePreference,
    DirectPreference,
    add_log_probs,
    hyper_of,
    likelihood,
    make_plan,
)
from mft_jax.models.society import Society
from mft_jax.programs.train import Signals, Targets, init_state
from mft_jax.sampling import Text, score_texts
from tests.finetuning.conftest import CONFIG, LESSONS, example

# Two rows of four targets. Sequence 0 has three targets in both rows, 1 has two, 2 has one, 3 has one; one is padding.
SEQUENCE = np.int32([[0, 0, 1, 1], [0, 2, 3, 0]])
USED = np.float32([[1, 1, 1, 1], [1, 1, 1, 0]])
LOG_PROBS = np.float32([[-1.0, -0.5, -2.0, -1.5], [-0.25, -3.0, -1.0, -50.0]])
REFERENCE = np.float32([[-1.5, -1.0, -1.0, -1.0], [-1.0, -2.0, -0.5, 0.0]])
OLD = np.float32([[-1.1, -0.9, -2.1, -1.5], [-0.2, -2.0, -1.6, 0.0]])
SUMS = np.array([1.75, -1.5, -1.0, -0.5])  # log p - log ref of each sequence


def targets(value, weight, log_probs=LOG_PROBS, entropy=None):
    value, weight = np.float32([*value, 0, 0]), np.float32([*weight, 0, 0])  # the last two sequences do not exist
    return Targets(log_probs, USED, entropy, Signals(SEQUENCE, REFERENCE, OLD, value, weight))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_direct_preference_by_hand():
    """Two pairs, (0, 1) and (2, 3), of which the second counts a quarter."""
    given = targets([0, 0, 0, 0], [1, 1, 0.25, 0.25])
    first, second = -math.log(sigmoid(0.5 * (1.75 + 1.5))), -math.log(sigmoid(0.5 * (-1.0 + 0.5)))
    assert DirectPreference(beta=0.5)(given) == pytest.approx((first + 0.25 * second) / 2, rel=1e-6)
    nll = (1.75 / 3, 3.0)  # per target of the preferred dialogues
    expected = (first + 2 * nll[0] + 0.25 * (second + 2 * nll[1])) / 2
    assert DirectPreference(beta=0.5, winner_nll=2.0)(given) == pytest.approx(expected, rel=1e-6)
    assert DirectPreference()(targets([0] * 4, [0] * 4)) == 0


def test_desirable_preference_by_hand():
    """Dialogue 0 is desirable, 2 is not; 1 and 3 are answers to other questions, and the estimate of the KL."""
    point = max(0, np.mean([SUMS[1], SUMS[3]]))
    assert point == 0
    expected = (0.8 * (1 - sigmoid(0.5 * 1.75)) + 1.2 * (1 - sigmoid(-0.5 * -1.0))) / 2
    given = targets([1, 0, -1, 0], [0.8, 0.8, 1.2, 1.2])
    assert DesirablePreference(beta=0.5)(given) == pytest.approx(expected, rel=1e-6)
    likelier = LOG_PROBS + np.float32([[0, 0, 2, 2], [0, 0, 1, 0]])  # now the answers to other questions gain
    point = np.mean([SUMS[1] + 4, SUMS[3] + 1])
    expected = (0.8 * (1 - sigmoid(0.5 * (1.75 - point))) + 1.2 * (1 - sigmoid(0.5 * (point + 1)))) / 2
    given = targets([1, 0, -1, 0], [0.8, 0.8, 1.2, 1.2], likelier)
    assert DesirablePreference(beta=0.5)(given) == pytest.approx(expected, rel=1e-6)


def test_the_policy_gradient_by_hand():
    """Advantages 2, -1, 1, -0.5; ratios above and below the clip range on both sides."""
    advantage, entropy = [2.0, -1.0, 1.0, -0.5], np.float32([[1, 2, 1, 1], [1, 1, 3, 99]])
    loss = []
    for new, old, sequence in [*zip(LOG_PROBS.flat, OLD.flat, SEQUENCE.flat, strict=True)][:7]:
        ratio, own = math.exp(new - old), advantage[sequence]
        loss.append(-min(ratio * own, min(max(ratio, 0.8), 1.3) * own))
    given = targets(advantage, [1] * 4)
    assert ClippedPolicyGradient(clip_high=0.3)(given) == pytest.approx(np.mean(loss), rel=1e-6)
    gaps = [math.exp(r - p) - (r - p) - 1 for p, r in zip(LOG_PROBS.flat, REFERENCE.flat, strict=True)][:7]
    full = ClippedPolicyGradient(clip_high=0.3, kl=0.1, entropy=0.01)
    assert (full.uses_entropy, full.uses_reference) == (True, True)
    expected = np.mean(loss) + 0.1 * np.mean(gaps) - 0.01 * 10 / 7
    assert full(targets(advantage, [1] * 4, entropy=entropy)) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_a_ratio_beyond_the_clip_range_is_zero():
    """Of the targets of sequences 0 (advantage 2) and 1 (-1): only ratios that already moved too far are cut off."""
    gradient = jax.grad(lambda x: ClippedPolicyGradient()(targets([2, -1, 1, -0.5], [1] * 4, x)))(LOG_PROBS)
    ratios = np.exp(LOG_PROBS - OLD)
    advantage = np.float32([2, -1, 1, -0.5])[SEQUENCE]
    cut = (advantage > 0) & (ratios > 1.2) | (advantage < 0) & (ratios < 0.8)
    assert cut.sum() == 1
    np.testing.assert_allclose(gradient, np.where(cut | (USED == 0), 0, -ratios * advantage / 7), rtol=1e-5)


def test_weights_of_the_likelihood():
    log_probs, weight = np.float32([[-1, -2, -9], [-3, -9, -9]]), np.float32([[0.5, 0.5, 0], [2, 0, 0]])
    assert likelihood(Targets(log_probs, weight)) == pytest.approx((0.5 + 1 + 6) / 3)


OBJECTIVES = [
    DirectPreference(beta=0.3, winner_nll=0.5),
    DesirablePreference(beta=0.3),
    ClippedPolicyGradient(clip_high=0.28, kl=0.05),
]


def torch_loss(objective, log_probs):
    """The same losses with torch's own functions, dialogue by dialogue."""
    import torch
    import torch.nn.functional as functional

    reference, old = torch.tensor(REFERENCE), torch.tensor(OLD)
    own = [torch.tensor((sequence == SEQUENCE) & (USED > 0)) for sequence in range(4)]
    ratio = [(log_probs - reference)[mask].sum() for mask in own]
    weight, value = [1.0, 0.25], [1.0, -1.0]
    if isinstance(objective, DirectPreference):
        pairs = [functional.softplus(-objective.beta * (ratio[2 * k] - ratio[2 * k + 1])) for k in range(2)]
        nll = [-log_probs[own[2 * k]].mean() for k in range(2)]
        return sum(w * (p + objective.winner_nll * n) for w, p, n in zip(weight, pairs, nll, strict=True)) / 2
    if isinstance(objective, DesirablePreference):
        point = torch.stack([ratio[1], ratio[3]]).mean().clamp(min=0).detach()
        gains = [v * objective.beta * (ratio[2 * k] - point) for k, v in enumerate(value)]
        return sum(w * torch.sigmoid(-gain) for w, gain in zip(weight, gains, strict=True)) / 2
    total = 0.0
    for sequence, advantage in ((0, 1.0), (2, -1.0)):
        change = torch.exp(log_probs - old)[own[sequence]]
        clipped = change.clamp(1 - objective.clip_low, 1 + objective.clip_high)
        total = total - torch.minimum(change * advantage, clipped * advantage).sum()
    used = torch.tensor(USED > 0)
    estimate = torch.expm1(reference - log_probs) - (reference - log_probs)
    return (total + objective.kl * estimate[used].sum()) / 7


@pytest.mark.torch
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_losses_and_gradients_equal_torch(objective):
    import torch

    value = [1, 0, -1, 0]
    weight = [1, 1, 0.25, 0.25]
    ours, gradient = jax.value_and_grad(lambda x: objective(targets(value, weight, x)))(LOG_PROBS)
    theirs = torch.tensor(LOG_PROBS, requires_grad=True)
    loss = torch_loss(objective, theirs)
    loss.backward()
    assert float(ours) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-5, atol=1e-7)
    assert np.abs(gradient).max() > 0.01


@pytest.fixture(scope="module")
def pairs():
    """Eight pairs of dialogues for two adapters, and none for a third."""
    rng = np.random.default_rng(3)
    words = lambda: "".join(rng.choice(list("0123456789+*= "), rng.integers(3, 14)))
    make = lambda i: example(f"q{i}", words(), words()) | {"weight": 0.5 + i % 2, "value": float((-1) ** i)}
    return [
        [make(i) | {"counterpart": example("", words(), words())["messages"]} for i in range(8)] for _ in range(2)
    ] + [[]]


@pytest.mark.parametrize(
    "objective", [DirectPreference(beta=0.3, reference="base"), ClippedPolicyGradient(entropy=0.1)]
)
def test_a_compiled_step_over_packed_dialogues(objective, pairs, chat, tiny, programs, one_device):
    """The first loss equals that of the dialogues scored one by one; an adapter without examples keeps its weights."""
    score = lambda texts, society: score_texts(programs, tiny.base, texts, society, rows=16)
    sets = dict(zip(tiny.society.names, pairs, strict=True))
    if objective.uses_old:  # its dialogues have no counterparts
        sets = {name: [{k: v for k, v in e.items() if k != "counterpart"} for e in own] for name, own in sets.items()}
    other = Society(tiny.society.names, jax.tree.map(lambda leaf: leaf * 0.9, tiny.society.adapters))
    known = add_log_probs(sets, objective, score, chat=chat, row_tokens=96, sampled=other, start=tiny.society)
    assert [field in known["ann"][0] for field in ("old", "reference")] == [
        objective.uses_old,
        objective.uses_reference,
    ]
    plan = make_plan(chat, LESSONS, known, CONFIG, seed=0, iteration=1, signals=True)
    assert max(len(row) for own in plan.adapters for row in own.rows) > 2
    state = init_state(jax.tree.map(jnp.array, tiny.weights))
    step = programs.train(objective, state, None, False)
    after, metrics = step(tiny.base, state, plan.batch(0), np.int32(0), hyper_of(plan, CONFIG, tiny.lora.scale))
    assert metrics.active.tolist() == [True, True, False]
    assert metrics.finite.tolist() == [True, True, True]
    np.testing.assert_array_equal(after.adapters["q_proj"]["a"][2], tiny.weights["q_proj"]["a"][2])
    own = plan.adapters[1]
    chosen = [known["bob"][i] for i in sorted({own.parts[i].example for row in own.rows_of(0) for i in row})]
    expected = slow_loss(objective, chosen, "bob", chat, tiny, other, score)
    assert float(metrics.loss[1]) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("objective", [DirectPreference(), DesirablePreference()])
def test_a_preference_needs_counterparts(objective, chat, tiny):
    """Without one, the other dialogue would count as one of log-probability 0."""
    sets = {"ann": [example("q7", "1+1", "2")], "bob": []}
    with pytest.raises(
        UserError, match=r"^The adapter ann has an example without a counterpart \(question q7\), but its"
    ):
        add_log_probs(sets, objective, None, chat=chat, row_tokens=96, sampled=tiny.society, start=tiny.society)


def slow_loss(objective, examples, name, chat, tiny, sampled, score):
    """The loss of one adapter from whole dialogues, without packing."""
    dialogues = [example[field] for example in examples for field in ("messages", "counterpart") if field in example]
    encoded = [chat.example(messages) for messages in dialogues]

    def of(society, speaker=name):
        scores = score([Text(speaker, ids.tolist()) for ids, _ in encoded], society)
        return [scored.log_probs[mask] for scored, (_, mask) in zip(scores, encoded, strict=True)]

    now = of(tiny.society)
    if isinstance(objective, DirectPreference):
        gains = [a.sum() - b.sum() for a, b in zip(now, of(Society(), None), strict=True)]
        lost = zip(examples, gains[0::2], gains[1::2], strict=True)
        return np.mean([-own["weight"] * math.log(sigmoid(objective.beta * (a - b))) for own, a, b in lost])
    ratios = [np.exp(a - b) for a, b in zip(now, of(sampled), strict=True)]
    gain, entropy_after = 0.0, entropies(tiny, tiny.society.index(name))
    for own, ratio, (ids, mask) in zip(examples, ratios, encoded, strict=True):
        advantage = own["value"]
        gain += np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage).sum()
        entropy = entropy_after(np.pad(ids, (0, 96 - len(ids))))
        gain += objective.entropy * entropy[: len(ids)][:-1][mask[1:]].sum()
    return -float(gain) / sum(map(len, ratios))


def entropies(tiny, index):
    """A function of the ids [T] of a text: the entropy of the distribution after each token, under one adapter."""

    @jax.jit
    def of(ids):
        log_probs = jax.nn.log_softmax(nnx.merge(tiny.graphdef, tiny.base)(ids[None], tiny.agent(index))[0])
        return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)

    return of
