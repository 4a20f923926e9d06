"""Rotary position embedding, with the linear, llama3 and longrope frequency scalings."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mft_jax.models.rope_config import LinearScaling, Llama3Scaling, LongScaling, Rope


def inverse_frequencies(rope: Rope, long: bool = False) -> np.ndarray:
    """Radians per position for each pair of rotated dimensions, [dims/2] in float32, as transformers computes them.

    `long` asks for the frequencies of sequences longer than longrope's original context.
    """
    exponents = np.arange(0, rope.dims, 2, dtype=np.float32) / np.float32(rope.dims)
    # The power is computed in double precision and rounded: one in six of numpy's own float32 powers is an ulp off, which
    # at position 2,048 changes an angle by 1e-4.
    periods = (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
    scaling = rope.scaling
    if isinstance(scaling, LongScaling):
        factors = np.array(scaling.long_factors if long else scaling.short_factors, np.float32)
        return (1.0 / (factors * periods)).astype(np.float32)
    frequencies = (1.0 / periods).astype(np.float32)
    if isinstance(scaling, LinearScaling):
        return (frequencies / np.float32(scaling.factor)).astype(np.float32)
    return _scale_llama3(frequencies, scaling) if isinstance(scaling, Llama3Scaling) else frequencies


def _scale_llama3(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
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
    rope: Rope, positions: Int[Array, "B T"], long: Bool[Array, "..."] | None = None
) -> tuple[Float[Array, "B T 1 dims"], Float[Array, "B T 1 dims"]]:
    """Cosine and sine of every position, in float32 whatever the compute dtype: bf16 angles are wrong past 256.

    With longrope both are multiplied by its attention factor.

    `long`, [] or [B, T], says which tokens belong to sequences longer than longrope's original context.
    """
    frequencies = jnp.asarray(inverse_frequencies(rope))
    if isinstance(rope.scaling, LongScaling) and long is not None:
        frequencies = jnp.where(long[..., None], inverse_frequencies(rope, long=True), frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    factor = rope.scaling.attention_factor if isinstance(rope.scaling, LongScaling) else 1.0
    # Doubled after the cosine, because XLA fuses a cosine, but not a concatenation, into every rotation on CPUs, and computes
    # it anew for each head and layer. A training step of the included model then took 8 % longer.
    twice = lambda half: jnp.concatenate([half, half], axis=-1)[..., None, :]
    return twice(jnp.cos(angles) * factor), twice(jnp.sin(angles) * factor)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T 1 dims"], sin: Float[Array, "B T 1 dims"]
) -> Float[Array, "B T N H"]:
    """Rotates each pair (i, i + dims/2) of the first `dims` dimensions by its position's angle; the others stay as they are."""
    dims = cos.shape[-1]
    rotating, rest = x[..., :dims], x[..., dims:]
    left, right = jnp.split(rotating, 2, axis=-1)
    rotated = (rotating * cos + jnp.concatenate([-right, left], axis=-1) * sin).astype(x.dtype)
    return rotated if dims == x.shape[-1] else jnp.concatenate([rotated, rest], axis=-1)
