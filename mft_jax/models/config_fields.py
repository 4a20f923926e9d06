"""The fields of a Hugging Face config.json: which of them the decoder implements, and which values they may have."""

from typing import Any

from mft_jax.errors import UserError
from mft_jax.models.json_files import shorten

# Fields that do not change what this decoder computes: bookkeeping, dropout (off at inference and in LoRA finetuning
# here), and settings of generation. `check_fields` also ignores names that begin with _, and token ids, which the
# tokenizer and generation_config.json decide.
_NEUTRAL = {
    "architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache", "attention_dropout",
    "embd_pdrop", "resid_pdrop", "hidden_dropout", "pretraining_tp", "return_dict", "output_attentions",
    "output_hidden_states", "is_llama_config", "rope_interleaved", "auto_map", "chunk_size_feed_forward", "id2label",
    "label2id", "problem_type", "is_encoder_decoder", "transformers.js_config", "cache_implementation", "tokenizer_class",
    "torchscript", "task_specific_params", "max_length", "do_sample", "temperature", "top_p", "top_k",
    "repetition_penalty", "unsloth_version", "unsloth_fixed",
}  # fmt: skip
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_COMMON = {
    *_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "tie_word_embeddings", "initializer_range",
}  # fmt: skip
_GEMMA = {
    "hidden_act", "hidden_activation", "query_pre_attn_scalar", "sliding_window", "final_logit_softcapping",
    "layer_types", "attention_bias",
}  # fmt: skip
_QWEN = {"hidden_act", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
_FAMILIES = {  # model_type -> the fields that this family has besides _COMMON
    "llama": {"hidden_act", "attention_bias", "mlp_bias"},
    "mistral": {"hidden_act", "sliding_window"},
    "phi3": {"hidden_act", "sliding_window", "original_max_position_embeddings", "partial_rotary_factor"},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"attention_bias"},
    "gemma2": _GEMMA | {"attn_logit_softcapping"},
    "gemma3_text": _GEMMA | {"rope_local_base_freq", "sliding_window_pattern"},
}

# The values that each field may have. A size is several times the largest of any published model: one that is far
# beyond it is a broken file, and would take all time or memory before the weights are found not to fit.
_SIZES = {  # whole numbers: least and greatest
    "vocab_size": (1, 2**22),
    "hidden_size": (1, 2**16),
    "intermediate_size": (1, 2**19),
    "num_hidden_layers": (1, 512),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 2048),
    "max_position_embeddings": (2, 2**27),
    "original_max_position_embeddings": (2, 2**27),
    "sliding_window": (1, 2**27),
    "max_window_layers": (0, 512),
    "sliding_window_pattern": (1, 512),
}
_GREATEST_NUMBER = 1e15
_NUMBERS = {  # above 0 and at most _GREATEST_NUMBER
    "rms_norm_eps", "initializer_range", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "rope_theta", "rope_local_base_freq", "partial_rotary_factor", "factor", "low_freq_factor", "high_freq_factor",
    "attention_factor",
}  # fmt: skip
_NEVER_NULL = {*_REQUIRED, "max_position_embeddings", "rms_norm_eps", "initializer_range", "query_pre_attn_scalar"}
_NUMBER_LISTS = {"short_factor", "long_factor"}
_FLAGS = {"tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"}
_TEXTS = {"hidden_act", "hidden_activation", "rope_type", "type"}
_ROPE_SETTINGS = {"rope_scaling", "rope_parameters"}  # objects of fields
_ROPE_LAYERS = {"full_attention", "sliding_attention"}  # in rope_parameters: an object for each kind of layer


def check_fields(raw: dict[str, Any], source: str) -> None:
    """Raises UserError that names a field which is missing, not implemented, or has a value that it may not have.

    A field may be null, which stands for the family's default, unless it is in _NEVER_NULL. A field that is not known is
    accepted if it is null or false.
    """
    own = _FAMILIES.get(str(raw.get("model_type")))
    if own is None:
        raise UserError(
            f"{source}: model_type {shorten(raw.get('model_type'))} is not supported; supported: {', '.join(_FAMILIES)}."
        )
    known = _NEUTRAL | _COMMON | own
    bookkeeping = lambda name: name.startswith("_") or name.endswith("_token_id")
    unknown = sorted(k for k, v in raw.items() if k not in known and not bookkeeping(k) and v not in (None, False))
    if raw.get("rope_interleaved"):
        unknown.append("rope_interleaved")
    if unknown:
        raise UserError(
            f"{source}: field {unknown[0]!r} = {shorten(raw[unknown[0]])} is not implemented by this decoder: give "
            "another model."
        )
    missing = [name for name in _REQUIRED if name not in raw]
    if missing:
        raise UserError(f"{source}: field {missing[0]!r} is missing: download the checkpoint again, or give another.")
    _check_values(raw, source)


def _check_values(fields: dict[str, Any], source: str) -> None:
    for name, value in fields.items():
        expected = None if value is None and name not in _NEVER_NULL else _describe_expected(name, value)
        if expected is not None:
            raise UserError(
                f"{source}: {name} is {shorten(value)}, expected {expected}: download the checkpoint again, or give another."
            )
        if name in _ROPE_SETTINGS | _ROPE_LAYERS and value is not None:
            _check_values(value, source)


def _describe_expected(name: str, value: Any) -> str | None:
    """What is expected of a field instead of `value`; None where the value is one that the field may have."""
    if name in _SIZES:
        least, greatest = _SIZES[name]
        fits = type(value) is int and least <= value <= greatest
        return None if fits else f"a whole number from {least:,} to {greatest:,}"
    if name in _NUMBERS:
        return None if _is_number(value) else f"a number above 0 and at most {_GREATEST_NUMBER:g}"
    if name in _NUMBER_LISTS:
        return None if isinstance(value, list) and all(map(_is_number, value)) else "a list of numbers above 0"
    if name in _FLAGS:
        return None if isinstance(value, bool) else "true or false"
    if name in _TEXTS:
        return None if isinstance(value, str) else "text"
    if name in _ROPE_SETTINGS | _ROPE_LAYERS:
        return None if isinstance(value, dict) else "an object"
    if name == "layer_types":
        fits = isinstance(value, list) and all(isinstance(kind, str) for kind in value)
        return None if fits else "a list of texts"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _GREATEST_NUMBER  # NaN compares false
