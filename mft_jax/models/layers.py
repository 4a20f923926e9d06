"""Runs hidden states through the layers of a decoder: one after the other, or in a loop; by the compiler's partitioning, or
with each device's own part of every layer."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from mft_jax.config import Remat
from mft_jax.models.attention_backend import AttentionBackend
from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import Adapter, Grouped, LowRank, Unstacked
from mft_jax.parallel.mesh import RULES, base_sharding, factor_axes, sharding
from mft_jax.parallel.model_axis import SUMMED, replicated_result

# Called by every layer with (index of a layer with the same window, q, k, v), and with what `run_layers` got as `earlier`
# for this layer, if it did. Returns the attention output, and what the caller wants of this layer, such as its keys and
# values. If `run_layers` got a `cache`, it is called with the cache and the number of the layer too, as `cache` and
# `layer_number`, and returns the cache in place of the latter.
Attention = Callable[..., tuple[Float[Array, "B T N*H"], Any]]


class Layers(NamedTuple):
    """The layers of a decoder."""

    config: ModelConfig
    graph: nnx.GraphDef  # of a `decoder.Block`
    states: Sequence[nnx.State]  # the arrays of each block
    looped: bool  # whether they are run in a loop, as far as its passes divide them


def causal(backend: AttentionBackend, config: ModelConfig, segment_ids: Int[Array, "B T"]) -> Attention:
    """Causal attention within each segment of a row. Of a layer it keeps nothing."""

    def attention(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, None]:
        window = config.windows[layer]
        return backend.causal(q, k, v, segment_ids, window=window, softcap=config.attention_softcap), None

    return attention


def run_layers(
    layers: Layers,
    x: Float[Array, "B T D"],
    angles: Sequence[tuple[Array, Array]],
    adapter: Grouped | Unstacked | None,
    attention: Attention,
    *,
    earlier: Sequence[Any] | None = None,
    cache: Any = None,
    remat: Remat = False,
) -> tuple[Float[Array, "B T D"], Any]:
    """The hidden states after the last layer, and the second results of `attention`. The arguments are as in `Decoder.run`.

    `angles` are those of the rotary embedding, for each layer.
    """
    config, kept, done = layers.config, [], 0
    if layers.looped:
        assert not isinstance(adapter, Unstacked), "a loop needs stacked layers"
        done = config.layers // config.window_period * config.window_period
        x, kept, cache = _scan(layers, x, adapter, angles, attention, earlier, cache, remat)
    updates, traced = ({},) * config.layers if adapter is None else adapter.by_layer(), {}
    for index in range(done, config.layers):
        # Layers with the same window are traced once: each call of a jitted function inlines what the first one traced.
        window = config.windows[index]
        if window not in traced:
            own = partial(_run_layer, layers.graph, partial(attention, index))
            traced[window] = jax.jit(jax.checkpoint(own, policy=_kept(remat)) if remat else own, inline=True)
        given = _given(None if earlier is None else earlier[index], cache, index)
        x, own = traced[window](layers.states[index], x, angles[index], updates[index], given)
        kept, cache = ([*kept, own], None) if cache is None else (kept, own)
    return x, kept if cache is None else cache


def _scan(
    layers: Layers,
    x: Float[Array, "B T D"],
    adapter: Adapter | None,
    angles: Sequence[tuple[Array, Array]],
    attention: Attention,
    earlier: Sequence[Any] | None,
    cache: Any,
    remat: Remat,
) -> tuple[Float[Array, "B T D"], list[Any], Any]:
    """Runs the layers in a loop, as far as its passes divide them. A pass runs as many as the windows of attention repeat.

    XLA compiles one pass instead of all layers: for prefill of Llama-3-8B on a TPU in a fifth of the time. Each pass
    first copies the weights of its layers. On CPUs that costs more than the compilation saves.
    """
    config, period = layers.config, layers.config.window_period
    passes = config.layers // period

    def layer(place: int, index: Array, x: Array, lora: Mapping[str, LowRank], known: Any, cache: Any):
        own = [partial(lambda state: state, state) for state in layers.states[place : passes * period : period]]
        state, given = jax.lax.switch(index, own), _given(known, cache, index * period + place)
        return _run_layer(layers.graph, partial(attention, place), state, x, angles[place], lora, given)

    run_layer = jax.checkpoint(layer, static_argnums=0, policy=_kept(remat), prevent_cse=False)

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


def _kept(remat: Remat) -> Callable[..., bool] | None:
    """Which results of a layer the backward pass keeps (None: none), as a policy of `jax.checkpoint`."""
    if remat == "all but sums":
        return jax.checkpoint_policies.save_only_these_names(SUMMED)
    return None if remat else _is_no_copy


def _is_no_copy(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """Whether the backward pass keeps the result: anything but copies of a layer's weights, in their or another dtype."""
    del inputs, parameters
    return primitive.name not in ("cond", "convert_element_type")


def runs_in_parts(config: ModelConfig, mesh: Mesh) -> bool:
    """Whether `run_in_parts` can run this model: if the mesh divides its heads and features, and biases are those of parts."""
    parts, whole = mesh.shape[RULES["heads"]], config.output_bias or config.mlp_bias
    divides = not any(size % parts for size in (config.heads, config.kv_heads, config.ffw))
    return mesh.size > 1 and divides and not whole


def part_of(config: ModelConfig, mesh: Mesh) -> ModelConfig:
    """The shape of a device's part of the model's layers: its heads and its features."""
    parts = mesh.shape[RULES["heads"]]
    return dataclasses.replace(
        config, heads=config.heads // parts, kv_heads=config.kv_heads // parts, ffw=config.ffw // parts
    )


def run_in_parts(
    part: Layers,
    mesh: Mesh,
    backend: AttentionBackend,
    x: Float[Array, "B T D"],
    angles: Sequence[tuple[Array, Array]],
    segment_ids: Int[Array, "B T"],
    adapter: Grouped | None,
    remat: Remat,
) -> Float[Array, "B T D"]:
    """The hidden states after the last layer, of complete sequences. Each device computes its rows, heads and features.

    If the compiler splits the layers, it adds up the gradients of each layer's adapters over the data axis; here all are
    added up once, after the last layer. And what each layer adds up over the model axis can be kept for the backward pass.
    `part` has the config and the graph of a device's part, and all states.
    """
    distinct = list({id(pair): pair for pair in angles}.values())  # all layers share one or two
    which = [next(i for i, pair in enumerate(distinct) if pair is own) for own in angles]
    by_row = sharding(mesh, "batch", shape=x.shape[:1]).spec

    def on_each_device(
        x: Array, distinct: Sequence[Any], ids: Array, states: Sequence[nnx.State], adapter: Grouped | None
    ) -> Array:
        attention, own = causal(backend.on_a_device(), part.config, ids), [distinct[i] for i in which]
        return replicated_result(run_layers(part._replace(states=states), x, own, adapter, attention, remat=remat)[0])

    specs = (by_row, by_row, by_row, _state_specs(mesh, part.states), _adapter_specs(mesh, adapter))
    run = jax.shard_map(on_each_device, mesh=mesh, in_specs=specs, out_specs=by_row, check_vma=False)
    return run(x, distinct, segment_ids, part.states, adapter)


def _state_specs(mesh: Mesh, states: Sequence[nnx.State]) -> list[nnx.State]:
    """How the arrays of each block are split."""

    def place(path: tuple, leaf: Array) -> PartitionSpec:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return base_sharding(mesh, ("blocks", *names), leaf.shape).spec

    return [jax.tree_util.tree_map_with_path(place, state) for state in states]


def _adapter_specs(mesh: Mesh, adapter: Grouped | None) -> Any:
    """How the factors of one adapter are split: a tree of the same structure."""
    if adapter is None:
        return None
    place = lambda target, pair: {name: sharding(mesh, *factor_axes(target, name)).spec for name in pair}
    weights: Any = {target: place(target, pair) for target, pair in adapter.weights.items()}
    scale: Any = PartitionSpec()
    return Grouped(weights, scale)
