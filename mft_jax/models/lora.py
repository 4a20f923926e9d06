"""Low-rank adapters: a plain pytree beside the frozen base, stacked over layers here and over a society by the callers.

The weights of one adapter are {target: {"a": [L, in, R], "b": [L, R, out]}}; those of a society have one more leading
axis, A.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mft_jax.config import FUSED, TARGETS, LoraConfig
from mft_jax.errors import UserError
from mft_jax.models.config import ModelConfig

AdapterWeights = PyTree[Float[Array, "..."]]


class LowRank(NamedTuple):
    """The change of one linear layer: x -> scale * (x @ a) @ b."""

    a: Float[Array, "in R"]
    b: Float[Array, "R out"]
    scale: Float[Array, ""]


class Adapter(NamedTuple):
    """An adapter with its scale, alpha / rank, which so is data: one compiled program serves adapters of any scale."""

    weights: AdapterWeights
    scale: Float[Array, "..."]  # [] of one adapter, [A] of a society

    def layer(self, index: int) -> dict[str, LowRank]:
        """One adapter's changes to the linear layers of a block, by the name of the layer."""
        return {
            target: LowRank(pair["a"][index], pair["b"][index], self.scale) for target, pair in self.weights.items()
        }


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of every linear layer of a decoder block."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    if config.fused:
        return {
            "qkv_proj": (config.embed, q + 2 * kv),
            "o_proj": (q, config.embed),
            "gate_up_proj": (config.embed, 2 * config.ffw),
            "down_proj": (config.ffw, config.embed),
        }
    return {
        "q_proj": (config.embed, q),
        "k_proj": (config.embed, kv),
        "v_proj": (config.embed, kv),
        "o_proj": (q, config.embed),
        "gate_proj": (config.embed, config.ffw),
        "up_proj": (config.embed, config.ffw),
        "down_proj": (config.ffw, config.embed),
    }


def resolve_targets(config: ModelConfig, targets: Iterable[str]) -> tuple[str, ...]:
    """The layers of this model that `targets` mean: where it fuses projections, all parts together mean the fused one.

    Raises UserError for a part of a fused projection alone, and for a layer that the model does not have.
    """
    asked, shapes = set(targets), projection_shapes(config)
    for fused, parts in FUSED.items():
        if fused in shapes and asked & set(parts):
            if not asked >= set(parts):
                raise UserError(
                    f"lora.targets has {', '.join(sorted(asked & set(parts)))}, but this model computes {', '.join(parts)} "
                    f"in one layer: name all of them, or {fused}."
                )
            asked = asked - set(parts) | {fused}
    unknown = sorted(asked - set(shapes))
    if unknown:
        raise UserError(f"lora.targets has {unknown[0]}, which this model does not have; it has {', '.join(shapes)}.")
    return tuple(name for name in shapes if name in asked)


def init_weights(config: ModelConfig, lora: LoraConfig, key: Key[Array, ""]) -> AdapterWeights:
    """One fresh adapter: `a` uniform within 1/sqrt(in) as in PEFT, `b` zero, so that it computes what the base computes."""
    shapes, dtype = projection_shapes(config), jnp.dtype(lora.dtype)
    adapter = {}
    for target in resolve_targets(config, lora.targets):
        size_in, size_out = shapes[target]
        bound = size_in**-0.5
        own = jax.random.fold_in(key, (*TARGETS, *FUSED).index(target))
        a = jax.random.uniform(own, (config.layers, size_in, lora.rank), jnp.float32, -bound, bound)
        adapter[target] = {"a": a.astype(dtype), "b": jnp.zeros((config.layers, lora.rank, size_out), dtype)}
    return adapter


def init_society(config: ModelConfig, lora: LoraConfig, key: Key[Array, ""], adapters: int) -> AdapterWeights:
    """The weights of `adapters` fresh adapters, stacked; those of number i do not depend on how many others there are."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(adapters))
    return jax.vmap(lambda k: init_weights(config, lora, k))(keys)
