"""Rotary position embedding, with the llama3 frequency scaling (Llama 3.1 and later)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mft_jax.models.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Radians per position for each pair of dimensions, [H/2] in float32, as transformers computes them."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * np.pi / frequencies
    longest_kept = scaling.original_max_position / scaling.high_freq_factor
    shortest_slowed = scaling.original_max_position / scaling.low_freq_factor
    blend = (scaling.original_max_position / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    slowed = frequencies / scaling.factor
    blended = (1 - blend) * slowed + blend * frequencies
    result = np.where(wavelengths < longest_kept, frequencies, np.where(wavelengths > shortest_slowed, slowed, blended))
    return result.astype(np.float32)


def rotation(
    config: ModelConfig, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 H"], Float[Array, "B T 1 H"]]:
    """Cosine and sine of every position, in float32 whatever the compute dtype: bf16 angles are wrong past 256."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    angles = jnp.concatenate([angles, angles], axis=-1)[..., None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T 1 H"], sin: Float[Array, "B T 1 H"]
) -> Float[Array, "B T N H"]:
    """Turns each (i, i + H/2) pair of dimensions by its position's angle."""
    left, right = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-right, left], axis=-1)
    return (x * cos + turned * sin).astype(x.dtype)
