"""A function compiled once for each set of argument shapes, which knows how long its compilation took."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


class Program:
    """A jitted function whose compilation is a step of its own.

    A run calls it with arrays; a plan calls `compile` with jax.ShapeDtypeStructs that carry shardings, and needs neither
    arrays nor the devices. Both get the same executable, since both go through `lower`. What is compiled for a shape
    expects the shardings that it was compiled with: callers always place an argument in the same way.
    """

    def __init__(self, name: str, function: Callable, *, donate: Sequence[int] = (), out_shardings: Any = None):
        self.name = name
        self.compile_seconds = 0.0  # tracing and lowering included
        self._jitted = jax.jit(function, donate_argnums=tuple(donate), out_shardings=out_shardings)
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.compile(*arguments)(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """The program for these arguments before compilation; arrays or ShapeDtypeStructs."""
        return self._jitted.lower(*arguments)

    def compile(self, *arguments: Any) -> jax.stages.Compiled:
        """The executable for arguments of these shapes, compiled at the first call."""
        key = _shapes(arguments)
        if key not in self._compiled:
            started = time.perf_counter()
            self._compiled[key] = self.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - started
        return self._compiled[key]

    @property
    def compilations(self) -> int:
        """For how many sets of shapes it was compiled."""
        return len(self._compiled)


def _shapes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves, treedef = jax.tree.flatten(arguments)
    return treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
