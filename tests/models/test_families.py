"""Small random models of every family, compared with transformers: logits at two lengths, bfloat16, greedy decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.config import LoraConfig, SamplingConfig
from mft_jax.models.lora import init_weights
from mft_jax.models.peft import load_peft, save_peft
from mft_jax.models.weights import load_base
from mft_jax.programs import Programs
from mft_jax.sampling import Request, Sampler
from mft_jax.seeds import row_key
from tests.models.families import FAMILIES, LONGROPE, make_pair, random_tokens
from tests.models.test_peft import assert_peft_agrees

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    return make_pair(request.param, tmp_path_factory.mktemp("family"))


def logits_of(graphdef, base, tokens):
    return np.asarray(jax.jit(lambda base, tokens: nnx.merge(graphdef, base)(tokens))(base, tokens))


def reference_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


@pytest.mark.parametrize("length", [16, 2048])
def test_logits_equal_transformers(pair, length):
    tokens = random_tokens(1, length)
    expected = reference_logits(pair.reference, tokens)
    logits = logits_of(pair.graphdef, pair.base, tokens)
    error = np.abs(logits - expected).max() / expected.std()
    print(f"{pair.name}, {length} tokens: largest error {error:.0e} of the logits' deviation")
    assert error <= 2e-4


def test_bfloat16_changes_the_distribution_little(tmp_path, pair):
    """The KL divergence from transformers in bfloat16 is small for every token, for weights of a realistic size."""
    import torch

    soft = make_pair(pair.name, tmp_path, initializer_range=0.1)
    graphdef, base = load_base(tmp_path, soft.config, dtype=jnp.bfloat16)
    tokens = random_tokens(1, 128)
    logits = logits_of(graphdef, base, tokens)
    expected = reference_logits(soft.reference.to(torch.bfloat16), tokens)
    assert expected.std() > 0.3
    divergence = kl_divergence(expected, logits).max()
    print(f"{pair.name}, bfloat16: largest divergence of a token {divergence:.0e} nats")
    assert divergence <= 1e-3


def kl_divergence(p, q):
    """KL(p || q) for each row of logits, in nats."""
    p, q = (jax.nn.log_softmax(x.astype(np.float32)) for x in (p, q))
    return np.asarray(jnp.sum(jnp.exp(p) * (p - q), axis=-1))


def test_an_adapter_equals_peft(pair, tmp_path):
    """For all linear layers, fused ones included. The saved adapter is also read back bitwise identical."""
    lora = LoraConfig(rank=2, alpha=3.0)
    adapter = jax.jit(lambda key: init_weights(pair.config, lora, key))(jax.random.key(1))
    rng = np.random.default_rng(1)
    adapter = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype("f4"), adapter)
    save_peft(adapter, tmp_path / "adapter", lora, str(pair.directory))
    assert_peft_agrees(pair.directory, tmp_path / "adapter", lora, adapter)
    found, back = load_peft(tmp_path / "adapter", pair.config)
    assert set(found.targets) == set(adapter)
    jax.tree.map(np.testing.assert_array_equal, back, adapter)


def test_greedy_decoding_equals_transformers_on_a_padded_batch(pair, one_device):
    """Longrope past the original context is in the next test: in transformers the longest row decides for its batch."""
    lengths = (5, 50, 21) if pair.name not in LONGROPE else (5, 40, 21)
    prompts = [random_tokens(1, length, seed=length)[0].tolist() for length in lengths]
    assert sampled(pair, prompts, one_device) == generated(pair.reference, prompts)


@pytest.mark.parametrize("name", LONGROPE)
def test_a_row_that_grows_past_the_original_context_is_prefilled_again(name, tmp_path, one_device):
    """Prompts that stay below 64 tokens, that grow past 64, that start at 64, and that are longer from the start."""
    pair = make_pair(name, tmp_path)
    prompts = [random_tokens(1, length, seed=length)[0].tolist() for length in (5, 50, 63, 64, 65, 90)]
    assert sampled(pair, prompts, one_device) == [generated(pair.reference, [prompt])[0] for prompt in prompts]


NEW = 24


def sampled(pair, prompts, mesh):
    settings = SamplingConfig(temperature=0.0, max_new_tokens=NEW, rows=4, prefill_rows=2, steps_per_dispatch=8)
    sampler = Sampler(Programs(pair.graphdef, pair.config, mesh), pair.base, settings, stop_ids=[0], lanes=1)
    completions, _ = sampler.sample([Request(None, prompt, row_key(i)) for i, prompt in enumerate(prompts)])
    assert all(completion.new_tokens <= NEW for completion in completions)
    return [list(completion.ids) for completion in completions]


def generated(model, prompts):
    """Greedy completions of transformers, for a batch that is padded on the left."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=0, pad_token_id=0
    )
    texts = output[:, longest:].tolist()
    return [text[: text.index(0)] if 0 in text else text for text in texts]
