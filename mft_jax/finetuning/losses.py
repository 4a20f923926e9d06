"""Losses as functions of token log-probabilities [B, M] in nats and their weights [B, M] (1 a target, 0 padding)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def likelihood(log_probs: Float[Array, "B M"], weight: Float[Array, "B M"]) -> Float[Array, ""]:
    """Mean negative log-likelihood of the targets; 0 where there are none."""
    return -jnp.sum(weight * log_probs) / jnp.maximum(jnp.sum(weight), 1)
