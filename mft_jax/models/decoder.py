"""The decoder of the Llama family, read from top to bottom: linear, norm, block, decoder.

Modules are flax.nnx and hold the frozen base only; they are split once into (graphdef, base) and merged inside compiled
functions. An agent's adapter is an argument, never a part of the module, so that `jax.vmap` maps it and leaves the base
un-mapped: the base matmul stays one matmul over all agents' rows. `None` as adapter is the base model itself.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mft_jax.models.attention import causal_attention, transposed
from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import Adapter, projection_shapes
from mft_jax.models.rotary import rotate, rotation

# Called by a block with its (layer index, q, k, v); returns the mixed values. Where keys and values live is the caller's.
Attention = Callable[[int, Array, Array, Array], Float[Array, "B T N H"]]


class Linear(nnx.Module):
    """x @ kernel (+ bias), plus an agent's low-rank delta."""

    def __init__(self, size_in: int, size_out: int, bias: bool, lora_scale: float, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((size_in, size_out), dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if bias else None
        self.lora_scale = lora_scale

    def __call__(self, x: Float[Array, "... in"], lora: Adapter | None = None) -> Float[Array, "... out"]:
        y = x @ self.kernel[...]
        if lora is not None:
            delta = ((x.astype(lora["a"].dtype) @ lora["a"]) @ lora["b"]) * self.lora_scale
            y = delta.astype(x.dtype) + y  # delta first: XLA then fuses the sum into the base matmul
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    def __init__(self, size: int, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...]


class Block(nnx.Module):
    """Attention and gated MLP, each after a norm and inside a residual."""

    def __init__(self, config: ModelConfig, lora_scale: float, dtype: jnp.dtype):
        self.input_norm = RMSNorm(config.embed, config.norm_eps, dtype)
        self.post_norm = RMSNorm(config.embed, config.norm_eps, dtype)
        shapes = projection_shapes(config)
        linear = lambda name, bias: Linear(*shapes[name], bias, lora_scale, dtype)
        self.q_proj = linear("q_proj", config.attention_bias)
        self.k_proj = linear("k_proj", config.attention_bias)
        self.v_proj = linear("v_proj", config.attention_bias)
        self.o_proj = linear("o_proj", config.attention_bias)
        self.gate_proj = linear("gate_proj", config.mlp_bias)
        self.up_proj = linear("up_proj", config.mlp_bias)
        self.down_proj = linear("down_proj", config.mlp_bias)
        self.head_dim = config.head_dim

    def __call__(
        self, x: Float[Array, "B T D"], rope: tuple[Array, Array], attention: Callable, lora: Adapter | None
    ) -> Float[Array, "B T D"]:
        lora = lora or {}
        with jax.named_scope("attention"):
            y = self.input_norm(x)
            heads = lambda projected: projected.reshape(*y.shape[:2], -1, self.head_dim)
            q = heads(self.q_proj(y, lora.get("q_proj")))
            k = heads(self.k_proj(y, lora.get("k_proj")))
            v = heads(self.v_proj(y, lora.get("v_proj")))
            mixed = attention(rotate(q, *rope), rotate(k, *rope), v)
            x = x + self.o_proj(mixed.reshape(*x.shape[:2], -1), lora.get("o_proj"))
        with jax.named_scope("mlp"):
            y = self.post_norm(x)
            y = jax.nn.silu(self.gate_proj(y, lora.get("gate_proj"))) * self.up_proj(y, lora.get("up_proj"))
            return x + self.down_proj(y, lora.get("down_proj"))


class Decoder(nnx.Module):
    """Token ids to hidden states to logits, for one agent. Map it over agents with `jax.vmap`."""

    def __init__(self, config: ModelConfig, lora_scale: float = 1.0, dtype: jnp.dtype = jnp.float32):
        self.config = config
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.embed), dtype))
        self.blocks = nnx.List([Block(config, lora_scale, dtype) for _ in range(config.layers)])
        self.norm = RMSNorm(config.embed, config.norm_eps, dtype)
        self.lm_head = None if config.tied_embeddings else Linear(config.embed, config.vocab_size, False, 1.0, dtype)

    def run(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        adapter: Adapter | None,
        attention: Attention,
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last norm. Layers are unrolled: a scan over weights copies each of them on CPUs."""
        x = self.embedding[...][tokens]
        rope = rotation(self.config, positions)
        for index, block in enumerate(self.blocks):
            lora = None if adapter is None else jax.tree.map(lambda leaf, i=index: leaf[i], adapter)
            layer = lambda x, lora, block=block, index=index: block(x, rope, partial(attention, index), lora)
            x = (jax.checkpoint(layer) if remat else layer)(x, lora)
        return self.norm(x)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        adapter: Adapter | None = None,
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """Whole sequences at once: causal attention within each segment of a row."""
        attention = lambda _, q, k, v: causal_attention(q, *transposed(k, v), segment_ids)
        return self.run(tokens, positions, adapter, attention, remat)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Scores over the vocabulary, in float32."""
        with jax.named_scope("logits"):
            if self.lm_head is None:
                scores = jnp.einsum("...d,vd->...v", hidden, self.embedding[...], preferred_element_type=jnp.float32)
            else:
                scores = self.lm_head(hidden)
            return scores.astype(jnp.float32)

    def __call__(self, tokens: Int[Array, "B T"], adapter: Adapter | None = None) -> Float[Array, "B T V"]:
        """Logits of every position of un-padded rows."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.logits(self.hidden(tokens, positions, jnp.zeros_like(tokens), adapter))


def build(
    config: ModelConfig, lora_scale: float = 1.0, dtype: jnp.dtype = jnp.float32
) -> tuple[nnx.GraphDef, nnx.State]:
    """(graphdef, abstract base): the base's leaves are ShapeDtypeStructs, for `weights` to fill, or a compiler to plan with."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, lora_scale, dtype)))
