"""All programs of one model on one mesh, compiled once and shared by all runs in a process."""

import functools
from collections.abc import Iterator

import jax
from flax import nnx
from jax.sharding import Mesh

from mft_jax.config import Remat
from mft_jax.models.config import ModelConfig
from mft_jax.parallel.mesh import replicated, society_shardings
from mft_jax.programs.decode import decode
from mft_jax.programs.prefill import prefill, read_prefix
from mft_jax.programs.program import Program
from mft_jax.programs.score import divergence, score
from mft_jax.programs.slots import prefix_shardings, slot_shardings, view_shardings
from mft_jax.programs.train import Objective, TrainState, train_step


class Programs:
    """read_prefix, prefill, decode, score and divergence for any adapters, and train for any objective.

    `dtype` is the dtype of the KV cache.
    """

    def __init__(self, graphdef: nnx.GraphDef, model: ModelConfig, mesh: Mesh, dtype: str = "float32"):
        self.graphdef, self.model, self.mesh, self.dtype = graphdef, model, mesh, dtype
        slots, rows = slot_shardings(mesh, model), replicated(mesh)
        bind = lambda function: functools.partial(function, graphdef)
        self.read_prefix = Program("read_prefix", bind(read_prefix), out_shardings=prefix_shardings(mesh, model))
        self.prefill = Program("prefill", bind(prefill), donate=[2], out_shardings=slots)
        self.decode = Program("decode", bind(decode), donate=[2], out_shardings=(slots, view_shardings(mesh)))
        self.score = Program("score", bind(score), out_shardings=rows)
        self.divergence = Program("divergence", bind(divergence), out_shardings=rows)
        self._train: dict[tuple, Program] = {}

    def train(self, objective: Objective, state: TrainState, agents_at_once: int | None, remat: Remat) -> Program:
        """The training step for states like `state`, which may be shapes: (base, state, batch, index, hyper) -> (state, metrics).

        The state is donated. It is sharded as `society_shardings` says. `agents_at_once` is as in `train.grouping`; `remat` is
        what the backward pass recomputes.
        """
        placed = society_shardings(self.mesh, state)
        leaves, structure = jax.tree.flatten(placed)
        key = (objective, agents_at_once, remat, structure, *leaves)
        if key not in self._train:
            step = functools.partial(train_step, self.graphdef, self.mesh, objective, agents_at_once, remat)
            # Set as out_shardings: sharding constraints inside the step would give the outputs an equivalent sharding
            # with another PartitionSpec than the inputs'.
            out = placed, replicated(self.mesh)
            self._train[key] = Program("train", step, donate=[1], out_shardings=out)
        return self._train[key]

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compilation so far, tracing and lowering included."""
        return sum(program.compile_seconds for program in self._all_programs())

    @property
    def compilations(self) -> dict[str, int]:
        """The number of sets of argument shapes that each kind of program has been compiled for, by its name."""
        counts: dict[str, int] = {}
        for program in self._all_programs():
            counts[program.name] = counts.get(program.name, 0) + program.compilations
        return counts

    def _all_programs(self) -> Iterator[Program]:
        yield from (self.read_prefix, self.prefill, self.decode, self.score, self.divergence)
        yield from self._train.values()
