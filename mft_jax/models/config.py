"""The shape of a decoder, read from an ordinary Hugging Face config.json.

transformers' own configuration classes fill in a family's defaults and bring old spellings (rope_theta and rope_scaling)
into the new one (rope_parameters). What they would silently ignore is refused here: every field must be known.
"""

import copy
import dataclasses
import json
import math
import pathlib
from typing import Any, Literal

from mft_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every frequency is slowed by `factor`."""

    factor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths are slowed by `factor`, short ones kept, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongScaling:
    """Each frequency is slowed by its own factor: one set up to `original_max_position` tokens, another for longer ones."""

    short_factors: tuple[float, ...]  # one per pair of turned dimensions
    long_factors: tuple[float, ...]
    original_max_position: int
    attention_factor: float  # scales the turned queries and keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: the first `dims` of a head's H dimensions are turned, the others pass."""

    theta: float
    dims: int
    scaling: LinearScaling | Llama3Scaling | LongScaling | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder of the Llama-like families. Letters are those of the house: see `mft_jax.models`."""

    vocab_size: int  # V
    embed: int  # D
    ffw: int  # F
    layers: int  # L
    heads: int  # N, query heads
    kv_heads: int  # K
    head_dim: int  # H
    max_positions: int  # longest sequence the checkpoint was made for, in tokens
    norm_eps: float
    rope: Rope
    local_rope: Rope | None = None  # of layers with a window, where it is another one (Gemma 3)
    windows: tuple[int | None, ...]  # [L]: how many last tokens, itself included, a token sees; None: all
    activation: Literal["silu", "gelu_tanh"] = "silu"
    query_scale: float  # of q before it meets the keys
    attention_softcap: float | None = None  # c: scores become c tanh(scores / c)
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    norm_offset: bool = False  # norm weights are stored as their difference from 1 (Gemma)
    out_norms: bool = False  # norms after attention and after the MLP as well as before them (Gemma)
    qk_norm: bool = False  # a norm over each head's queries and keys (Qwen 3, Gemma 3)
    fused: bool = False  # q, k, v are one projection, gate and up another (Phi-3)
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied_embeddings: bool
    init_range: float = 0.02  # standard deviation of freshly drawn weights

    @property
    def long_after(self) -> int | None:
        """Sequences of more tokens than this are turned by other frequencies; None: all by the same."""
        scaling = self.rope.scaling
        return scaling.original_max_position if isinstance(scaling, LongScaling) else None


# Fields of config.json that do not change what this decoder computes: bookkeeping, dropout (off at inference and in
# LoRA finetuning here), and token ids, which the tokenizer and generation_config.json decide.
_NEUTRAL = {
    "architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache", "attention_dropout",
    "embd_pdrop", "resid_pdrop", "hidden_dropout", "pretraining_tp", "return_dict", "output_attentions",
    "output_hidden_states", "is_llama_config", "rope_interleaved", "auto_map", "chunk_size_feed_forward", "id2label",
    "label2id", "problem_type", "is_encoder_decoder", "transformers.js_config", "cache_implementation", "tokenizer_class",
    "torchscript", "task_specific_params", "max_length", "do_sample", "temperature", "top_p", "top_k",
    "repetition_penalty", "unsloth_version", "unsloth_fixed",
}  # fmt: skip
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_READ = {
    *_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "tie_word_embeddings", "initializer_range",
}  # fmt: skip
_GEMMA = {
    "hidden_act", "hidden_activation", "query_pre_attn_scalar", "sliding_window", "final_logit_softcapping",
    "layer_types", "attention_bias",
}  # fmt: skip
_QWEN = {"hidden_act", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
_FAMILIES = {  # model_type -> the fields that this family has besides _READ
    "llama": {"hidden_act", "attention_bias", "mlp_bias"},
    "mistral": {"hidden_act", "sliding_window"},
    "phi3": {"hidden_act", "sliding_window", "original_max_position_embeddings", "partial_rotary_factor"},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"attention_bias"},
    "gemma2": _GEMMA | {"attn_logit_softcapping"},
    "gemma3_text": _GEMMA | {"rope_local_base_freq", "sliding_window_pattern"},
}
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_ROPE_SETTINGS = {  # rope type -> its settings
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
_ROPE_OPTIONS = {"longrope": ("factor", "attention_factor")}


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
    family = raw.get("model_type")
    _refuse_unknown(raw, source)
    hf = _normalised(raw, source)
    gemma, gemma3 = family in ("gemma2", "gemma3_text"), family == "gemma3_text"
    activation = hf.hidden_activation if gemma else hf.hidden_act
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{source}: hidden_act {activation!r} is not implemented; expected one of {', '.join(_ACTIVATIONS)}."
        )
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    ropes = hf.rope_parameters if gemma3 else {"full_attention": hf.rope_parameters}
    rope = lambda kind: _rope(ropes[kind], head_dim, hf.max_position_embeddings, family == "phi3", source)
    return ModelConfig(
        vocab_size=hf.vocab_size,
        embed=hf.hidden_size,
        ffw=hf.intermediate_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        kv_heads=hf.num_key_value_heads,
        head_dim=head_dim,
        max_positions=hf.max_position_embeddings,
        norm_eps=hf.rms_norm_eps,
        rope=rope("full_attention"),
        local_rope=rope("sliding_attention") if gemma3 else None,
        windows=_windows(hf, source),
        activation=_ACTIVATIONS[activation],
        query_scale=(hf.query_pre_attn_scalar if gemma else head_dim) ** -0.5,
        attention_softcap=hf.attn_logit_softcapping if family == "gemma2" else None,
        logit_softcap=hf.final_logit_softcapping if gemma else None,
        embedding_scale=math.sqrt(hf.hidden_size) if gemma else 1.0,
        norm_offset=gemma,
        out_norms=gemma,
        qk_norm=family in ("qwen3", "gemma3_text"),
        fused=family == "phi3",
        qkv_bias=family == "qwen2" or bool(getattr(hf, "attention_bias", False)),
        output_bias=bool(getattr(hf, "attention_bias", False)),
        mlp_bias=bool(getattr(hf, "mlp_bias", False)),
        tied_embeddings=hf.tie_word_embeddings,
        init_range=hf.initializer_range,
    )


def _refuse_unknown(raw: dict[str, Any], source: str) -> None:
    own = _FAMILIES.get(str(raw.get("model_type")))
    if own is None:
        raise UserError(
            f"{source}: model_type {raw.get('model_type')!r} is not supported; supported: {', '.join(_FAMILIES)}."
        )
    known = _NEUTRAL | _READ | own
    bookkeeping = lambda name: name.startswith("_") or name.endswith("_token_id")
    unknown = sorted(k for k, v in raw.items() if k not in known and not bookkeeping(k) and v not in (None, False))
    if raw.get("rope_interleaved"):
        unknown.append("rope_interleaved")
    if unknown:
        raise UserError(f"{source}: field {unknown[0]!r} = {raw[unknown[0]]!r} is not implemented by this decoder.")
    missing = [name for name in _REQUIRED if name not in raw]
    if missing:
        raise UserError(f"{source}: field {missing[0]!r} is missing: this is not a complete model configuration.")


def _normalised(raw: dict[str, Any], source: str) -> Any:
    """The family's configuration object of transformers."""
    from transformers import AutoConfig  # not above: `mft --help` need not wait for it

    try:
        return AutoConfig.for_model(**copy.deepcopy(raw))  # it changes what it is given
    except Exception as error:  # its checks raise many kinds, all of which mean: not a valid configuration
        raise UserError(f"{source} is not a valid configuration ({' '.join(str(error).split())}).") from error


def _windows(hf: Any, source: str) -> tuple[int | None, ...]:
    """The window of each layer; families without a list of layer types have the same one everywhere."""
    window = getattr(hf, "sliding_window", None)
    kinds = getattr(hf, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * hf.num_hidden_layers
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown:
        raise UserError(f"{source}: the layer type {unknown[0]!r} is not implemented by this decoder.")
    if len(kinds) != hf.num_hidden_layers:
        raise UserError(f"{source}: layer_types has {len(kinds)} entries, expected {hf.num_hidden_layers}.")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(parameters: dict[str, Any], head_dim: int, max_positions: int, partial: bool, source: str) -> Rope:
    """Checks the settings of one rotary embedding, in transformers 5's spelling."""
    settings = {name: value for name, value in parameters.items() if value is not None}
    kind, theta = settings.pop("rope_type"), float(settings.pop("rope_theta"))
    settings.pop("type", None)  # the old name of rope_type
    if kind not in _ROPE_SETTINGS:
        implemented = ", ".join(map(repr, _ROPE_SETTINGS))
        raise UserError(f"{source}: rope type {kind!r} is not implemented; implemented: {implemented}.")
    share = settings.pop("partial_rotary_factor", 1.0) if partial else 1.0
    dims = int(head_dim * share)
    needed = _ROPE_SETTINGS[kind]
    missing = sorted(set(needed) - set(settings))
    if missing:
        raise UserError(f"{source}: the {kind} rope settings lack {missing[0]!r}.")
    extra = sorted(set(settings) - set(needed) - set(_ROPE_OPTIONS.get(kind, ())))
    if kind == "default" and "original_max_position_embeddings" in extra:
        extra.remove("original_max_position_embeddings")  # Phi-3 4k states it without using it
    if extra:
        raise UserError(
            f"{source}: the rope setting {extra[0]!r} = {settings[extra[0]]!r} is not implemented for {kind!r}."
        )
    return Rope(theta=theta, dims=dims, scaling=_scaling(kind, settings, dims, max_positions, source))


def _scaling(
    kind: str, settings: dict[str, Any], dims: int, max_positions: int, source: str
) -> LinearScaling | Llama3Scaling | LongScaling | None:
    if kind == "linear":
        return LinearScaling(factor=settings["factor"])
    if kind == "llama3":
        low, high = settings["low_freq_factor"], settings["high_freq_factor"]
        return Llama3Scaling(
            factor=settings["factor"],
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position=settings["original_max_position_embeddings"],
        )
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            if len(settings[name]) != dims // 2:
                raise UserError(
                    f"{source}: the rope setting {name!r} has {len(settings[name])} numbers, expected {dims // 2}."
                )
        original = settings["original_max_position_embeddings"]
        factor = settings.get("factor") or max_positions / original
        usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return LongScaling(
            short_factors=tuple(settings["short_factor"]),
            long_factors=tuple(settings["long_factor"]),
            original_max_position=original,
            attention_factor=settings.get("attention_factor") or usual,
        )
    return None
