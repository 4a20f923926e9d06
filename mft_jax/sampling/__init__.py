"""Sampling with continuous batching for all speakers at once over one frozen base, and scoring of given texts."""

from mft_jax.sampling.completions import Completion, Progress, Reason, Request, Sampling, Usage
from mft_jax.sampling.sampler import NonFiniteLogits, Sampler
from mft_jax.sampling.scorer import Score, Text, score_texts

__all__ = [
    "Completion", "NonFiniteLogits", "Progress", "Reason", "Request", "Sampler", "Sampling", "Score", "Text", "Usage",
    "score_texts",
]  # fmt: skip
