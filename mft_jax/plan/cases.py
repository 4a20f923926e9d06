"""The programs of a configuration with the shapes that a run calls them with, ready to be compiled without weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mft_jax.config import ExperimentConfig
from mft_jax.methods import Method
from mft_jax.models.config import ModelConfig
from mft_jax.models.decoder import build
from mft_jax.plan.figures import Case
from mft_jax.programs import Programs, abstract
from mft_jax.programs.slots import bucket
from mft_jax.session import dtypes

WEIGHTS, ADAPTERS, OPTIMIZER, CACHE = "weights", "adapters", "optimizer", "cache"
DRAWS = 2.5  # until the choice of a token is accepted: two or three are typical (mft_jax/programs/choose.py)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the programs, which follow from the configuration, the mesh and the lengths of texts."""

    lanes: int  # A of prefill and decode
    rows: int  # B
    prefill_rows: int
    columns: int  # S, the length of the KV cache
    prompt_tokens: int  # T of prefill
    row_targets: int  # M of the training step


@dataclasses.dataclass(frozen=True)
class Cases:
    """Makes the cases of one configuration on one mesh, for the model or for a model with fewer layers."""

    config: ExperimentConfig  # its lora.targets are resolved
    method: Method
    mesh: Mesh
    stored: jnp.dtype  # dtype of the checkpoint, which the weights keep where `dtypes` gives None
    sizes: Sizes

    @property
    def adapted(self) -> bool:
        """Whether any text is sampled with adapters. If so, all are planned with them, and those without cost a little less."""
        return bool(self.method.lessons)

    def decode(self, model: ModelConfig) -> Case:
        base, adapters, slots = self._sampling(model)
        settings = abstract.abstract_settings(self.mesh, agents=self.sizes.lanes, stop_ids=8)
        kinds = {WEIGHTS: base, ADAPTERS: adapters, CACHE: slots}
        steps = self.config.sampling.steps_per_dispatch  # each a token of every row
        # Other devices than TPUs draw in a loop inside a step until a token is accepted.
        return Case(self.programs(model).decode, (base, adapters, slots, settings), kinds, (steps, DRAWS), steps)

    def prefill(self, model: ModelConfig) -> Case:
        base, adapters, slots = self._sampling(model)
        size = {"prompts": self.sizes.prefill_rows, "tokens": self.sizes.prompt_tokens}
        prompts = abstract.abstract_prompts(self.mesh, agents=self.sizes.lanes, **size)
        kinds = {WEIGHTS: base, ADAPTERS: adapters, CACHE: slots}
        long = jax.ShapeDtypeStruct((), np.bool_)
        return Case(self.programs(model).prefill, (base, adapters, slots, prompts, long), kinds)

    def train(self, model: ModelConfig) -> Case:
        tuning, base = self.config.finetuning, self._base(model)
        count = len(self.method.lessons)
        adapters = abstract.abstract_adapters(model, self.config.lora, self.mesh, count)
        state, batch, index, hyper = abstract.abstract_training(
            self.mesh,
            adapters,
            rows=tuning.batch_rows,
            row_tokens=tuning.row_tokens,
            row_targets=self.sizes.row_targets,
            sequences=16 * tuning.batch_rows if self.method.objective.uses_signals else 0,  # room for 8 pairs in a row
        )
        program = self.programs(model).train(self.method.objective, state, tuning.agents_at_once, tuning.recomputed)
        kinds = {WEIGHTS: base, ADAPTERS: state.adapters, OPTIMIZER: state.optimizer}
        return Case(program, (base, state, batch, index, hyper), kinds)

    def programs(self, model: ModelConfig) -> Programs:
        stored, compute = self._dtypes
        graphdef, _ = build(model, stored, compute, self.mesh)
        return Programs(graphdef, model, self.mesh, compute.name)

    @functools.cached_property
    def _dtypes(self) -> tuple[jnp.dtype, jnp.dtype]:
        stored, compute = dtypes(self.config.model, self.mesh)
        return stored or self.stored, compute

    def _base(self, model: ModelConfig):
        return abstract.abstract_base(model, self.mesh, self._dtypes[0])

    def _sampling(self, model: ModelConfig):
        sizes, lora = self.sizes, self.config.lora
        dtype = self._dtypes[1].name
        adapters = abstract.abstract_adapters(model, lora, self.mesh, sizes.lanes, dtype) if self.adapted else None
        slots = abstract.abstract_slots(
            model, self.mesh, agents=sizes.lanes, rows=sizes.rows, columns=sizes.columns,
            new_tokens=bucket(self.config.sampling.max_new_tokens), dtype=dtype,
        )  # fmt: skip
        return self._base(model), adapters, slots
