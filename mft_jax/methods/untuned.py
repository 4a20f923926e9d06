"""The untuned baselines (section 2 of the method), as debates of the base model with itself."""

import dataclasses

from mft_jax.config import DebateConfig


@dataclasses.dataclass(frozen=True)
class Shape:
    """How many agents speak for how many rounds before the vote."""

    agents: int
    rounds: int


def untuned_shape(method: str, debate: DebateConfig) -> Shape:
    """base: one model, one answer. majority: N independent answers. debate: N agents, M rounds, with summaries."""
    return {
        "base": Shape(1, 1),
        "majority": Shape(debate.agents, 1),
        "debate": Shape(debate.agents, debate.rounds),
    }[method]
