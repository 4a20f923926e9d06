"""Maps a function of one agent's adapter and rows over all agents; the base is never mapped."""

from collections.abc import Callable
from typing import Any

import jax

from mft_jax.models.lora import Adapter


def over_agents(function: Callable[..., Any], adapters: Adapter | None, *rows: Any) -> Any:
    """`function(adapter, *rows)` for every agent; rows have the agent axis first. Without adapters, for the base model."""
    if adapters is None:
        return jax.vmap(lambda *own: function(None, *own))(*rows)
    return jax.vmap(function)(adapters, *rows)
