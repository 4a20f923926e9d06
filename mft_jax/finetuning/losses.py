"""Training losses, as functions of the log-probabilities of an adapter's targets in one step.

They are averaged over what the step holds: the likelihood and the policy gradient over targets, the preferences over
examples. All sums are over float32 values in a fixed order, so that a resumed run gives the same bytes.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mft_jax.programs.arrays import AnyArray
from mft_jax.programs.train import Reference, Signals, Targets


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The mean negative log-likelihood of the targets, weighted, in nats per target; 0 without targets."""

    uses_signals = uses_entropy = uses_old = uses_reference = False
    reference: ClassVar[Reference] = "start"

    def __call__(self, targets: Targets) -> Float[Array, ""]:
        return -jnp.sum(targets.weight * targets.log_probs) / jnp.maximum(jnp.sum(targets.weight), 1)


likelihood = Likelihood()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectPreference:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290), with weighted pairs as in ScPO (arXiv 2411.04109).

    The loss of a pair is -log sigmoid(beta ((log p+ - log ref+) - (log p- - log ref-))), with log-probabilities summed
    over the targets of the preferred (+) and of the rejected (-) dialogue, plus `winner_nll` times the mean negative
    log-likelihood of the targets of the preferred one. It is multiplied by the weight of the pair.
    """

    beta: float = 0.1
    winner_nll: float = 0.0
    reference: Reference = "start"
    uses_signals = uses_reference = uses_counterparts = True
    uses_entropy = uses_old = False

    def __call__(self, targets: Targets) -> Float[Array, ""]:
        signals = _signals(targets)
        gain = _sequence_sums(targets, targets.log_probs - signals.reference)
        loss = -jax.nn.log_sigmoid(self.beta * (gain[0::2] - gain[1::2]))
        likelihood = _sequence_sums(targets, targets.log_probs) / jnp.maximum(_sequence_sums(targets, 1.0), 1)
        return _mean(loss - self.winner_nll * likelihood[0::2], signals.weight[0::2])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DesirablePreference:
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306): dialogues that are desirable or undesirable, without pairs.

    With r the log-ratio log p - log ref of a dialogue, the loss is 1 - sigmoid(beta (r - z)) for a desirable dialogue and
    1 - sigmoid(beta (z - r)) for an undesirable one, times its weight. The reference point z estimates the KL divergence
    from the reference: the mean log-ratio, at least 0, of the counterparts in the step, which are answers to other
    questions. No gradient flows through z.
    """

    beta: float = 0.1
    reference: Reference = "start"
    uses_signals = uses_reference = uses_counterparts = True
    uses_entropy = uses_old = False

    def __call__(self, targets: Targets) -> Float[Array, ""]:
        signals = _signals(targets)
        ratio = _sequence_sums(targets, targets.log_probs - signals.reference)
        weight, unrelated = signals.weight[0::2], jax.lax.stop_gradient(ratio[1::2])
        point = jnp.maximum(_mean(unrelated, (weight > 0).astype(ratio.dtype)), 0)
        loss = 1 - jax.nn.sigmoid(self.beta * signals.value[0::2] * (ratio[0::2] - point))
        return _mean(loss, weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient:
    """The clipped policy gradient (PPO, arXiv 1707.06347) with one advantage per dialogue (GRPO, arXiv 2402.03300).

    With ratio = p / p_old of a target, its loss is -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) *
    advantage), plus `kl` times an estimate of the KL divergence from the reference (ref / p - log(ref / p) - 1, which is
    never negative), minus `entropy` times the entropy of the distribution. It is averaged over the targets of a step, so
    long and short dialogues count by their length (DAPO, arXiv 2503.14476).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.0
    entropy: float = 0.0
    reference: Reference = "start"
    uses_signals = uses_old = True

    @property
    def uses_reference(self) -> bool:
        return self.kl != 0

    @property
    def uses_entropy(self) -> bool:
        return self.entropy != 0

    def __call__(self, targets: Targets) -> Float[Array, ""]:
        signals, used = _signals(targets), targets.weight > 0
        ratio = jnp.exp(_log_ratio(targets.log_probs - signals.old, used))
        advantage = jnp.asarray(signals.value)[signals.sequence]
        clipped = jnp.clip(ratio, 1 - self.clip_low, 1 + self.clip_high)
        loss = -jnp.minimum(ratio * advantage, clipped * advantage)
        if self.kl:
            gap = _log_ratio(signals.reference - targets.log_probs, used)
            loss += self.kl * (jnp.exp(gap) - gap - 1)
        if targets.entropy is not None:
            loss -= self.entropy * targets.entropy
        return _mean(loss, targets.weight)


def _signals(targets: Targets) -> Signals:
    assert targets.signals is not None, "the batches of this objective are made with signals"
    return targets.signals


def _sequence_sums(targets: Targets, values: AnyArray | float) -> Float[Array, "S"]:
    """The sum of `values` [B, M] over the targets of each sequence.

    A sum over a mask, because the order in which some devices scatter additions differs from run to run.
    """
    signals = _signals(targets)
    own = signals.sequence[..., None] == jnp.arange(signals.weight.shape[-1])
    used = jnp.where(targets.weight > 0, values, 0.0)
    return jnp.sum(jnp.where(own, used[..., None], 0.0), axis=(0, 1))


def _mean(loss: AnyArray, weight: AnyArray) -> Float[Array, ""]:
    """The sum of weighted losses, divided by how many of them there are (weights above 0); 0 if there are none."""
    return jnp.sum(jnp.where(weight > 0, weight * loss, 0.0)) / jnp.maximum(jnp.sum(weight > 0), 1)


def _log_ratio(difference: AnyArray, used: AnyArray) -> Array:
    """A difference of log-probabilities, clipped to -20..20 so that its exponential is finite; 0 for padding."""
    return jnp.clip(jnp.where(used, difference, 0.0), -20, 20)
