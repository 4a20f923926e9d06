"""Sampling with continuous batching for all speakers at once over one frozen base, and scoring of given texts."""

from mft_jax.sampling.completions import Completion, OnTokens, Progress, Reason, Request, Sampling, Usage
from mft_jax.sampling.lengths import PromptLengths
from mft_jax.sampling.sampler import NonFiniteLogits, Sampler
from mft_jax.sampling.scorer import ComparedText, Score, Text, compare_speakers, score_texts

__all__ = [
    "ComparedText", "Completion", "NonFiniteLogits", "OnTokens", "Progress", "PromptLengths", "Reason",
    "Request", "Sampler", "Sampling", "Score", "Text", "Usage", "compare_speakers", "score_texts",
]  # fmt: skip
