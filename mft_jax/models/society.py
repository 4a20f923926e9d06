"""A society: an ordered set of named adapters over one base, stacked [A, ...]."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from mft_jax.models.lora import Adapter
from mft_jax.parallel.mesh import society_shardings


@dataclasses.dataclass(frozen=True)
class Society:
    """The speakers of a debate by name. The base model is the speaker without an adapter; `Society()` has only that one."""

    names: tuple[str, ...] = ()
    adapters: Adapter | None = None  # stacked in the order of the names
    mesh: Mesh | None = None  # where stacks of some of them are placed; None: where JAX leaves them
    _stacks: dict[tuple[str, ...], Adapter] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def stacked(self) -> Adapter:
        """All adapters. Raises ValueError in a society that has none."""
        if self.adapters is None:
            raise ValueError("a society without adapters has only the base model")
        return self.adapters

    def index(self, name: str) -> int:
        """The place of an adapter in the stack. Raises KeyError that lists the names there are."""
        if name not in self.names:
            raise KeyError(f"there is no adapter {name!r} in this society; there are {', '.join(self.names) or 'none'}")
        return self.names.index(name)

    def stack(self, names: Sequence[str]) -> Adapter:
        """Some of the adapters in the given order, a name perhaps more than once; made once and kept."""
        chosen = tuple(names)
        if chosen not in self._stacks:
            places = np.array([self.index(name) for name in chosen])
            picked = jax.tree.map(lambda leaf: leaf[places], self.stacked)
            if self.mesh is not None:
                picked = jax.device_put(picked, society_shardings(self.mesh, picked))
            self._stacks[chosen] = picked
        return self._stacks[chosen]
