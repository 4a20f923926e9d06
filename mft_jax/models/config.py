"""The shape of a decoder, read from an ordinary Hugging Face config.json."""

import dataclasses
import json
import pathlib
from typing import Any

from mft_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """The llama3 rule: long wavelengths are slowed by `factor`, short ones kept, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder of the Llama family. Letters are those of the house: see `mft_jax.models`."""

    vocab_size: int  # V
    embed: int  # D
    ffw: int  # F
    layers: int  # L
    heads: int  # N, query heads
    kv_heads: int  # K
    head_dim: int  # H
    max_positions: int  # longest sequence the checkpoint was made for, in tokens
    norm_eps: float
    rope_theta: float
    rope_scaling: RotaryScaling | None
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    init_range: float  # standard deviation of freshly drawn weights


# Fields of config.json that do not change what this decoder computes: bookkeeping, dropout (off at inference and in
# LoRA finetuning here), and token ids, which the tokenizer and generation_config.json decide.
_NEUTRAL = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "pretraining_tp", "return_dict",
    "output_attentions", "output_hidden_states", "is_llama_config", "rope_interleaved", "chunk_size_feed_forward",
    "id2label", "label2id", "problem_type", "is_encoder_decoder", "transformers.js_config",
}  # fmt: skip
_READ = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "hidden_act",
    "tie_word_embeddings", "attention_bias", "mlp_bias", "initializer_range",
}  # fmt: skip
_MODEL_TYPES = ("llama",)
_LLAMA3 = {  # its settings in config.json -> fields of RotaryScaling
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
}


def read_model_config(directory: pathlib.Path) -> ModelConfig:
    """Reads `directory`/config.json. Raises UserError when it is missing or asks for what the decoder does not do."""
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: give a Hugging Face checkpoint directory (config.json, *.safetensors)."
        )
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download the checkpoint again.") from error
    return parse_model_config(raw, source=str(path))


def parse_model_config(raw: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """Checks every field of a Hugging Face configuration; a field this decoder would ignore is an error that names it."""
    if raw.get("model_type") not in _MODEL_TYPES:
        raise UserError(
            f"{source}: model_type {raw.get('model_type')!r} is not supported; supported: {', '.join(_MODEL_TYPES)}."
        )
    unknown = sorted(k for k, v in raw.items() if k not in _NEUTRAL | _READ and v not in (None, False))
    if unknown:
        raise UserError(f"{source}: field {unknown[0]!r} = {raw[unknown[0]]!r} is not implemented by this decoder.")
    if raw.get("rope_interleaved"):
        raise UserError(f"{source}: field 'rope_interleaved' = true is not implemented by this decoder.")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: hidden_act {raw['hidden_act']!r} is not implemented; expected 'silu'.")
    missing = [
        k
        for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if k not in raw
    ]
    if missing:
        raise UserError(f"{source}: field {missing[0]!r} is missing: this is not a complete model configuration.")
    theta, scaling = _rotary(raw, source)
    heads = raw["num_attention_heads"]
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        embed=raw["hidden_size"],
        ffw=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        max_positions=raw.get("max_position_embeddings", 2048),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=raw.get("tie_word_embeddings", False),
        attention_bias=raw.get("attention_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
        init_range=raw.get("initializer_range", 0.02),
    )


def _rotary(raw: dict[str, Any], source: str) -> tuple[float, RotaryScaling | None]:
    """Both spellings: rope_theta with rope_scaling (transformers 4), and rope_parameters (transformers 5)."""
    parameters = dict(raw.get("rope_scaling") or {}) | dict(raw.get("rope_parameters") or {})
    theta = float(parameters.pop("rope_theta", raw.get("rope_theta") or 10000.0))
    kind = parameters.pop("rope_type", None) or parameters.get("type", "default")
    parameters.pop("type", None)
    names = {"default": (), "llama3": tuple(_LLAMA3)}.get(kind)
    if names is None:
        raise UserError(f"{source}: rope type {kind!r} is not implemented; implemented: 'default', 'llama3'.")
    missing = sorted(set(names) - set(parameters))
    if missing:
        raise UserError(f"{source}: the {kind} rope settings lack {missing[0]!r}.")
    extra = sorted(name for name in set(parameters) - set(names) if parameters[name] is not None)
    if extra:
        raise UserError(
            f"{source}: the rope setting {extra[0]!r} = {parameters[extra[0]]!r} is not implemented for {kind!r}."
        )
    return theta, RotaryScaling(**{_LLAMA3[name]: parameters[name] for name in names}) if names else None
