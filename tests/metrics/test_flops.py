import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mft_jax.config import LoraConfig
from mft_jax.metrics import flops
from mft_jax.models.config import ModelConfig, Rope
from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter, init_weights

TINY = ModelConfig(
    vocab_size=11, embed=4, ffw=6, layers=2, heads=2, kv_heads=1, head_dim=3, max_positions=64, norm_eps=1e-5,
    rope=Rope(theta=1e4, dims=2), windows=(None, None), query_scale=3**-0.5, tied_embeddings=True,
)  # fmt: skip
LORA = LoraConfig(rank=5, targets=("q_proj", "down_proj"))


def test_parameters_by_hand():
    # q 4x6, k 4x3, v 4x3, o 6x4, gate 4x6, up 4x6, down 6x4
    assert flops.matmul_parameters(TINY) == 2 * (24 + 12 + 12 + 24 + 24 + 24 + 24)
    assert flops.lora_parameters(TINY, LORA) == 2 * 5 * ((4 + 6) + (6 + 4))


def test_sampling_by_hand():
    # A prompt of 3 and 2 new tokens: tokens 1..4 are fed to the model, attend to 1 + 2 + 3 + 4; logits after 3 and 4.
    base = 2 * 288 * 4 + 4 * 3 * 2 * 2 * 10 + 2 * 4 * 11 * 2
    assert flops.sampling_flops(TINY, None, prompt_tokens=3, new_tokens=2) == base
    assert flops.sampling_flops(TINY, LORA, prompt_tokens=3, new_tokens=2) == base + 2 * 200 * 4
    # 2 tokens of the prompt are in the cache: tokens 3 and 4 are fed to the model and attend to 3 + 4.
    cached = 2 * 288 * 2 + 4 * 3 * 2 * 2 * 7 + 2 * 4 * 11 * 2
    assert flops.sampling_flops(TINY, None, prompt_tokens=3, new_tokens=2, cached_tokens=2) == cached
    assert flops.sampling_flops(TINY, LORA, prompt_tokens=3, new_tokens=0) == 0


def test_training_by_hand():
    # The tokens of dialogues of 3 and 2 tokens attend to 6 and 3 tokens of their own dialogue; 2 targets.
    expected = (4 * 288 + 6 * 200) * 5 + 12 * 3 * 2 * 2 * 9 + 4 * 4 * 11 * 2
    assert flops.training_flops(TINY, LORA, lengths=[3, 2], targets=2) == expected


def test_a_window_limits_the_attended_tokens():
    """Compares with the explicit sum over positions, with and without a cache."""
    for length, cached, window in [(10, 0, None), (10, 0, 4), (10, 6, 4), (10, 2, 4), (3, 0, 4), (4, 4, 1)]:
        seen = [min(p + 1, window or p + 1) for p in range(cached, length)]
        assert flops.attended(length, cached, window) == sum(seen)
    mixed = dataclasses.replace(TINY, windows=(2, None))
    # Tokens 1..4 attend to 1 + 2 + 2 + 2 tokens in the first layer, and to 1 + 2 + 3 + 4 in the second.
    expected = 2 * 288 * 4 + 4 * 3 * 2 * (7 + 10) + 2 * 4 * 11 * 2
    assert flops.sampling_flops(mixed, None, prompt_tokens=3, new_tokens=2) == expected
    assert flops.training_flops(mixed, LORA, lengths=[3], targets=0) == (4 * 288 + 6 * 200) * 3 + 12 * 3 * 2 * (5 + 6)


def test_forward_agrees_with_the_compiler():
    """XLA's count for the decoder, which includes norms, softmax and masked attention scores, is up to 6 % larger."""
    config = dataclasses.replace(TINY, embed=64, ffw=128, heads=4, kv_heads=2, head_dim=16, vocab_size=128)
    lora = LoraConfig(rank=8)
    model = Decoder(config)
    adapter = Adapter(init_weights(config, lora, jax.random.key(0)), jnp.float32(lora.scale))
    graphdef, base = nnx.split(model)
    forward = jax.jit(lambda base, adapter, tokens: nnx.merge(graphdef, base)(tokens, adapter))
    compiled = forward.lower(base, adapter, jnp.zeros((1, 32), jnp.int32)).compile()
    counted = flops.forward_flops(config, lora, tokens=32, context=2 * 32 * 32, logits=32)
    assert counted == pytest.approx(compiled.cost_analysis()["flops"], rel=0.06)
