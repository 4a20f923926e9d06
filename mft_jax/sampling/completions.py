"""The requests that a sampler takes, and the completions and costs that it returns."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from mft_jax.models.society import Society

# Why an answer ended: "stop": a stop token; "limit": max_new_tokens; "context": the end of the model's context;
# "unanswerable": nothing was sampled, because the prompt fills the context.
Reason = Literal["stop", "limit", "context", "unanswerable"]
Progress = Callable[[int, int], None]  # called with the number of rows that have just finished, and of their new tokens
# Called with the index of a request and its new token ids since the last call, without the stop token.
OnTokens = Callable[[int, Sequence[int]], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """One sequence to sample."""

    speaker: str | None  # name of the adapter; None: the base model
    prompt: Sequence[int]  # token ids
    key: np.ndarray  # [2] uint32, from `seeds.row_key`; key, prompt and adapter determine the text


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    ids: tuple[int, ...]  # without the stop token
    reason: Reason
    new_tokens: int  # number of sampled tokens, the stop token included
    log_probs: tuple[float, ...] | None = None  # of every new token, in nats, at temperature 1; None if not requested

    @property
    def complete(self) -> bool:
        """Whether the model ended the answer itself, with a stop token."""
        return self.reason == "stop"


@dataclasses.dataclass(frozen=True)
class Usage:
    """The cost of one pass of the sampler: all of its requests to the base model, or all to adapters."""

    adapted: bool  # True: sampled with adapters; False: from the base model
    lengths: tuple[tuple[int, int], ...]  # (prompt tokens, new tokens) of every row
    # Time from the dispatch of the compiled programs to their results, without compilation, times the number of devices.
    device_seconds: float
    # Tokens of prompts that were computed: once for a prefix that all prompts of a speaker share, and for a prompt of several
    # rows that start together.
    read_tokens: int = 0
    prefilled_tokens: int = 0  # the same with padding and empty places
    slot_steps: int = 0  # tokens that `decode` computed, those of free slots included


class Sampling(Protocol):
    """Anything that completes prompts: the sampler, or in tests a script of answers."""

    def sample(
        self,
        requests: Sequence[Request],
        society: Society = ...,
        *,
        on_progress: Progress | None = None,
        on_tokens: OnTokens | None = None,
    ) -> tuple[list[Completion], list[Usage]]: ...
