"""Finetuning adapters on debates: training sets, packed batches, and the training loop."""

from mft_jax.finetuning.examples import Dialogues, Example, FirstAnswers, PooledFirstAnswers, Selector
from mft_jax.finetuning.feedback import Ruling
from mft_jax.finetuning.lesson import Lesson, select_examples
from mft_jax.finetuning.log_probs import add_log_probs
from mft_jax.finetuning.losses import (
    ClippedPolicyGradient,
    DesirablePreference,
    DirectPreference,
    Likelihood,
    likelihood,
)
from mft_jax.finetuning.packing import Plan, hyper_of, make_plan
from mft_jax.finetuning.trainer import NonFiniteLoss, train

__all__ = [
    "ClippedPolicyGradient", "DesirablePreference", "Dialogues", "DirectPreference", "Example", "FirstAnswers",
    "Lesson", "Likelihood", "NonFiniteLoss", "Plan", "PooledFirstAnswers", "Ruling", "Selector", "add_log_probs", "hyper_of",
    "likelihood", "make_plan", "select_examples", "train",
]  # fmt: skip
