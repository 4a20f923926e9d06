"""Votes at an equal budget: how many answers of the base model cost as much as a debate, or as training and inference."""

import dataclasses
import re

from mft_jax.config import ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.methods import BUDGET, make_method
from mft_jax.metrics.ledger import total
from mft_jax.runs import layout
from mft_jax.runs.collect import training_costs
from mft_jax.runs.stage_file import read_committed
from mft_jax.runs.store import Store


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the vote of a baseline "majority@..." may cost, in FLOPs by the ledger."""

    iteration: int
    """Debates and finetunings of all iterations up to this one, and the evaluation after it; 0: the evaluation alone."""
    method: str
    """The method whose evaluation counts."""

    @classmethod
    def of(cls, name: str, config: ExperimentConfig) -> "Budget | None":
        """The budget that a baseline is named after; None if it is named after none.

        Raises UserError if a run with this configuration cannot know it.
        """
        found = re.fullmatch(BUDGET, name)
        if not found:
            return None
        if "base" not in config.baselines:
            raise UserError(f"The baseline {name} needs the cost of one answer: add `base` to the baselines.")
        if found[1]:
            if found[1] not in config.baselines:
                raise UserError(f"The baseline {name} needs the cost of {found[1]}: add `{found[1]}` to the baselines.")
            return cls(0, found[1])
        iteration = int(found[2])
        most = config.iterations if make_method(config.method, config).lessons else 0
        if iteration > most:
            raise UserError(
                f"The baseline {name} needs iteration {iteration}, but the last one of the method {config.method} is "
                f"{most}: increase `iterations`, or name an earlier one."
            )
        return cls(iteration, config.method)

    def answers(self, store: Store) -> int:
        """The number of answers to each question, at least 1, whose cost is nearest to the budget, by finished stages."""
        spent = _flops(store, layout.evaluation(self.method, self.iteration))
        for iteration in range(1, self.iteration + 1):
            spent += sum(cost.flops for cost in training_costs(store, iteration))
        return max(1, round(spent / _flops(store, layout.evaluation("base", 0))))


def check_baselines(config: ExperimentConfig) -> None:
    """Raises UserError for a baseline that is unknown, or that a run with this configuration cannot evaluate."""
    for name in config.baselines:
        if Budget.of(name, config) is None:
            make_method(name, config)


def _flops(store: Store, stage: str) -> int:
    return total(chunk.cost for chunk in read_committed(store, stage)).flops
