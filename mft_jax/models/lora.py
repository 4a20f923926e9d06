"""Low-rank adapters: a plain pytree beside the frozen base, stacked over layers here and over agents by the callers.

An adapter is {target: {"a": [L, in, R], "b": [L, R, out]}}; a society's adapters have one more leading axis, A.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mft_jax.config import FUSED, TARGETS, LoraConfig
from mft_jax.errors import UserError
from mft_jax.models.config import ModelConfig

Adapter = PyTree[Float[Array, "..."]]


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


def init_adapter(config: ModelConfig, lora: LoraConfig, key: Key[Array, ""]) -> Adapter:
    """One agent's adapter: `a` uniform within 1/sqrt(in) as in PEFT, `b` zero, so that it starts as the base model."""
    shapes, dtype = projection_shapes(config), jnp.dtype(lora.dtype)
    adapter = {}
    for target in resolve_targets(config, lora.targets):
        size_in, size_out = shapes[target]
        bound = size_in**-0.5
        own = jax.random.fold_in(key, (*TARGETS, *FUSED).index(target))
        a = jax.random.uniform(own, (config.layers, size_in, lora.rank), jnp.float32, -bound, bound)
        adapter[target] = {"a": a.astype(dtype), "b": jnp.zeros((config.layers, lora.rank, size_out), dtype)}
    return adapter


def init_adapters(config: ModelConfig, lora: LoraConfig, key: Key[Array, ""], agents: int) -> Adapter:
    """Adapters of `agents` agents, stacked; agent i's does not depend on how many others there are."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(agents))
    return jax.vmap(lambda k: init_adapter(config, lora, k))(keys)
