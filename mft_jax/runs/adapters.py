"""Reads and writes the adapters in a run directory: imported ones, and those of every finished iteration."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mft_jax.config import ExperimentConfig, LoraConfig
from mft_jax.errors import UserError
from mft_jax.files import new_directory
from mft_jax.metrics.ledger import Cost
from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import AdapterWeights, projection_shapes, resolve_targets
from mft_jax.runs import layout
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.store import Store


def chosen_iteration(directory: RunDirectory, iterations: int, asked: int | None) -> int:
    """The iteration `asked`, or the last finished one if it is None. Raises UserError if it is not finished."""
    done = finished_iterations(directory, iterations)
    if not done:
        raise UserError(f"{directory.path} has no finished iteration yet: let `mft run` finish one first.")
    if asked is not None and asked not in done:
        raise UserError(f"{directory.path} has no finished iteration {asked}: there are {', '.join(map(str, done))}.")
    return done[-1] if asked is None else asked


def finished_iterations(directory: RunDirectory, iterations: int) -> list[int]:
    """The iterations whose finetuning is finished. Raises UserError for a damaged checkpoint."""
    infos = {k: latest_info(directory.store, layout.checkpoint(k)) for k in range(1, iterations + 1)}
    return [k for k, info in infos.items() if info is not None and info.finished]


def read_adapters(
    directory: RunDirectory, iteration: int, model: ModelConfig
) -> tuple[LoraConfig, dict[str, AdapterWeights]]:
    """The adapters of a finished iteration: (LoRA configuration, {name: weights on one device}).

    Raises UserError if the checkpoint is damaged or belongs to another model.
    """
    checkpoints = Checkpoints(directory.store, layout.checkpoint(iteration), read_only=True)
    info = checkpoints.finished()
    assert info is not None, "callers pass only finished iterations"
    stacked = checkpoints.restore(info.step, {"adapters": _stack_shapes(model, info.lora, len(info.names))})["adapters"]
    one = lambda index: jax.tree.map(lambda leaf: leaf[index], stacked)
    return info.lora, {name: one(index) for index, name in enumerate(info.names)}


def write_imported(directory: RunDirectory, names: Sequence[str], lora: LoraConfig, weights: AdapterWeights) -> None:
    """Writes a society's stacked weights to initial/, which `mft run` starts from. If it fails, nothing is left there.

    Raises UserError if the directory already has a run or imported adapters, or if another process uses it.
    """
    directory.store.check_local("mft import-adapters")
    directory.take_for_import()
    try:
        with new_directory(directory.initial) as temporary:
            checkpoints = Checkpoints(Store(temporary), "")
            checkpoints.save(0, {"adapters": weights}, finished=True, lora=lora, cost=Cost(), names=tuple(names))
    finally:
        directory.release()


def with_imported(config: ExperimentConfig, directory: RunDirectory) -> ExperimentConfig:
    """The configuration with the rank, alpha and targets of the imported adapters. Raises UserError without them."""
    info = latest_info(directory.store, layout.INITIAL)
    if info is None:
        raise UserError(f"{directory.initial} holds no imported adapters: delete it, and import them again if needed.")
    found = {"rank": info.lora.rank, "alpha": info.lora.alpha, "targets": info.lora.targets}
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, **found))


def _stack_shapes(model: ModelConfig, lora: LoraConfig, adapters: int) -> AdapterWeights:
    """A society's stacked weights as shapes on one device: {target: {"a": [A, L, in, R], "b": [A, L, R, out]}}."""
    shapes, device = projection_shapes(model), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    of = lambda *shape: jax.ShapeDtypeStruct((adapters, model.layers, *shape), jnp.dtype(lora.dtype), sharding=device)
    return {
        target: {"a": of(shapes[target][0], lora.rank), "b": of(lora.rank, shapes[target][1])}
        for target in resolve_targets(model, lora.targets)
    }
