"""Continuous-batching sampling for all agents at once: a grid of slots [A, B] over one frozen base."""

from mft_jax.sampling.sampler import Completion, Request, Sampler, Usage, row_key

__all__ = ["Completion", "Request", "Sampler", "Usage", "row_key"]
