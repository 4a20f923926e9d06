"""Low-rank adapters (LoRA, Hu et al. 2021) as plain pytrees beside the frozen base.

The weights of one adapter are {target: {"a": [L, in, R], "b": [L, R, out]}}, stacked over the layers. The weights of a
society have one more leading axis, A.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mft_jax.config import FUSED, TARGETS, LoraConfig
from mft_jax.errors import UserError
from mft_jax.models.config import ModelConfig
from mft_jax.models.fused import fused_groups

AdapterWeights = PyTree[Float[Array, "..."]]


class LowRank(NamedTuple):
    """The low-rank update of one linear layer: it adds scale * (x @ a) @ b to the output for x."""

    a: Float[Array, "in R"]
    b: Float[Array, "R out"]
    scale: Float[Array, ""] | None  # None: 1, because `b` has been multiplied by it


def low_rank_product(x: Float[Array, "... in"], lora: LowRank) -> Float[Array, "... out"]:
    """scale * (x @ a) @ b, in the dtype of x. It has no gradient with respect to the scale."""
    a, b = lora.a.astype(x.dtype), lora.b.astype(x.dtype)
    return (x @ a) @ b if lora.scale is None else _low_rank_product(x, a, b, lora.scale.astype(x.dtype))


def low_rank_input(x: Float[Array, "... in"], lora: LowRank) -> Float[Array, "... R"]:
    """scale * (x @ a), the first of the two products of `low_rank_product`. It has no gradient with respect to the scale."""
    narrow = x @ lora.a.astype(x.dtype)
    return narrow if lora.scale is None else narrow * jax.lax.stop_gradient(lora.scale.astype(x.dtype))


def low_rank_output(narrow: Float[Array, "... R"], lora: LowRank) -> Float[Array, "... out"]:
    """narrow @ b, the second of the two products of `low_rank_product`."""
    return narrow @ lora.b.astype(narrow.dtype)


@jax.custom_vjp
def _low_rank_product(x: Array, a: Array, b: Array, scale: Array) -> Array:
    return ((x @ a) * scale) @ b


def _forward(x: Array, a: Array, b: Array, scale: Array) -> tuple[Array, tuple[Array, ...]]:
    narrow = (x @ a) * scale
    return narrow @ b, (x, a, b, scale, narrow)


def _backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    """The products that autodiff derives too, but each sum over tokens has the narrow factor first.

    XLA's CPU compiler transposes the first factor of such a sum. Autodiff puts x and dy first, whose transposition took
    a fifth of a training step.
    """
    x, a, b, scale, narrow = saved
    d_narrow = (dy @ b.T) * scale
    tokens = tuple(range(x.ndim - 1))
    d_a = jnp.tensordot(d_narrow, x, (tokens, tokens)).T
    return d_narrow @ a.T, d_a, jnp.tensordot(narrow, dy, (tokens, tokens)), jnp.zeros_like(scale)


_low_rank_product.defvjp(_forward, _backward)


class Unstacked(NamedTuple):
    """An adapter for sampling: one array per layer, and no scale, because each `b` has been multiplied by it.

    A loop over tokens would otherwise slice the stacked layers and scale the products in every iteration.
    """

    layers: tuple[dict[str, LowRank], ...]

    def by_layer(self) -> tuple[dict[str, LowRank], ...]:
        """For each block, the low-rank updates of its linear layers, by the name of the layer."""
        return self.layers


class Adapter(NamedTuple):
    """An adapter and its scale, alpha / rank. The scale is an array, so one compiled program serves adapters of any scale."""

    weights: AdapterWeights
    scale: Float[Array, "..."]  # [] for one adapter, [A] for a society

    def by_layer(self) -> tuple[dict[str, LowRank], ...]:
        """For each block, the low-rank updates of its linear layers, by the name of the layer. For one adapter only.

        `jax.lax.split`, because its gradient is one concatenation. That of an index pads each layer's gradient to the size
        of the whole stack and adds up the stacks, which took a twentieth of a training step on CPUs.
        """
        count = jax.tree.leaves(self.weights)[0].shape[0]
        split = lambda stack: [layer[0] for layer in jax.lax.split(stack, [1] * count)]
        parts = {target: (split(pair["a"]), split(pair["b"])) for target, pair in self.weights.items()}
        return tuple(
            {target: LowRank(a[i], b[i], self.scale) for target, (a, b) in parts.items()} for i in range(count)
        )

    def layers(self, first: int, end: int, step: int) -> dict[str, LowRank]:
        """Those of the blocks first, first + step, ... before `end`, stacked. For one adapter only."""
        own = {name: (pair["a"][first:end:step], pair["b"][first:end:step]) for name, pair in self.weights.items()}
        return {name: LowRank(a, b, jnp.broadcast_to(self.scale, a.shape[:1])) for name, (a, b) in own.items()}

    def grouped(self, config: ModelConfig) -> "Grouped":
        """The same adapter, or the adapters of a society, in the form that the decoder computes with."""
        weights = dict(self.weights)
        for name, groups in fused_groups(config).items():
            if name in weights:
                weights[name] = {"a": weights[name]["a"], "b": groups.from_stored(weights[name]["b"])}
        return Grouped(weights, self.scale)

    def unstack(self) -> Unstacked:
        """The same adapter in the form for sampling. For one adapter only."""
        scaled = lambda b: (b.astype(jnp.float32) * self.scale).astype(b.dtype)
        return Unstacked(
            tuple(
                {name: LowRank(own.a, scaled(own.b), None) for name, own in layer.items()} for layer in self.by_layer()
            )
        )


class Grouped(Adapter):
    """An adapter whose fused projections have their outputs in the order of the base (`fused.py`)."""

    def grouped(self, config: ModelConfig) -> "Grouped":
        """The adapter itself."""
        return self


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The shape (in, out) of every linear layer of a decoder block, by its name."""
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
    """The linear layers of this model that `targets` names.

    In a model with fused projections, all parts of a fused projection together name the fused layer. Raises UserError if
    only some of its parts are named, and for a layer that the model does not have.
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
    """The initial weights of one adapter: `a` uniform in +-1/sqrt(in), as in PEFT, and `b` zero, so the update is zero."""
    shapes, dtype = projection_shapes(config), jnp.dtype(lora.dtype)
    adapter = {}
    for target in resolve_targets(config, lora.targets):
        size_in, size_out = shapes[target]
        bound = size_in**-0.5
        own = jax.random.fold_in(key, (*TARGETS, *FUSED).index(target))
        # Drawn as a vector: the same numbers, but XLA compiles a draw of several axes twenty times slower.
        draws = jax.random.uniform(own, (config.layers * size_in * lora.rank,), jnp.float32, -bound, bound)
        a = draws.reshape(config.layers, size_in, lora.rank).astype(dtype)
        adapter[target] = {"a": a, "b": jnp.zeros((config.layers, lora.rank, size_out), dtype)}
    return adapter


def init_society(config: ModelConfig, lora: LoraConfig, key: Key[Array, ""], adapters: int) -> AdapterWeights:
    """The initial weights of `adapters` adapters, stacked. Those of adapter i do not depend on the number of adapters."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(adapters))
    return jax.vmap(lambda k: init_weights(config, lora, k))(keys)
