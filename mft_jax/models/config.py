"""The shape of a decoder, read from an ordinary Hugging Face config.json.

transformers' own configuration classes fill in a family's defaults and bring old spellings (rope_theta and rope_scaling)
into the new one (rope_parameters). What they would silently ignore is refused (config_fields.py): every field must be
known, and have a value that it may have.
"""

import copy
import dataclasses
import math
import pathlib
from typing import Any, Literal

from mft_jax.errors import UserError
from mft_jax.models.config_fields import check_fields
from mft_jax.models.json_files import read_json_object
from mft_jax.models.rope_config import LongScaling, Rope, parse_rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder of the Llama-like families. The letters are those of `mft_jax.models`."""

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
    local_rope: Rope | None = None  # of layers with a window, where it differs (Gemma 3)
    windows: tuple[int | None, ...]  # [L]: how many last tokens, itself included, a token sees; None: all
    activation: Literal["silu", "gelu_tanh"] = "silu"
    query_scale: float  # queries are multiplied by it
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
        """Longer sequences than this, in tokens, use longrope's other frequencies; None: there is only one set."""
        scaling = self.rope.scaling
        return scaling.original_max_position if isinstance(scaling, LongScaling) else None

    @property
    def window_period(self) -> int:
        """After how many layers the windows of attention repeat, such as 6 if every sixth layer has none."""
        windows = self.windows
        return next(size for size in range(1, len(windows) + 1) if windows[size:] == windows[: len(windows) - size])


_REMEDY = "download the checkpoint again, or give another"
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_model_config(directory: pathlib.Path) -> ModelConfig:
    """Reads `directory`/config.json. Raises UserError when it is missing, broken, or asks for what is not implemented."""
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: give a Hugging Face checkpoint directory (config.json, *.safetensors)."
        )
    raw = read_json_object(path, "a model configuration", "download the checkpoint again")
    return parse_model_config(raw, source=str(path))


def parse_model_config(raw: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """The model's shape, from the fields of a Hugging Face config.json.

    Raises UserError, which names `source` and the field, for a field that this decoder would ignore, and for a value that
    is invalid or not implemented.
    """
    check_fields(raw, source)
    hf, family = _normalise(raw, source), raw["model_type"]
    gemma, gemma3 = family in ("gemma2", "gemma3_text"), family == "gemma3_text"
    activation = hf.hidden_activation if gemma else hf.hidden_act
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{source}: hidden_act {activation!r} is not implemented, expected one of {', '.join(_ACTIVATIONS)}: give "
            "another model."
        )
    head_dim = _head_dim(hf, source)
    ropes = hf.rope_parameters if gemma3 else {"full_attention": hf.rope_parameters}
    rope = lambda layers: parse_rope(
        ropes.get(layers), head_dim, hf.max_position_embeddings, partial=family == "phi3", source=source
    )
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
        tied_embeddings=bool(hf.tie_word_embeddings),
        init_range=hf.initializer_range,
    )


def _normalise(raw: dict[str, Any], source: str) -> Any:
    """The family's configuration object of transformers."""
    from transformers import AutoConfig  # not above: `mft --help` need not wait for it

    try:
        return AutoConfig.for_model(**copy.deepcopy(raw))  # it changes what it is given
    except Exception as error:  # its checks raise many kinds, all of which mean: not a valid configuration
        reason = " ".join(str(error).split())
        raise UserError(f"{source} is not a valid configuration ({reason}): {_REMEDY}.") from error


def _head_dim(hf: Any, source: str) -> int:
    """H. Raises UserError when the heads do not divide evenly what they must."""
    heads, kv_heads = hf.num_attention_heads, hf.num_key_value_heads
    head_dim = getattr(hf, "head_dim", None)
    if head_dim is None and hf.hidden_size % heads:
        raise UserError(
            f"{source}: hidden_size is {hf.hidden_size}, expected a multiple of the {heads} attention heads: {_REMEDY}."
        )
    if heads % kv_heads:
        raise UserError(
            f"{source}: num_attention_heads is {heads}, expected a multiple of num_key_value_heads, {kv_heads}: {_REMEDY}."
        )
    return head_dim or hf.hidden_size // heads


def _windows(hf: Any, source: str) -> tuple[int | None, ...]:
    """The window of each layer; families without a list of layer types have the same one everywhere."""
    window = getattr(hf, "sliding_window", None)
    kinds = getattr(hf, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * hf.num_hidden_layers
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown:
        raise UserError(
            f"{source}: the layer type {unknown[0]!r} is not implemented by this decoder: give another model."
        )
    if len(kinds) != hf.num_hidden_layers:
        raise UserError(
            f"{source}: layer_types has {len(kinds)} entries, expected {hf.num_hidden_layers}, one for each layer: {_REMEDY}."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
