"""Debates to finetuned agents: training sets, packed batches, the stacked optimizer step, and the loop around it."""

from mft_jax.finetuning.datasets import TrainingSets, society, training_sets
from mft_jax.finetuning.packing import Batch, Plan, make_plan
from mft_jax.finetuning.step import TrainState, hyper_of, init_state, make_train_step
from mft_jax.finetuning.trainer import NonFiniteLoss, train

__all__ = [
    "Batch",
    "NonFiniteLoss",
    "Plan",
    "TrainState",
    "TrainingSets",
    "hyper_of",
    "init_state",
    "make_plan",
    "make_train_step",
    "society",
    "train",
    "training_sets",
]
