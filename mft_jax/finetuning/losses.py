"""Training losses, from target log-probabilities [B, M] in nats and weights [B, M] (1: target, 0: padding)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def likelihood(log_probs: Float[Array, "B M"], weight: Float[Array, "B M"]) -> Float[Array, ""]:
    """The mean negative log-likelihood of the targets, in nats per target; 0 without targets."""
    return -jnp.sum(weight * log_probs) / jnp.maximum(jnp.sum(weight), 1)
