"""Fused projections, as in Phi-3: linear layers of one input that a checkpoint stores as one, such as [q | k | v].

If the outputs were split over devices in this order, one device would hold queries only and another values, and every
layer would move them between devices. So the base has them in another order: in groups of one kv head and its query heads,
or of some features of the gate and the same ones of the other half of the MLP. Then each device holds whole groups.
Adapters are stored and trained in the order of checkpoints, and reordered in compiled programs (`Adapter.grouped`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mft_jax.models.config import ModelConfig

_MOST_FEATURES = 128  # of the gate in one group: the number of lanes of a TPU's vector unit


class Groups(NamedTuple):
    """The order of a fused projection's outputs: `count` groups, each with `sizes[i]` outputs of part i."""

    count: int
    sizes: tuple[int, ...]

    def split(self, outputs: Any) -> tuple[Any, ...]:
        """The parts of `outputs` [..., out], each in its own order: queries [..., N * H], say."""
        lead = outputs.shape[:-1]
        grouped = outputs.reshape(*lead, self.count, sum(self.sizes))
        parts = jnp.split(grouped, np.cumsum(self.sizes)[:-1], axis=-1)
        return tuple(part.reshape(*lead, -1) for part in parts)

    def from_stored(self, outputs: Any) -> Any:
        """`outputs` [..., out], reordered from the order of a checkpoint, which has one part after the other."""
        lead, ends = outputs.shape[:-1], self.count * np.cumsum(self.sizes)[:-1]
        parts = [part.reshape(*lead, self.count, -1) for part in jnp.split(outputs, ends, axis=-1)]
        return jnp.concatenate(parts, axis=-1).reshape(outputs.shape)

    def stored_places(self) -> np.ndarray:
        """[out]: the index in a checkpoint of each output."""
        starts = self.count * np.cumsum((0, *self.sizes[:-1]))
        parts = [
            start + np.arange(self.count * size).reshape(self.count, size)
            for start, size in zip(starts, self.sizes, strict=True)
        ]
        return np.concatenate(parts, axis=1).reshape(-1)


def fused_groups(config: ModelConfig) -> Mapping[str, Groups]:
    """The groups of each fused projection of a model, by its name; empty if the model has none."""
    if not config.fused:
        return {}
    # As many devices as the kv heads can be split over hold whole groups of features too.
    features = math.gcd(config.ffw // math.gcd(config.ffw, config.kv_heads), _MOST_FEATURES)
    heads = config.heads // config.kv_heads * config.head_dim, config.head_dim, config.head_dim
    return {
        "qkv_proj": Groups(config.kv_heads, heads),
        "gate_up_proj": Groups(config.ffw // features, (features, features)),
    }
