"""All programs of one model on one mesh, compiled once and shared by every run of a process."""

import functools
from collections.abc import Iterator

from flax import nnx
from jax.sharding import Mesh

from mft_jax.models.config import ModelConfig
from mft_jax.parallel.mesh import replicated, sharding
from mft_jax.programs.decode import decode
from mft_jax.programs.prefill import prefill
from mft_jax.programs.program import Program
from mft_jax.programs.score import score
from mft_jax.programs.slots import slot_shardings, view_shardings
from mft_jax.programs.train import Objective, train_step


class Programs:
    """prefill, decode and score for any adapters, and train for any objective. `dtype` is that of the KV cache."""

    def __init__(self, graphdef: nnx.GraphDef, model: ModelConfig, mesh: Mesh, dtype: str = "float32"):
        self.graphdef, self.model, self.mesh, self.dtype = graphdef, model, mesh, dtype
        slots, rows = slot_shardings(mesh, model), replicated(mesh)
        bind = lambda function: functools.partial(function, graphdef)
        self.prefill = Program("prefill", bind(prefill), donate=[2], out_shardings=slots)
        self.decode = Program("decode", bind(decode), donate=[2], out_shardings=(slots, view_shardings(mesh)))
        self.score = Program("score", bind(score), out_shardings=rows)
        self._train: dict[tuple, Program] = {}

    def train(self, objective: Objective, adapters: int, agents_at_once: int | None, remat: bool) -> Program:
        """The optimizer step of A = `adapters` adapters: (base, state, batch, index, hyper) -> (state, metrics).

        The state is donated. It stays split over the mesh's agent axis where that divides A, and whole elsewhere.
        """
        key = (objective, adapters, agents_at_once, remat)
        if key not in self._train:
            step = functools.partial(train_step, self.graphdef, self.mesh, objective, agents_at_once, remat)
            # As out_shardings, not as constraints inside the step: those would be spelled otherwise than the inputs'.
            out = sharding(self.mesh, "agent", shape=(adapters,)), replicated(self.mesh)
            self._train[key] = Program("train", step, donate=[1], out_shardings=out)
        return self._train[key]

    @property
    def compile_seconds(self) -> float:
        """What compiling has cost so far, tracing and lowering included."""
        return sum(program.compile_seconds for program in self._all())

    @property
    def compilations(self) -> dict[str, int]:
        """How many sets of shapes each kind of program was compiled for."""
        counts: dict[str, int] = {}
        for program in self._all():
            counts[program.name] = counts.get(program.name, 0) + program.compilations
        return counts

    def _all(self) -> Iterator[Program]:
        yield from (self.prefill, self.decode, self.score)
        yield from self._train.values()
