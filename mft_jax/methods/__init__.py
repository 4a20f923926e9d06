"""The methods that can be run and compared. Each is a `Method` value; all methods run on the same stages."""

import dataclasses
import difflib
import re
from collections.abc import Callable

from mft_jax.config import ExperimentConfig
from mft_jax.debate.protocol import Protocol
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
    star,
    unique_id,
)
from mft_jax.methods.rivals import (
    distill,
    dte,
    evol,
    long_answer,
    maca,
    maca_grpo,
    maca_kto,
    maca_sft,
    maca_single,
    scpo,
    ttrl,
)
from mft_jax.methods.user import make_user_method

__all__ = ["METHODS", "Method", "make_method"]

METHODS: dict[str, Callable[[ExperimentConfig], Method]] = {
    method.__name__: method
    for method in (
        base,
        majority,
        debate,
        long_answer,
        star,
        majority_ft,
        single_agent_ft,
        single_agent_ft_no_debate,
        multiagent_ft,
        multiagent_ft_no_summary,
        multiagent_ft_no_critic,
        unique_id,
        cooperative,
        maca,
        maca_kto,
        maca_grpo,
        maca_sft,
        maca_single,
        scpo,
        ttrl,
        evol,
        dte,
        distill,
    )
}


# "majority@debate" or "majority@long_answer": a vote with the cost of their evaluation. "majority@iteration_K": a vote with
# the cost of the iterations up to K and of the evaluation after it. The run counts how many answers this buys.
BUDGET = r"majority@(?:(debate|long_answer)|iteration_([1-9]\d{0,3}))"


def make_method(name: str, config: ExperimentConfig, answers: int | None = None) -> Method:
    """The method called `name` for a configuration; "majority@K" is `majority` with K answers instead of N.

    "module:function" is a method of the user (`make_user_method`). `answers` is the number of answers of a baseline that is
    named after a budget. Raises UserError, with the closest name, for an unknown one.
    """
    if re.fullmatch(BUDGET, name):
        if answers is None:
            raise UserError(f"{name} can only be one of the `baselines`: the run finds out what its budget buys.")
    elif votes := re.fullmatch(r"majority@([1-9]\d{0,3})", name):
        answers = int(votes[1])
    if answers is not None:
        return _with_rules(dataclasses.replace(majority(_with_agents(config, answers)), name=name), config)
    if ":" in name:
        return _with_rules(make_user_method(name, config), config)
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"Unknown method {name!r}, expected one of {', '.join(METHODS)}, majority@K, or as a baseline "
            f"majority@debate, majority@long_answer, majority@iteration_K, or module:function for "
            f"your own: did you mean {near!r}?"
        )
    return _with_rules(METHODS[name](config), config)


def with_own_evaluation(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with its method among the baselines if it finetunes nothing: then this is its evaluation.

    Raises UserError as `make_method` does.
    """
    if config.method in config.baselines or make_method(config.method, config).lessons:
        return config
    return dataclasses.replace(config, baselines=(*config.baselines, config.method))


def _with_agents(config: ExperimentConfig, agents: int) -> ExperimentConfig:
    return dataclasses.replace(config, debate=dataclasses.replace(config.debate, agents=agents))


def _with_rules(method: Method, config: ExperimentConfig) -> Method:
    """The method with the rules that `config.debate` states for the debates of all methods.

    `summarizer`, `ties`, `voted` and `temperature` are always those of the configuration. `shows` and `stops` are so too,
    unless the method changes the defaults of `Protocol`, as an ablation without summaries does.
    """
    debate, learns = config.debate, bool(method.lessons)

    def ruled(rules: Protocol, phase: str, temperature: float | None) -> Protocol:
        return dataclasses.replace(
            rules,
            shows=debate.shows if rules.shows == "summary" else rules.shows,
            summarizer=debate.summarizer,
            ties=debate.ties,
            voted=debate.voted,
            stops="agreement"
            if rules.stops == "never" and debate.stop_at_agreement in (phase, "always")
            else rules.stops,
            temperature=temperature if learns else None,
        )

    training = ruled(method.protocol, "training", debate.training_temperature)
    evaluation = ruled(method.evaluation, "evaluation", debate.evaluation_temperature)
    if learns:
        evaluation = evaluation.with_speakers(debate.evaluation_speakers)
    return dataclasses.replace(method, protocol=training, test_protocol=None if evaluation == training else evaluation)
