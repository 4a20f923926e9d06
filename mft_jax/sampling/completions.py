"""What is asked of a sampler and what it gives back."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from mft_jax.models.society import Society

# Why an answer ended: at a stop token; at max_new_tokens; at the end of the model's context; or it never began, because
# the prompt leaves no room in the context.
Reason = Literal["stop", "limit", "context", "unanswerable"]
Progress = Callable[[int, int], None]  # (finished rows, new tokens) since the last call


@dataclasses.dataclass(frozen=True)
class Request:
    """One sequence to sample."""

    speaker: str | None  # whose adapter; None: the base model
    prompt: Sequence[int]  # token ids
    key: np.ndarray  # [2] uint32, from `seeds.row_key`: with prompt and adapter it decides the text


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    ids: tuple[int, ...]  # without the stop token
    reason: Reason
    new_tokens: int  # the stop token included: what was paid for
    log_probs: tuple[float, ...] | None = None  # of every new token, in nats, at temperature 1, when asked for

    @property
    def complete(self) -> bool:
        """The model itself ended the answer."""
        return self.reason == "stop"


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a call of the sampler cost."""

    adapted: bool  # adapters were on, or it was the base model itself
    lengths: tuple[tuple[int, int], ...]  # (prompt tokens, new tokens) of every row
    device_seconds: (
        float  # from dispatch to completion of the compiled programs, compilation left out, over all devices
    )


class Sampling(Protocol):
    """Anything that can complete prompts: the sampler, or a script of answers."""

    def sample(
        self, requests: Sequence[Request], society: Society = ..., *, on_progress: Progress | None = None
    ) -> tuple[list[Completion], list[Usage]]: ...
