"""Low-rank adapters: a plain pytree beside the frozen base, stacked over layers here and over agents by the callers.

An adapter is {target: {"a": [L, in, R], "b": [L, R, out]}}; a society's adapters have one more leading axis, A.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mft_jax.config import TARGETS, LoraConfig
from mft_jax.models.config import ModelConfig

Adapter = PyTree[Float[Array, "..."]]


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of every linear layer of a decoder block."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "q_proj": (config.embed, q),
        "k_proj": (config.embed, kv),
        "v_proj": (config.embed, kv),
        "o_proj": (q, config.embed),
        "gate_proj": (config.embed, config.ffw),
        "up_proj": (config.embed, config.ffw),
        "down_proj": (config.ffw, config.embed),
    }


def init_adapter(config: ModelConfig, lora: LoraConfig, key: Key[Array, ""]) -> Adapter:
    """One agent's adapter: `a` uniform within 1/sqrt(in) as in PEFT, `b` zero, so that it starts as the base model."""
    shapes = projection_shapes(config)
    adapter = {}
    for index, target in enumerate(TARGETS):
        if target not in lora.targets:
            continue
        size_in, size_out = shapes[target]
        bound = size_in**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, index), (config.layers, size_in, lora.rank), jnp.float32, -bound, bound
        )
        adapter[target] = {"a": a, "b": jnp.zeros((config.layers, lora.rank, size_out), jnp.float32)}
    return adapter


def init_adapters(config: ModelConfig, lora: LoraConfig, key: Key[Array, ""], agents: int) -> Adapter:
    """Adapters of `agents` agents, stacked; agent i's does not depend on how many others there are."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(agents))
    return jax.vmap(lambda k: init_adapter(config, lora, k))(keys)
