"""The memory of a device in the two phases of a run, and what to change where it does not suffice."""

import dataclasses
from collections.abc import Mapping

from mft_jax.config import ExperimentConfig
from mft_jax.methods import Method
from mft_jax.plan.cases import ADAPTERS, CACHE, WEIGHTS
from mft_jax.plan.figures import TEMPORARIES, Figures

SAMPLING, FINETUNING = "sampling", "finetuning"


@dataclasses.dataclass(frozen=True)
class Phase:
    """The memory of one device in a phase, in bytes by kind."""

    name: str
    kinds: Mapping[str, float]
    available: float

    @property
    def needed(self) -> float:
        return sum(self.kinds.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


def stacked_adapters(method: Method) -> int:
    """How many adapters a run keeps besides those of the society: a stack for each set of speakers of a round."""
    return sum(len(set(names)) for names in {tuple(own) for own in method.protocol.speakers} if None not in names)


def phases_of(
    method: Method, decode: Figures, prefill: Figures, train: Figures | None, lanes: int, available: float
) -> list[Phase]:
    """The phases of a run.

    In both the run keeps the adapters that it started from, those of the last iteration, and the stacks of the speakers,
    of which `decode` and `prefill`, with `lanes` adapters, are given one. The stacks have the dtype of the activations,
    all others that of finetuning.
    """
    count, stacks = len(method.lessons), stacked_adapters(method)
    sampling = max(decode, prefill, key=lambda own: own.memory[TEMPORARIES])
    kinds, one = dict(sampling.memory), sampling.memory.get(ADAPTERS, 0) / lanes
    kept = 0 if train is None else 2 * train.memory[ADAPTERS]
    kinds[ADAPTERS] = kept + one * max(stacks, lanes if count else 0)
    phases = [Phase(SAMPLING, kinds, available)]
    if train is not None:
        kinds = dict(train.memory)
        kinds[ADAPTERS] += kept + one * stacks  # besides those that are finetuned
        phases.append(Phase(FINETUNING, kinds, available))
    return phases


def advice(phase: Phase, config: ExperimentConfig, rows: int, model_axis_grows: bool) -> str:
    """What to change so that a phase fits, for the person who reads the plan."""
    over = phase.needed - phase.available
    found = []
    if phase.name == SAMPLING:
        row = phase.kinds[CACHE] / rows
        fewer = rows - -(-over // row)
        data = config.mesh.data
        if row and fewer // data * data >= data:
            found.append(f"sampling.rows {int(fewer // data * data)} instead of {rows}")
        if phase.kinds[TEMPORARIES] > over and config.sampling.prefill_rows > data:
            found.append("fewer sampling.prefill_rows")
        found.append("a smaller sampling.max_new_tokens")
    else:
        if not config.finetuning.remat:
            found.append("finetuning.remat true")
        elif config.finetuning.keep_sums:
            found.append("finetuning.keep_sums false")
        if config.finetuning.agents_at_once != 1:
            found.append("a smaller finetuning.agents_at_once")
        if config.finetuning.batch_rows > config.mesh.data:
            found.append("fewer finetuning.batch_rows")
        found.append("a smaller finetuning.row_tokens")
    if phase.kinds[WEIGHTS] > phase.available / 4 and model_axis_grows:
        found.append("a larger mesh.model, which splits the weights over more devices")
    return ", ".join(found)
