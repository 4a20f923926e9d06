"""The methods that can be run and compared. Each is a `Method` value; all methods run on the same stages."""

import dataclasses
import difflib
import re
from collections.abc import Callable

from mft_jax.config import ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.methods.method import Method
from mft_jax.methods.paper import (
    base,
    cooperative,
    debate,
    majority,
    majority_ft,
    multiagent_ft,
    multiagent_ft_no_critic,
    multiagent_ft_no_summary,
    single_agent_ft,
    single_agent_ft_no_debate,
    unique_id,
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
        unique_id,
        cooperative,
    )
}


def make_method(name: str, config: ExperimentConfig) -> Method:
    """The method called `name` for a configuration; "majority@K" is `majority` with K answers instead of N.

    Raises UserError, with the closest name, for an unknown one.
    """
    if votes := re.fullmatch(r"majority@([1-9]\d{0,3})", name):
        return dataclasses.replace(majority(_with_agents(config, int(votes[1]))), name=name)
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"Unknown method {name!r}, expected one of {', '.join(METHODS)}, majority@K: did you mean {near!r}?"
        )
    return _stop_at_agreement(METHODS[name](config), config)


def _with_agents(config: ExperimentConfig, agents: int) -> ExperimentConfig:
    return dataclasses.replace(config, debate=dataclasses.replace(config.debate, agents=agents))


def _stop_at_agreement(method: Method, config: ExperimentConfig) -> Method:
    """The method with debates that end at agreement, in the debates that `debate.stop_at_agreement` names."""
    where, early = config.debate.stop_at_agreement, lambda rules: dataclasses.replace(rules, stops="agreement")
    training = early(method.protocol) if where in ("training", "always") else method.protocol
    evaluation = early(method.evaluation) if where in ("evaluation", "always") else method.evaluation
    return dataclasses.replace(method, protocol=training, test_protocol=None if evaluation == training else evaluation)
