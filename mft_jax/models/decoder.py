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
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mft_jax.models.attention_backend import AttentionBackend, attention_backend
from mft_jax.models.config import ModelConfig
from mft_jax.models.fused import fused_groups
from mft_jax.models.lora import Adapter, LowRank, Unstacked, low_rank_product, projection_shapes
from mft_jax.models.rotary import rotate, rotation
from mft_jax.parallel.mesh import RULES, constrain

# Called by every layer with (index of a layer with the same window, q, k, v), and with what `Decoder.run` got as `earlier`
# for this layer, if it did. Returns the attention output, and what the caller of `run` wants of this layer, such as its keys
# and values. If `run` got a `cache`, it is called with the cache and the number of the layer too, as `cache` and `layer_number`,
# and returns the cache in place of the latter.
Attention = Callable[..., tuple[Float[Array, "B T N*H"], Any]]

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
    """Attention and a gated MLP, each with a norm before it, with `out_norms` another one after it, and a residual."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, mesh: Mesh | None = None):
        self.config, self.mesh = config, mesh
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
            output = self._whole(self.o_proj(output, lora.get("o_proj")))
            x = x + (output if self.attention_out_norm is None else self.attention_out_norm(output))
        with jax.named_scope("mlp"):
            gate, up = self._gate_up(self._whole(self.post_norm(x)), lora)
            y = self._whole(self.down_proj(_ACTIVATIONS[self.config.activation](gate) * up, lora.get("down_proj")))
            return x + (y if self.mlp_out_norm is None else self.mlp_out_norm(y)), kept

    def _whole(self, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """`y`, replicated over the model axis. Used before and after linear layers that are split over this axis.

        Each device of the axis computes one term of such a layer's output, and of the gradient of its input. The terms
        are added up here.
        """
        return constrain(self.mesh, y, "batch", None, None)

    def _queries_keys_values(self, y: Float[Array, "B T D"], lora: Mapping[str, LowRank]) -> tuple[Array, Array, Array]:
        """Queries [B, T, N, H], keys [B, T, K, H] and values [B, T, K, H]."""
        if self.config.fused:
            parts = (self.qkv_proj(y, lora.get("qkv_proj")),)
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
            parts = (self.gate_up_proj(y, lora.get("gate_up_proj")),)
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

        If they are split over devices, each device has only a term of the gradient of `y` by each base matmul. Autodiff
        adds up gradients in the reverse order of the products of `y`. With all low-rank products first, it adds up these
        terms first, and XLA then moves one sum of them between devices instead of one per layer.
        """
        layers: list[Linear] = [getattr(self, name) for name in names]
        if self.mesh is None or self.mesh.shape[RULES["heads"]] == 1:
            return tuple(layer(y, lora.get(name)) for layer, name in zip(layers, names, strict=True))
        products = [low_rank_product(y, lora[name]) if name in lora else None for name in names]
        return tuple(layer.with_product(y, product) for layer, product in zip(layers, products, strict=True))


def _run_layer(
    graph: nnx.GraphDef,
    attention: Attention,
    state: nnx.State,
    x: Float[Array, "B T D"],
    rope: tuple[Array, Array],
    lora: Mapping[str, LowRank],
    given: Mapping[str, Any],
) -> tuple[Float[Array, "B T D"], Any]:
    """Runs the block of this graph and state, as `Block` does. `given` is what `attention` takes of it besides, by name."""
    return nnx.merge(graph, state)(x, rope, partial(attention, **given), lora)


def _given(earlier: Any, cache: Any, layer_number: Array | int) -> dict[str, Any]:
    """What `Attention` takes besides queries, keys and values."""
    given = {} if earlier is None else {"earlier": earlier}
    return given if cache is None else {**given, "cache": cache, "layer_number": layer_number}


def _is_no_copy(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """Whether the backward pass keeps the result: anything but copies of a layer's weights, in their or another dtype."""
    del inputs, parameters
    return primitive.name not in ("cond", "convert_element_type")


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
        remat: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The hidden states after the last norm, and the second results of `attention`, one for each layer.

        `earlier` is what `attention` takes of each layer besides, such as the keys and values of the tokens before these.
        `cache` is handed from layer to layer and returned in place of the second results, so a loop can update it in place.
        `long` is as in `rotary.rotation`; only models with `config.long_after` use it. `remat` recomputes the activations
        of each layer in the backward pass.
        """
        config = self.config
        if isinstance(adapter, Adapter):
            adapter = adapter.grouped(config)
        x = self.embedding[...][tokens].astype(self.compute_dtype)
        x = constrain(self.mesh, x, "batch", None, None)
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, self.compute_dtype)
        rope = rotation(config.rope, positions, long)
        local = rope if config.local_rope is None else rotation(config.local_rope, positions)
        angles = [rope if window is None else local for window in config.windows]
        kept, done = [], 0
        # A decode step is not looped: its matmuls take as long as reading their weights, so a copy would double it.
        if self.scan_layers and tokens.shape[1] > 1:
            assert not isinstance(adapter, Unstacked), "a loop needs stacked layers"
            done = config.layers // config.window_period * config.window_period
            x, kept, cache = self._scan(x, adapter, angles, attention, earlier, cache, remat)
        updates = ({},) * config.layers if adapter is None else adapter.by_layer()
        graph, layers = nnx.split(self.blocks[0])[0], {}
        for index in range(done, config.layers):
            # Layers with the same window are traced once: each call of a jitted function inlines what the first one traced.
            window = config.windows[index]
            if window not in layers:
                own = partial(_run_layer, graph, partial(attention, index))
                layers[window] = jax.jit(jax.checkpoint(own) if remat else own, inline=True)
            state, known = nnx.split(self.blocks[index])[1], None if earlier is None else earlier[index]
            x, own = layers[window](state, x, angles[index], updates[index], _given(known, cache, index))
            kept, cache = ([*kept, own], None) if cache is None else (kept, own)
        return constrain(self.mesh, self.norm(x), "batch", None, None), kept if cache is None else cache

    def _scan(
        self,
        x: Float[Array, "B T D"],
        adapter: Adapter | None,
        angles: Sequence[tuple[Array, Array]],
        attention: Attention,
        earlier: Sequence[Any] | None,
        cache: Any,
        remat: bool,
    ) -> tuple[Float[Array, "B T D"], list[Any], Any]:
        """Runs the layers in a loop, as far as its passes divide them. A pass runs as many as the windows of attention repeat.

        XLA compiles one pass instead of all layers: for prefill of Llama-3-8B on a TPU in a fifth of the time. Each pass
        first copies the weights of its layers. On CPUs that costs more than the compilation saves.
        """
        config, period = self.config, self.config.window_period
        passes = config.layers // period
        graph, states = nnx.split(self.blocks[0])[0], [nnx.split(block)[1] for block in self.blocks]

        def layer(place: int, index: Array, x: Array, lora: Mapping[str, LowRank], known: Any, cache: Any):
            own = [partial(lambda state: state, state) for state in states[place : passes * period : period]]
            state, given = jax.lax.switch(index, own), _given(known, cache, index * period + place)
            return _run_layer(graph, partial(attention, place), state, x, angles[place], lora, given)

        policy = None if remat else _is_no_copy
        run_layer = jax.checkpoint(layer, static_argnums=0, policy=policy, prevent_cse=False)

        def run_pass(
            carry: tuple[Array, Any], scanned: tuple[Array, Sequence[Any], Sequence[Any]]
        ) -> tuple[tuple[Array, Any], list[Any]]:
            (x, cache), (index, updates, known), kept = carry, scanned, []
            for place in range(period):
                x, own = run_layer(place, index, x, updates[place], known[place], cache)
                kept, cache = ([*kept, own], None) if cache is None else (kept, own)
            return (x, cache), kept

        lora = [{} if adapter is None else adapter.layers(place, passes * period, period) for place in range(period)]
        of_place = lambda layers, place: jax.tree.map(
            lambda *own: jnp.stack(own), *layers[place : passes * period : period]
        )
        known = [None if earlier is None else of_place(earlier, place) for place in range(period)]
        (x, cache), kept = jax.lax.scan(run_pass, (x, cache), (jnp.arange(passes), lora, known))
        return x, [jax.tree.map(lambda leaf, i=i: leaf[i], own) for i in range(passes) for own in kept], cache

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        adapter: Adapter | None = None,
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """The hidden states of complete sequences, with causal attention within each segment of a row."""
        config, long = self.config, None
        attention = lambda layer, q, k, v: (
            self.backend.causal(q, k, v, segment_ids, window=config.windows[layer], softcap=config.attention_softcap),
            None,
        )
        if config.long_after is not None and tokens.shape[1] > config.long_after:
            lengths = jnp.sum(
                segment_ids[:, :, None] == segment_ids[:, None], axis=-1
            )  # length of each token's segment
            long = lengths > config.long_after
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
