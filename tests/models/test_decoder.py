import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.models.config import read_model_config
from mft_jax.models.weights import load_base
from tests.conftest import TINY

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "tied": {},
    "untied, biased": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}, "num_key_value_heads": 4},
    "old spelling": {"rope_scaling": LLAMA3, "rope_theta": 1000.0, "num_key_value_heads": 1, "head_dim": 16},
}


@pytest.mark.torch
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [16, 2048])
def test_logits_equal_transformers(tmp_path, variant, length):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fields = TINY | {"max_position_embeddings": 4096, "initializer_range": 0.3} | VARIANTS[variant]
    reference = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):  # transformers starts them at zero, which would hide a missing one
                parameter.normal_(0, 0.3)
    reference.save_pretrained(tmp_path)
    config = read_model_config(tmp_path)
    graphdef, base = load_base(tmp_path, config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
    expected = reference(torch.tensor(tokens)).logits.detach().numpy()
    logits = jax.jit(lambda base, tokens: nnx.merge(graphdef, base)(tokens))(base, tokens)
    assert np.abs(logits - expected).max() <= 2e-4 * expected.std()


def test_an_adapter_is_the_merged_weight(tiny):
    """x W + scale x a b = x (W + scale a b), for every target of every layer."""
    tokens = jnp.arange(24).reshape(2, 12)
    run = jax.jit(lambda base, adapter: nnx.merge(tiny.graphdef, base)(tokens, adapter))

    @jax.jit
    def merged(base, adapter):
        model = nnx.merge(tiny.graphdef, base)
        for layer, block in enumerate(model.blocks):
            for target, pair in adapter.items():
                kernel = getattr(block, target).kernel
                kernel[...] = kernel[...] + tiny.lora.scale * pair["a"][layer] @ pair["b"][layer]
        return model(tokens)

    adapted = run(tiny.base, tiny.agent(1))
    np.testing.assert_allclose(adapted, merged(tiny.base, tiny.agent(1)), atol=2e-4)
    assert np.abs(adapted - run(tiny.base, None)).max() > 0.1


def test_packed_segments_do_not_see_each_other(tiny):
    hidden_of = jax.jit(lambda *rows: nnx.merge(tiny.graphdef, tiny.base).hidden(*rows))
    first, second = jnp.arange(1, 8), jnp.arange(50, 60)
    row = jnp.concatenate([first, second])[None]
    positions = jnp.concatenate([jnp.arange(7), jnp.arange(10)])[None]
    segments = jnp.concatenate([jnp.full(7, 1), jnp.full(10, 2)])[None]
    hidden = hidden_of(row, positions, segments)
    alone = hidden_of(second[None], jnp.arange(10)[None], jnp.zeros((1, 10), int))
    np.testing.assert_allclose(hidden[:, 7:], alone, atol=1e-5)
