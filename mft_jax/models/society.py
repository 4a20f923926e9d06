"""A society: an ordered set of named adapters over one base model, stacked on a leading axis A."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from mft_jax.models.lora import Adapter, AdapterWeights
from mft_jax.parallel.mesh import society_shardings
from mft_jax.parallel.placement import to_host


@dataclasses.dataclass(frozen=True)
class Society:
    """Adapters by name. The base model is the speaker without an adapter; in `Society()` it is the only speaker."""

    names: tuple[str, ...] = ()
    adapters: Adapter | None = None  # stacked in the order of the names
    mesh: Mesh | None = None  # the mesh that the stacks of `stack` are placed on; None: not placed
    _stacks: dict[tuple, Adapter] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def stacked(self) -> Adapter:
        """All adapters, stacked in the order of the names. Raises ValueError if the society has none."""
        if self.adapters is None:
            raise ValueError("this society has no adapters, only the base model")
        return self.adapters

    @functools.cached_property
    def without_effect(self) -> tuple[str, ...]:
        """The adapters whose update of the base model is zero, such as new ones: they speak as the base model does."""
        if self.adapters is None:
            return ()
        has_effect = to_host(_has_effect(self.adapters.weights))
        return tuple(name for name, changed in zip(self.names, has_effect, strict=True) if not changed)

    def index(self, name: str) -> int:
        """The index of an adapter in the stack. Raises KeyError, which lists the known names, for an unknown one."""
        if name not in self.names:
            raise KeyError(
                f"unknown adapter {name!r}; the adapters of this society are: {', '.join(self.names) or 'none'}"
            )
        return self.names.index(name)

    def adapter(self, name: str) -> Adapter:
        """One adapter. Raises KeyError for an unknown name."""
        return _pick(self.stacked, np.int32(self.index(name)))

    def stack(self, names: Sequence[str], dtype: str | None = None) -> Adapter:
        """Stacks the named adapters in the given order; names may repeat. Caches the stack.

        With `dtype` the weights are cast to it. Sampling gives the dtype of the activations, because every decoding step
        reads all weights. Raises KeyError for unknown names.
        """
        chosen = (*names, dtype)
        if chosen not in self._stacks:
            picked = _pick(self.stacked, np.array([self.index(name) for name in names], np.int32), dtype)
            if self.mesh is not None:
                picked = jax.device_put(picked, society_shardings(self.mesh, picked))
            self._stacks[chosen] = picked
        return self._stacks[chosen]

    def with_adapters_of(self, other: "Society", names: Sequence[str]) -> "Society":
        """This society with the adapters `names` from `other`, which has the same names.

        It is `self` if it takes no adapter from `other`, and `other` if it takes all; else a copy.
        """
        chosen = np.array([name in names for name in self.names])
        if not chosen.any() or chosen.all():
            return other if chosen.any() else self
        pick = lambda new, old: jnp.where(chosen.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
        return dataclasses.replace(self, adapters=jax.tree.map(pick, other.stacked, self.stacked), _stacks={})


@functools.partial(jax.jit, static_argnames="dtype")  # one program, not one for each shape of weights
def _pick(stacked: Adapter, places: Int[np.ndarray, "..."], dtype: str | None = None) -> Adapter:
    """The adapter at a place of the stack, or a stack of those at several places, with the weights in this dtype."""
    picked = jax.tree.map(lambda leaf: jnp.take(leaf, places, axis=0, mode="clip"), stacked)
    cast = lambda leaf: leaf if dtype is None else leaf.astype(dtype)
    return picked._replace(weights=jax.tree.map(cast, picked.weights))


@jax.jit
def _has_effect(weights: AdapterWeights) -> Bool[Array, "A"]:
    """Which adapters of a stack have a factor `b` that is not zero."""
    moved = [jnp.any(pair["b"] != 0, axis=tuple(range(1, pair["b"].ndim))) for pair in weights.values()]
    return jnp.any(jnp.stack(moved), axis=0)
