"""Finetuning adapters on debates: training sets, packed batches, and the training loop."""

from mft_jax.finetuning.examples import Dialogues, Example, FirstAnswers, PooledFirstAnswers, Selector
from mft_jax.finetuning.lesson import Lesson, select_examples
from mft_jax.finetuning.losses import likelihood
from mft_jax.finetuning.packing import Plan, hyper_of, make_plan
from mft_jax.finetuning.trainer import NonFiniteLoss, train

__all__ = [
    "Dialogues", "Example", "FirstAnswers", "Lesson", "NonFiniteLoss", "Plan", "PooledFirstAnswers", "Selector",
    "hyper_of", "likelihood", "make_plan", "select_examples", "train",
]  # fmt: skip
