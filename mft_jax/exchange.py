"""Exports the agents of a run (PEFT adapters, merged checkpoints, training sets as chats), and imports PEFT adapters.

Names, rank, alpha and targets are read from the run's checkpoint on export, and from PEFT's configuration on import.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from mft_jax.config import ExperimentConfig, LoraConfig, ModelSource
from mft_jax.errors import UserError
from mft_jax.files import new_directory
from mft_jax.methods import make_method
from mft_jax.models import peft
from mft_jax.models.config import read_model_config
from mft_jax.models.merge import merge_checkpoint
from mft_jax.runs.adapters import chosen_iteration, finished_iterations, read_adapters, write_imported
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.training_sets import read_training_set
from mft_jax.session import base_directory

Format = Literal["peft", "merged", "chat-jsonl"]


def export(
    run_dir: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    to: Format = "peft",
    iteration: int | None = None,
    agents: Sequence[str] = (),
    max_shard_size: int | str = "5GB",
) -> list[pathlib.Path]:
    """Writes adapters or training sets of a run into the new directory `out`, and returns the paths written.

    If an error occurs, `out` is not created. The formats are:
      peft        OUT/NAME/ for each adapter (generator_0, critic_2, ...), as PEFT and vLLM load it
      merged      OUT/NAME/ for each adapter: a checkpoint of the base with the adapter merged into its weights, in
                  files of at most `max_shard_size`
      chat-jsonl  OUT/iteration_K/NAME.jsonl: the training set of each adapter, one {"messages": [...]} per line, where
                  they exist with "rejected" (the other dialogue of a pair), "learned" (indices of the assistant's
                  messages that are learned), "weight", and "value" (an advantage; in KTO 1 or -1)
    `agents` are names of adapters (default: all). `iteration` defaults to the last finished one, and for chat-jsonl to
    all finished ones. Raises UserError if there is no such run, iteration or adapter, or if `out` is not empty.
    """
    if "://" in str(out):
        raise UserError(f"{out} is not a local directory: give a local one, and copy it to the bucket.")
    directory, out = RunDirectory(run_dir), pathlib.Path(out)
    config = directory.config()
    names = make_method(config.method, config).adapters
    for name in agents:
        if name not in names:
            raise UserError(f"There is no agent {name!r} in {directory.path}: there are {', '.join(names)}.")
    chosen = [name for name in names if not agents or name in agents]
    last = chosen_iteration(directory, config.iterations, iteration)
    with new_directory(out) as temporary:
        if to == "chat-jsonl":
            wanted = finished_iterations(directory, config.iterations) if iteration is None else [last]
            written = [_export_chats(directory, temporary, k, name) for k in wanted for name in chosen]
        else:
            source = base_directory(config.model)
            lora, adapters = read_adapters(directory, last, read_model_config(source))
            for name in chosen:
                adapter = adapters[name]
                if to == "peft":
                    peft.save_peft(adapter, temporary / name, lora, _base_name(config.model, source))
                else:
                    merge_checkpoint(source, temporary / name, adapter, lora, max_shard_size=max_shard_size)
            written = [temporary / name for name in chosen]
    return [out / path.relative_to(temporary) for path in written]


def _export_chats(directory: RunDirectory, out: pathlib.Path, iteration: int, name: str) -> pathlib.Path:
    path = out / f"iteration_{iteration}" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    examples = read_training_set(directory.store, iteration, name)
    lines = (json.dumps(_chat_of(example), ensure_ascii=False) for example in examples)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return path


def _chat_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example in the format that `export` describes."""
    chat = {"messages": example["messages"]}
    if example["kind"] == "pair":
        chat["rejected"] = example["counterpart"]
    return chat | {name: example[name] for name in ("learned", "weight", "value") if name in example}


def _base_name(model: ModelSource, source: pathlib.Path) -> str:
    """The base model in PEFT's configuration: its name on the hub, or the absolute path of its directory."""
    hub = model.path is not None and not pathlib.Path(model.path).expanduser().is_dir()
    return str(model.path) if hub else str(source.absolute())


def import_adapters(config: ExperimentConfig, adapters: Sequence[str | pathlib.Path]) -> LoraConfig:
    """Writes PEFT adapters into `config.run_dir`, so that a run there starts from them.

    Returns the rank, alpha and targets that they share. `adapters` is one directory with a folder for each adapter of
    the method, as `export` writes it, or one directory per adapter in the order of the method (generator_0, ..., then
    critic_0, ...). Of `config`, only the model and the settings that determine the adapters' names are used. Raises
    UserError if an adapter does not fit the model or the other adapters, if it holds numbers that are not finite, if
    the number of adapters is wrong, or if the directory is already a run.
    """
    names = make_method(config.method, config).adapters
    directories = _adapter_directories([pathlib.Path(path) for path in adapters], names)
    for directory in directories:
        _check_base(directory, config.model)
    model = read_model_config(base_directory(config.model))
    found = [peft.load_peft(directory, model) for directory in directories]
    lora = found[0][0]
    for directory, (other, _) in zip(directories, found, strict=True):
        for field in ("rank", "alpha", "targets"):
            if getattr(other, field) != getattr(lora, field):
                raise UserError(
                    f"{directory} has {field} {getattr(other, field)}, expected {getattr(lora, field)} as in "
                    f"{directories[0]}: the adapters of a run share rank, alpha and targets."
                )
    weights = jax.tree.map(lambda *leaves: np.stack(leaves), *(weights for _, weights in found))
    write_imported(RunDirectory(config.run_dir), names, lora, weights)
    return lora


def _check_base(directory: pathlib.Path, model: ModelSource) -> None:
    """Raises UserError if the adapter names another model on the hub. Equal shapes alone do not show the mistake."""
    trained_on, asked = peft.base_name(directory), model.path
    is_hub_name = lambda name: (
        name is not None and name.count("/") == 1 and not pathlib.Path(name).expanduser().exists()
    )
    if is_hub_name(trained_on) and is_hub_name(asked) and trained_on != asked:
        raise UserError(
            f"{directory} is an adapter of {trained_on}, expected one of {asked}: import it into a run whose "
            f"model.path is {trained_on}."
        )


def _adapter_directories(given: list[pathlib.Path], names: Sequence[str]) -> list[pathlib.Path]:
    """One directory for each adapter, in the order of `names`."""
    if not names:
        raise UserError("The method of this configuration has no adapters: set `method` to one that is finetuned.")
    expected = f"expected {len(names)}, for {', '.join(names)}"
    if len(given) == 1 and given[0].is_dir() and not (given[0] / peft.SETTINGS).is_file():
        held = sorted(entry.name for entry in given[0].iterdir() if (entry / peft.SETTINGS).is_file())
        if held != sorted(names):
            raise UserError(
                f"{given[0]} holds {len(held)} adapters ({', '.join(held) or 'none'}), {expected}: give a directory "
                "with exactly these, or one directory for each adapter."
            )
        return [given[0] / name for name in names]
    if len(given) != len(names):
        raise UserError(f"{len(given)} adapters were given, {expected}: give as many, or change --debate.agents.")
    return given
