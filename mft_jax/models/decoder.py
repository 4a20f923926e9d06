"""The decoder of all Llama-like families, from the bottom up: linear layer, norm, block, decoder.

The flax.nnx modules contain only the frozen base. They are split once into (graphdef, base) and merged inside compiled
functions. An adapter is an argument, not part of the module, so that `jax.vmap` maps over adapters but not over the
base: the base matmul stays one matmul over all agents' rows. With the adapter None the decoder is the base model.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mft_jax.config import Remat
from mft_jax.models.attention_backend import AttentionBackend, attention_backend
from mft_jax.models.config import ModelConfig
from mft_jax.models.fused import fused_groups
from mft_jax.models.layers import Attention, Layers, causal, part_of, run_in_parts, run_layers, runs_in_parts
from mft_jax.models.lora import (
    Adapter,
    LowRank,
    Unstacked,
    low_rank_input,
    low_rank_output,
    low_rank_product,
    projection_shapes,
)
from mft_jax.models.rotary import rotate, rotation
from mft_jax.parallel.mesh import RULES, constrain
from mft_jax.parallel.model_axis import SUMMED, copy_to_model_axis, replicated_argument, sum_over_model_axis

_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


class Linear(nnx.Module):
    """x @ kernel (+ bias), plus the low-rank update of an adapter.

    With `by_output` it has the transposed kernel, `weight` [out, in], as checkpoints do. On CPUs a decoding step's products
    then take a quarter less time (docs/performance.md). Products of few rows are rounded differently.
    """

    def __init__(self, size_in: int, size_out: int, bias: bool, dtype: jnp.dtype, by_output: bool):
        self.kernel = None if by_output else nnx.Param(jnp.zeros((size_in, size_out), dtype))
        self.weight = nnx.Param(jnp.zeros((size_out, size_in), dtype)) if by_output else None
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if bias else None

    def __call__(self, x: Float[Array, "... in"], lora: LowRank | None = None) -> Float[Array, "... out"]:
        y = self.product(x)
        return self._sum(y, None if lora is None else low_rank_product(x, lora))

    def product(self, x: Float[Array, "... in"], dtype: jnp.dtype | None = None) -> Float[Array, "... out"]:
        """x @ kernel, in this dtype (None: that of x)."""
        if self.weight is not None:
            return jnp.einsum("...i,oi->...o", x, self.weight[...].astype(x.dtype), preferred_element_type=dtype)
        assert self.kernel is not None
        return jnp.matmul(x, self.kernel[...].astype(x.dtype), preferred_element_type=dtype)

    def with_product(
        self, x: Float[Array, "... in"], product: Float[Array, "... out"] | None
    ) -> Float[Array, "... out"]:
        """The same, given the low-rank product of x."""
        return self._sum(self.product(x), product)

    def _sum(self, y: Float[Array, "... out"], product: Float[Array, "... out"] | None) -> Float[Array, "... out"]:
        if product is not None:
            y = product + y  # the product first: XLA then fuses the sum into the base matmul
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, normalized in float32. With `offset` (Gemma) it is x / rms(x) * (1 + scale).

    Without `offset` the normalized x is cast to the dtype of x before it is scaled, with `offset` after.
    """

    def __init__(self, size: int, eps: float, offset: bool, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        if self.offset:
            return (wide * (1 + self.scale[...].astype(jnp.float32))).astype(x.dtype)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Block(nnx.Module):
    """Attention and a gated MLP, each with a norm before it, with `out_norms` another one after it, and a residual.

    With `in_parts` it is a device's part of these (`layers.run_in_parts`), in a function that runs on each device.
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, mesh: Mesh | None = None, in_parts: bool = False):
        self.config, self.mesh, self.in_parts = config, mesh, in_parts
        norm = lambda size: RMSNorm(size, config.norm_eps, config.norm_offset, dtype)
        shapes = projection_shapes(config)
        linear = lambda name, bias: Linear(*shapes[name], bias, dtype, by_output(mesh))
        self.input_norm = norm(config.embed)
        if config.fused:
            self.qkv_proj = linear("qkv_proj", config.qkv_bias)
        else:
            self.q_proj = linear("q_proj", config.qkv_bias)
            self.k_proj = linear("k_proj", config.qkv_bias)
            self.v_proj = linear("v_proj", config.qkv_bias)
        self.q_norm = norm(config.head_dim) if config.qk_norm else None
        self.k_norm = norm(config.head_dim) if config.qk_norm else None
        self.o_proj = linear("o_proj", config.output_bias)
        self.attention_out_norm = norm(config.embed) if config.out_norms else None
        self.post_norm = norm(config.embed)
        if config.fused:
            self.gate_up_proj = linear("gate_up_proj", config.mlp_bias)
        else:
            self.gate_proj = linear("gate_proj", config.mlp_bias)
            self.up_proj = linear("up_proj", config.mlp_bias)
        self.down_proj = linear("down_proj", config.mlp_bias)
        self.mlp_out_norm = norm(config.embed) if config.out_norms else None

    def __call__(
        self, x: Float[Array, "B T D"], rope: tuple[Array, Array], attention: Callable, lora: Mapping[str, LowRank]
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The hidden states after this layer, and the second result of `attention`."""
        with jax.named_scope("attention"):
            q, k, v = self._queries_keys_values(self._whole(self.input_norm(x)), lora)
            output, kept = attention(rotate(q, *rope) * self.config.query_scale, rotate(k, *rope), v)
            output = self._output("o_proj", output, lora)
            x = x + (output if self.attention_out_norm is None else self.attention_out_norm(output))
        with jax.named_scope("mlp"):
            gate, up = self._gate_up(self._whole(self.post_norm(x)), lora)
            y = self._output("down_proj", _ACTIVATIONS[self.config.activation](gate) * up, lora)
            return x + (y if self.mlp_out_norm is None else self.mlp_out_norm(y)), kept

    def _whole(self, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """`y`, replicated over the model axis. Used before and after linear layers that are split over this axis.

        Each device of the axis computes one term of such a layer's output, and of the gradient of its input. The terms
        are added up here.
        """
        return y if self.in_parts else constrain(self.mesh, y, "batch", None, None)

    def _output(self, name: str, y: Float[Array, "B T F"], lora: Mapping[str, LowRank]) -> Float[Array, "B T D"]:
        """The output of a linear layer whose inputs are split over the model axis, replicated over this axis."""
        layer: Linear = getattr(self, name)
        if not self.in_parts:
            return self._whole(layer(y, lora.get(name)))
        if name not in lora:
            return checkpoint_name(sum_over_model_axis(layer.product(y)), SUMMED)
        # The narrow product is summed before it is widened: XLA then fuses the wide one into what follows.
        own = lora[name]
        terms = layer.product(y), low_rank_input(y, own)
        product, narrow = (checkpoint_name(both, SUMMED) for both in sum_over_model_axis(terms))
        return low_rank_output(narrow, own._replace(b=replicated_argument(own.b))) + product

    def _queries_keys_values(self, y: Float[Array, "B T D"], lora: Mapping[str, LowRank]) -> tuple[Array, Array, Array]:
        """Queries [B, T, N, H], keys [B, T, K, H] and values [B, T, K, H]."""
        if self.config.fused:
            parts = self._of_one_input(("qkv_proj",), y, lora)
        else:
            parts = self._of_one_input(("q_proj", "k_proj", "v_proj"), y, lora)
        if y.shape[1] == 1:
            parts = _as_computed(*parts)
        if self.config.fused:
            parts = fused_groups(self.config)["qkv_proj"].split(*parts)
        q, k, v = (part.reshape(*y.shape[:2], -1, self.config.head_dim) for part in parts)
        return (q, k, v) if self.q_norm is None or self.k_norm is None else (self.q_norm(q), self.k_norm(k), v)

    def _gate_up(
        self, y: Float[Array, "B T D"], lora: Mapping[str, LowRank]
    ) -> tuple[Float[Array, "B T F"], Float[Array, "B T F"]]:
        if self.config.fused:
            parts = self._of_one_input(("gate_up_proj",), y, lora)
            if y.shape[1] == 1:
                parts = _as_computed(*parts)
            gate, up = fused_groups(self.config)["gate_up_proj"].split(*parts)
            return gate, up
        gate, up = self._of_one_input(("gate_proj", "up_proj"), y, lora)
        return gate, up

    def _of_one_input(
        self, names: Sequence[str], y: Float[Array, "B T D"], lora: Mapping[str, LowRank]
    ) -> tuple[Array, ...]:
        """The outputs of the linear layers with these names for one input.

        With `in_parts`, each of the narrow products is computed by all devices, and their gradients are summed with that of `y`.

        If the compiler splits them over devices, each device has only a term of the gradient of `y` by each base matmul. Autodiff
        adds up gradients in the reverse order of the products of `y`. With all low-rank products first, it adds up these
        terms first, and XLA then moves one sum of them between devices instead of one per layer.
        """
        layers: list[Linear] = [getattr(self, name) for name in names]
        if self.in_parts:
            adapted = [name for name in names if name in lora]
            narrow = [low_rank_input(y, lora[name]._replace(a=replicated_argument(lora[name].a))) for name in adapted]
            y, narrow = copy_to_model_axis((y, narrow))
            wide = {name: low_rank_output(own, lora[name]) for name, own in zip(adapted, narrow, strict=True)}
            return tuple(layer.with_product(y, wide.get(name)) for layer, name in zip(layers, names, strict=True))
        if self.mesh is None or self.mesh.shape[RULES["heads"]] == 1 or len(names) == 1:
            return tuple(layer(y, lora.get(name)) for layer, name in zip(layers, names, strict=True))
        products = [low_rank_product(y, lora[name]) if name in lora else None for name in names]
        return tuple(layer.with_product(y, product) for layer, product in zip(layers, products, strict=True))


def _as_computed(*parts: Array) -> tuple[Array, ...]:
    """The same arrays, which on TPUs keep the layout that the matmuls before gave them.

    XLA would otherwise give the queries, keys and values of a decode step the layout of what follows, which splits them
    into heads, and copy the weights of these matmuls to a layout that suits it: 0.4 GB per chip for Llama-3-8B on four
    chips, for activations of less than 1 MB.
    """
    barrier = lambda *parts: jax.lax.optimization_barrier(parts)
    return jax.lax.platform_dependent(*parts, tpu=barrier, default=lambda *parts: parts)


class Decoder(nnx.Module):
    """Token ids to hidden states to logits, for one agent. Map it over agents with `jax.vmap`."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: jnp.dtype = jnp.float32,
        compute_dtype: jnp.dtype | None = None,
        mesh: Mesh | None = None,
        backend: AttentionBackend | None = None,
        scan_layers: bool | None = None,
    ):
        self.config, self.mesh, self.backend = config, mesh, backend or attention_backend(mesh)
        self.scan_layers = scans_layers(config, mesh) if scan_layers is None else scan_layers
        self.compute_dtype = jnp.dtype(dtype if compute_dtype is None else compute_dtype)
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.embed), dtype))
        self.blocks = nnx.List([Block(config, dtype, mesh) for _ in range(config.layers)])
        self.norm = RMSNorm(config.embed, config.norm_eps, config.norm_offset, dtype)
        self.lm_head = (
            None if config.tied_embeddings else Linear(config.embed, config.vocab_size, False, dtype, by_output(mesh))
        )

    def run(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        adapter: Adapter | Unstacked | None,
        attention: Attention,
        *,
        earlier: Sequence[Any] | None = None,
        cache: Any = None,
        long: Bool[Array, "..."] | None = None,
        remat: Remat = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The hidden states after the last norm, and the second results of `attention`, one for each layer.

        `earlier` is what `attention` takes of each layer besides, such as the keys and values of the tokens before these.
        `cache` is handed from layer to layer and returned in place of the second results, so a loop can update it in place.
        `long` is as in `rotary.rotation`; only models with `config.long_after` use it. `remat` is what the backward pass
        recomputes.
        """
        x, angles = self._embedded(tokens, positions, long)
        if isinstance(adapter, Adapter):
            adapter = adapter.grouped(self.config)
        x, kept = run_layers(
            self._layers(tokens), x, angles, adapter, attention, earlier=earlier, cache=cache, remat=remat
        )
        return self._normed(x), kept

    def _embedded(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], long: Bool[Array, "..."] | None
    ) -> tuple[Float[Array, "B T D"], list[tuple[Array, Array]]]:
        """The hidden states before the first layer, and the angles of the rotary embedding for each layer."""
        config = self.config
        x = self.embedding[...][tokens].astype(self.compute_dtype)
        x = constrain(self.mesh, x, "batch", None, None)
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, self.compute_dtype)
        rope = rotation(config.rope, positions, long)
        local = rope if config.local_rope is None else rotation(config.local_rope, positions)
        return x, [rope if window is None else local for window in config.windows]

    def _layers(self, tokens: Int[Array, "B T"]) -> Layers:
        # A decode step is not looped: its matmuls take as long as reading their weights, so a copy would double it.
        return Layers(self.config, *_split_blocks(self.blocks), looped=self.scan_layers and tokens.shape[1] > 1)

    def _normed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return constrain(self.mesh, self.norm(x), "batch", None, None)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        adapter: Adapter | None = None,
        remat: Remat = False,
    ) -> Float[Array, "B T D"]:
        """The hidden states of complete sequences, with causal attention within each segment of a row."""
        config, long = self.config, None
        if config.long_after is not None and tokens.shape[1] > config.long_after:
            lengths = jnp.sum(
                segment_ids[:, :, None] == segment_ids[:, None], axis=-1
            )  # length of each token's segment
            long = lengths > config.long_after
        layers = self._layers(tokens)
        if self.mesh is not None and layers.looped and runs_in_parts(config, self.mesh):
            x, angles = self._embedded(tokens, positions, long)
            own = part_of(config, self.mesh)
            block = nnx.eval_shape(lambda: Block(own, self.compute_dtype, self.mesh, in_parts=True))
            layers = layers._replace(config=own, graph=nnx.split(block)[0])
            adapter = None if adapter is None else adapter.grouped(config)
            return self._normed(run_in_parts(layers, self.mesh, self.backend, x, angles, segment_ids, adapter, remat))
        attention = causal(self.backend, config, segment_ids)
        return self.run(tokens, positions, adapter, attention, long=long, remat=remat)[0]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits over the vocabulary, in float32."""
        with jax.named_scope("logits"):
            if self.lm_head is not None:
                scores = self.lm_head.product(hidden, jnp.float32)
            else:
                head = self.embedding[...].T.astype(hidden.dtype)
                scores = jnp.einsum("...d,dv->...v", hidden, head, preferred_element_type=jnp.float32)
            cap = self.config.logit_softcap
            return scores if cap is None else cap * jnp.tanh(scores / cap)

    def __call__(self, tokens: Int[Array, "B T"], adapter: Adapter | None = None) -> Float[Array, "B T V"]:
        """The logits at every position of rows without padding."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.logits(self.hidden(tokens, positions, jnp.zeros_like(tokens), adapter))


def _split_blocks(blocks: Sequence[Block]) -> tuple[nnx.GraphDef, list[nnx.State]]:
    """What all blocks have in common, and the arrays of each."""
    return nnx.split(blocks[0])[0], [nnx.split(block)[1] for block in blocks]


def build(
    config: ModelConfig,
    dtype: jnp.dtype = jnp.float32,
    compute_dtype: jnp.dtype | None = None,
    mesh: Mesh | None = None,
    backend: AttentionBackend | None = None,
    scan_layers: bool | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """The graphdef and the abstract base, whose leaves are ShapeDtypeStructs. `weights.load_base` loads the arrays.

    `dtype` is the dtype of the weights and `compute_dtype` that of the activations (None: the same). Activations are
    sharded over `mesh`, and `backend` computes the attention (None: the fastest one for the mesh). `scan_layers`: whether
    complete sequences run through the layers in a loop (None: as `scans_layers` says).
    """
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype, compute_dtype, mesh, backend, scan_layers)))


def by_output(mesh: Mesh | None) -> bool:
    """Whether linear layers have transposed kernels: on CPUs. None is the default device of the host."""
    return (jax.default_backend() if mesh is None else mesh.devices.flat[0].platform) == "cpu"


def scans_layers(config: ModelConfig, mesh: Mesh | None) -> bool:
    """Whether complete sequences run through the layers in a loop (`Decoder._scan`): on TPUs, if it has two passes at least."""
    return mesh is not None and mesh.devices.flat[0].platform == "tpu" and 2 * config.window_period <= config.layers
