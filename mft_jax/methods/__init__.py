"""The methods that can be run and compared. Each is a `Method` value; all methods run on the same stages."""

import difflib
from collections.abc import Callable

from mft_jax.config import ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.methods.method import Method
from mft_jax.methods.paper import (
    base,
    debate,
    majority,
    majority_ft,
    multiagent_ft,
    multiagent_ft_no_critic,
    multiagent_ft_no_summary,
    single_agent_ft,
    single_agent_ft_no_debate,
)

__all__ = ["METHODS", "Method", "make_method"]

METHODS: dict[str, Callable[[ExperimentConfig], Method]] = {
    method.__name__: method
    for method in (
        base,
        majority,
        debate,
        majority_ft,
        single_agent_ft,
        single_agent_ft_no_debate,
        multiagent_ft,
        multiagent_ft_no_summary,
        multiagent_ft_no_critic,
    )
}


def make_method(name: str, config: ExperimentConfig) -> Method:
    """The method called `name` for a configuration. Raises UserError, with the closest name, for an unknown one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(f"Unknown method {name!r}, expected one of {', '.join(METHODS)}: did you mean {near!r}?")
    return METHODS[name](config)
