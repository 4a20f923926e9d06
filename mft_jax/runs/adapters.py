"""The adapters that a run directory keeps: imported ones to begin with, and those of every finished iteration."""

import dataclasses
import functools
import pathlib

import jax
from jaxtyping import PyTree

from mft_jax.config import ExperimentConfig, LoraConfig
from mft_jax.errors import UserError
from mft_jax.files import new_directory
from mft_jax.metrics.ledger import Cost
from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import Adapter, init_adapters
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory


def chosen_iteration(directory: RunDirectory, iterations: int, asked: int | None) -> int:
    """The iteration whose society is asked for, or the last one that is there."""
    done = finished_iterations(directory, iterations)
    if not done:
        raise UserError(f"{directory.path} has no finished iteration yet: let `mft run` finish one first.")
    if asked is not None and asked not in done:
        raise UserError(f"{directory.path} has no finished iteration {asked}: there are {', '.join(map(str, done))}.")
    return done[-1] if asked is None else asked


def finished_iterations(directory: RunDirectory, iterations: int) -> list[int]:
    """Those whose finetuning is done."""
    done = []
    for iteration in range(1, iterations + 1):
        if directory.checkpoint(iteration).is_dir():
            with Checkpoints(directory.checkpoint(iteration), read_only=True) as checkpoints:
                if checkpoints.finished() is not None:
                    done.append(iteration)
    return done


def read_adapters(checkpoint: pathlib.Path, model: ModelConfig, agents: int) -> tuple[LoraConfig, Adapter]:
    """The adapters of a finished checkpoint and what they are, with no configuration but the model's; on one device."""
    with Checkpoints(checkpoint, read_only=True) as checkpoints:
        info = checkpoints.finished()
        assert info is not None, "callers ask for finished checkpoints"
        fresh = functools.partial(init_adapters, model, info.lora, agents=agents)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        here = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        abstract = jax.tree.map(here, jax.eval_shape(fresh, jax.random.key(0)))
        return info.lora, checkpoints.restore(info.step, {"adapters": abstract})["adapters"]


def write_imported(directory: RunDirectory, lora: LoraConfig, adapters: PyTree) -> None:
    """Puts a society's adapters where `mft run` begins with them; whole or not at all."""
    with new_directory(directory.initial) as temporary, Checkpoints(temporary) as checkpoints:
        checkpoints.save(0, {"adapters": adapters}, finished=True, lora=lora, cost=Cost())


def with_imported(config: ExperimentConfig, directory: RunDirectory) -> ExperimentConfig:
    """The configuration with the rank, alpha and targets of the imported adapters."""
    with Checkpoints(directory.initial, read_only=True) as checkpoints:
        info = checkpoints.finished()
    if info is None:
        raise UserError(f"{directory.initial} holds no imported adapters: delete it, and import them again if needed.")
    found = {"rank": info.lora.rank, "alpha": info.lora.alpha, "targets": info.lora.targets}
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, **found))
