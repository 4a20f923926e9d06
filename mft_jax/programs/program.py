"""A function that is compiled once for each set of argument shapes, and records how long compilation takes."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from mft_jax.parallel import hosts


class Program:
    """A jitted function that is compiled ahead of its first call.

    Call it with arrays to run it. Call `compile` with jax.ShapeDtypeStructs that carry shardings to compile it without
    arrays. Both go through `lower` and give the same executable. An executable is looked up by the shapes and dtypes of
    its arguments only, so callers must always pass an argument with the same sharding.
    """

    def __init__(self, name: str, function: Callable, *, donate: Sequence[int] = (), out_shardings: Any = None):
        self.name = name
        self.compile_seconds = 0.0  # total over all shapes, tracing and lowering included
        self._jitted = jax.jit(function, donate_argnums=tuple(donate), out_shardings=out_shardings)
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.compile(*arguments)(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Lowers the function for these arguments, which are arrays or ShapeDtypeStructs."""
        return self._jitted.lower(*arguments)

    def compile(self, *arguments: Any) -> jax.stages.Compiled:
        """The executable for arguments of these shapes, compiled when first asked for."""
        key = _shapes_and_dtypes(arguments)
        if key not in self._compiled:
            started = time.perf_counter()
            self._compiled[key] = self.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - started
            # Otherwise the first host would wait for the others in a collective operation, which could time out.
            hosts.meet(f"compilation of {self.name}")
        return self._compiled[key]

    @property
    def compilations(self) -> int:
        """The number of sets of argument shapes that it has been compiled for."""
        return len(self._compiled)


class Compiler(Protocol):
    """What knows how long its compilation has taken so far: one program, or all programs of a model."""

    @property
    def compile_seconds(self) -> float: ...


class BusyClock:
    """Measures the time during which dispatched programs are running, in seconds, without compilation."""

    def __init__(self, compiler: Compiler):
        """`compiler` says how long its programs have been compiled so far."""
        self.seconds = 0.0
        self._compiler = compiler
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Call before a dispatch. Does nothing if the clock is already running."""
        if self._since is None:
            self._since = time.perf_counter(), self._compiler.compile_seconds

    def stop(self) -> None:
        """Call when everything that was dispatched has finished."""
        if self._since is not None:
            started, compiled = self._since
            self.seconds += time.perf_counter() - started - (self._compiler.compile_seconds - compiled)
            self._since = None


def _shapes_and_dtypes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves, treedef = jax.tree.flatten(arguments)
    return treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
