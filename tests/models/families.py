"""A small random model of every family, created and saved by transformers, and loaded by this package."""

import copy
import dataclasses
import pathlib

import numpy as np
from flax import nnx

from mft_jax.models.config import ModelConfig, read_model_config
from mft_jax.models.weights import load_base

VOCAB = 300
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,  # large, so that attention and the logits are far from uniform
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 5.0, 20.0],
}
FAMILIES = {  # name -> (model type, fields)
    "llama 2": ("llama", {}),
    "llama 3": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}),
    "llama 3.2": ("llama", {"rope_parameters": LLAMA3 | {"factor": 32.0}, "tie_word_embeddings": True, "head_dim": 16}),
    "llama, old spelling, biased": (
        "llama",
        {"rope_scaling": LLAMA3, "rope_theta": 5e5, "attention_bias": True, "mlp_bias": True},
    ),
    "smollm2": ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, "rope_theta": 1e5,
                          "tie_word_embeddings": True}),
    "mistral v0.1": ("mistral", {"sliding_window": 24}),
    "mistral v0.3": ("mistral", {"sliding_window": None, "rope_theta": 1e6, "head_dim": 16}),
    "phi-3 4k": ("phi3", {"sliding_window": 200, "original_max_position_embeddings": 4096}),
    "phi-3 128k": ("phi3", {"rope_scaling": LONG, "original_max_position_embeddings": 64}),
    "phi-3, partial": (
        "phi3",
        {"rope_scaling": LONG | {"type": "su", "short_factor": [1.0, 1.5], "long_factor": [2.0, 9.0]},
         "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    ),
    "qwen2": ("qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "rope_theta": 1e6}),
    "gemma 2": ("gemma2", {"sliding_window": 30, "head_dim": 16, "query_pre_attn_scalar": 24,
                           "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma 3": ("gemma3_text", {"sliding_window": 30, "head_dim": 16, "query_pre_attn_scalar": 24,
                                "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                                "rope_theta": 1e6, "rope_local_base_freq": 1e3}),
}  # fmt: skip
LONGROPE = ("phi-3 128k", "phi-3, partial")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model in transformers and in this package, with the same weights."""

    name: str
    directory: pathlib.Path
    reference: object  # the PyTorch model
    config: ModelConfig
    graphdef: nnx.GraphDef
    base: nnx.State


def make_pair(name: str, directory: pathlib.Path, **changes) -> Pair:
    """Creates a random model, saves it to `directory` with transformers, and loads it from there."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, fields = FAMILIES[name]
    torch.manual_seed(0)
    own = copy.deepcopy(SMALL | fields | changes)  # transformers adds fields to nested dictionaries in place
    config = AutoConfig.for_model(family, **own)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in reference.named_parameters():
            if parameter_name.endswith("bias") or "norm" in parameter_name:
                # transformers initializes them to 0 or 1, which would hide a missing or misplaced one
                parameter.add_(torch.randn_like(parameter) * 0.3)
    reference.save_pretrained(directory)
    config = read_model_config(directory)
    return Pair(name, directory, reference, config, *load_base(directory, config))


def random_tokens(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCAB, (rows, length))
