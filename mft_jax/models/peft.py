"""One agent's adapter in PEFT's own format, which vLLM and transformers read too; it is read back bit for bit.

A directory holds adapter_config.json and adapter_model.safetensors. For every adapted projection of every layer PEFT
keeps lora_A.weight [R, in] and lora_B.weight [out, R]; here these are `a` [L, in, R] and `b` [L, R, out].
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mft_jax.config import LoraConfig
from mft_jax.errors import UserError
from mft_jax.files import new_directory
from mft_jax.models.config import ModelConfig
from mft_jax.models.json_files import not_of_kind, read_json_object, shorten
from mft_jax.models.lora import projection_shapes
from mft_jax.models.tensor_files import check_finite
from mft_jax.models.weights import projection_module

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_RANK = 2**16
LARGEST_ALPHA = 1e30  # the scale is a float32

Weights = Mapping[str, Mapping[str, np.ndarray]]  # {target: {"a": [L, in, R], "b": [L, R, out]}}

# Fields that do not change what a trained adapter computes: bookkeeping, how it was trained, which modules it adapts
# (the tensors show that), and the settings of options that are off.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout",
    "target_modules", "exclude_modules", "layers_pattern", "megatron_core", "qalora_group_size", "eva_config",
    "loftq_config", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
_CHECKED = {
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "rank_pattern", "alpha_pattern", "bias",
}  # fmt: skip
_OFF = (None, False, [], {}, "")
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # others begin by changing the base
_KIND, _AGAIN = "a PEFT configuration", "save the adapter again"


def save_peft(adapter: Weights, directory: pathlib.Path, lora: LoraConfig, base_name: str | None) -> None:
    """Writes the weights of one agent's adapter, {target: {"a": [L, in, R], "b": [L, R, out]}}, in float32.

    `base_name` is the checkpoint directory or hub name for PEFT to load the base from. Raises UserError when
    `directory` is not empty or cannot be written; an error leaves nothing behind.
    """
    tensors = {}
    for target, pair in adapter.items():
        for part, leaf in pair.items():
            for layer, matrix in enumerate(np.asarray(leaf, np.float32)):
                tensors[_tensor_name(layer, target, part)] = np.ascontiguousarray(matrix.T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "target_modules": list(adapter),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    with new_directory(directory) as temporary:
        path = temporary / WEIGHTS
        save_file(tensors, str(path), metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes it readable by its owner alone
        (temporary / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def load_peft(directory: pathlib.Path, model: ModelConfig) -> tuple[LoraConfig, Weights]:
    """Reads the weights of one agent's adapter, {target: {"a": [L, in, R], "b": [L, R, out]}}, in float32.

    The targets are those that have tensors, however target_modules spells them. Rank-stabilized LoRA becomes the plain
    LoRA of the same scale. Raises UserError for a missing or broken file, an option that is not implemented, and
    tensors that do not fit `model` or hold NaN or infinity; each is named.
    """
    directory = pathlib.Path(directory)
    settings = _read_settings(directory / SETTINGS)
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    if settings.get("use_rslora"):
        alpha *= math.sqrt(rank)  # its scale is alpha / sqrt(R)
    adapter = _stack_layers(_read_tensors(directory / WEIGHTS), rank, model, directory / WEIGHTS)
    return LoraConfig(rank=rank, alpha=alpha, targets=tuple(adapter)), adapter


def base_name(directory: pathlib.Path) -> str | None:
    """The checkpoint directory or hub name that an adapter says it was trained on; None if it does not say.

    Raises UserError as `load_peft` does for its settings.
    """
    return _read_settings(pathlib.Path(directory) / SETTINGS).get("base_model_name_or_path")


def _tensor_name(layer: int, target: str, part: str) -> str:
    return f"base_model.model.{projection_module(layer, target)}.lora_{part.upper()}.weight"


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a directory that PEFT or `mft export --to peft` has written.")
    settings = read_json_object(path, _KIND, _AGAIN)
    try:
        _refuse_unsupported(settings, path)
    except (TypeError, AttributeError, KeyError) as error:  # a field that is missing, or of another type than PEFT's
        raise not_of_kind(path, _KIND, f"{type(error).__name__}: {error}", _AGAIN) from error
    return settings


def _refuse_unsupported(settings: dict[str, Any], path: pathlib.Path) -> None:
    """Raises UserError that names the first setting with which the adapter would compute something else than plain LoRA."""
    if settings.get("peft_type") != "LORA":
        raise UserError(
            f"{path}: peft_type is {shorten(settings.get('peft_type'))}, expected 'LORA': only LoRA is implemented."
        )
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{path}: task_type is {shorten(settings['task_type'])}, expected 'CAUSAL_LM': agents write text."
        )
    _check_values(settings, path)
    refused = [name for name, value in settings.items() if name not in _NEUTRAL | _CHECKED and value not in _OFF]
    if settings.get("bias", "none") != "none":
        refused.append("bias")
    if settings.get("init_lora_weights") not in _INITS:
        refused.append("init_lora_weights")
    for pattern, field in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        if set((settings.get(pattern) or {}).values()) - {settings[field]}:
            refused.append(pattern)
    if refused:
        raise UserError(
            f"{path}: {refused[0]} = {shorten(settings[refused[0]])} is not implemented, expected plain LoRA, of one rank "
            "and alpha, on the linear layers of the blocks: train the adapter without it."
        )


def _check_values(settings: dict[str, Any], path: pathlib.Path) -> None:
    """Raises UserError for a rank, an alpha or a name of the base that cannot be one."""
    rank, alpha, base = settings["r"], settings["lora_alpha"], settings.get("base_model_name_or_path")
    if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
        raise UserError(
            f"{path}: r is {shorten(rank)}, expected a whole number of at least 1 and at most {LARGEST_RANK:,}: {_AGAIN}."
        )
    if type(alpha) not in (int, float) or not 0 < alpha <= LARGEST_ALPHA:  # NaN compares false
        raise UserError(
            f"{path}: lora_alpha is {shorten(alpha)}, expected a number above 0 and at most {LARGEST_ALPHA:g}: {_AGAIN}."
        )
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: base_model_name_or_path is {shorten(base)}, expected text: {_AGAIN}.")


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} does not exist, and other formats are not read: save the adapter as safetensors.")
    try:
        return load_file(path)
    except (SafetensorError, KeyError, OSError) as error:  # KeyError: a type that numpy does not have
        raise UserError(f"{path} is not a complete safetensors file ({error}): copy or save it again.") from error


def _stack_layers(
    tensors: dict[str, np.ndarray], rank: int, model: ModelConfig, path: pathlib.Path
) -> dict[str, dict[str, np.ndarray]]:
    """Tensors stacked over layers, after a check that each target has all of them in the model's shapes."""
    shapes, layers = projection_shapes(model), range(model.layers)
    targets = {_tensor_name(i, target, part): target for target in shapes for i in layers for part in "ab"}
    for name in tensors:
        if name not in targets:
            raise UserError(
                f"{path}: the tensor {name} has no place in this model, where adapters change {', '.join(shapes)} of "
                f"{model.layers} layers: it is an adapter of another base, or of other modules."
            )
    found = {targets[name] for name in tensors}
    if not found:
        raise UserError(f"{path} holds no tensors, expected lora_A and lora_B of some module: {_AGAIN}.")
    adapter = {}
    for target in (target for target in shapes if target in found):
        size_in, size_out = shapes[target]
        adapter[target] = {}
        for part, shape in (("a", (rank, size_in)), ("b", (size_out, rank))):
            names = [_tensor_name(layer, target, part) for layer in layers]
            matrices = [_check_tensor(name, tensors, shape, target, path).T for name in names]
            adapter[target][part] = np.stack(matrices)
    return adapter


def _check_tensor(
    name: str, tensors: dict[str, np.ndarray], shape: tuple[int, int], target: str, path: pathlib.Path
) -> np.ndarray:
    """The tensor of that name in float32. Raises UserError when it is missing, does not fit, or is not finite."""
    if name not in tensors:
        raise UserError(f"{path}: the tensor {name} is missing, expected {target} of every layer: {_AGAIN}.")
    tensor = tensors[name]
    if tensor.shape != shape:
        raise UserError(
            f"{path}: {name} has shape {tensor.shape}, expected {shape}: it is an adapter of another base, or of another "
            "rank than its configuration says."
        )
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{path}: {name} is stored as {tensor.dtype}, expected floating-point numbers: {_AGAIN}.")
    tensor = tensor.astype(np.float32)
    check_finite(tensor, path, name, "train the adapter again, with a lower learning rate")
    return tensor
