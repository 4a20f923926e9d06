"""A real instruct model, compared with transformers: logits of up to 2,048 tokens, greedy decoding of up to 1,024.

Set its checkpoint directory with `--real-model DIR` or the environment variable MFT_REAL_MODEL. Otherwise these tests
are deselected.
"""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from mft_jax import prompts
from mft_jax.config import SamplingConfig
from mft_jax.models.chat import load_chat
from mft_jax.models.config import read_model_config
from mft_jax.models.weights import load_base
from mft_jax.programs import Programs
from mft_jax.sampling import Request, Sampler
from mft_jax.seeds import row_key

pytestmark = [pytest.mark.real, pytest.mark.torch]
PROSE = (pathlib.Path(__file__).parents[2] / "LICENSE").read_text()  # English text of more than 2,048 tokens
NEW = 40


@pytest.fixture(scope="module")
def model(real_model):
    return read_model_config(real_model), *load_base(real_model, read_model_config(real_model))


@pytest.fixture(scope="module")
def reference(real_model):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def chat(real_model):
    return load_chat(real_model)


def long_prompt(chat, tokens):
    """The last `tokens` tokens of a chat prompt about a long text."""
    ids = chat.prompt([prompts.user(PROSE + "\nWhat does this text allow?")])
    assert len(ids) > tokens
    return ids[-tokens:]


@pytest.mark.parametrize("length", [16, 2048])
def test_logits_equal_transformers(model, reference, chat, length):
    import torch

    config, graphdef, base = model
    tokens = np.array([long_prompt(chat, length)])
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    logits = jax.jit(lambda base, tokens: nnx.merge(graphdef, base)(tokens))(base, tokens)
    error = np.abs(np.asarray(logits) - expected).max() / expected.std()
    print(f"{length} tokens: largest error {error:.0e} of the logits' deviation")
    assert error <= 2e-4
    assert config.vocab_size == expected.shape[-1]


def test_greedy_decoding_equals_transformers(model, reference, chat, one_device):
    """Short and long prompts in one batch, which transformers pads on the left."""
    import torch

    lengths, (config, graphdef, base) = (16, 40, 1024 - NEW), model
    asked = [long_prompt(chat, length) for length in lengths]
    rows = len(lengths)
    settings = SamplingConfig(temperature=0.0, max_new_tokens=NEW, rows=rows, prefill_rows=rows)
    programs = Programs(graphdef, config, one_device)
    sampler = Sampler(programs, base, settings, stop_ids=chat.stop_ids, lanes=1)
    completions, _ = sampler.sample([Request(None, prompt, row_key(i)) for i, prompt in enumerate(asked)])
    longest, stop = max(lengths), list(chat.stop_ids)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    output = reference.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=stop, pad_token_id=stop[0]
    )[:, longest:]
    for row, completion in zip(output.tolist(), completions, strict=True):
        end = next((i for i, token in enumerate(row) if token in stop), len(row))
        assert list(completion.ids) == row[:end]
        assert completion.complete == (end < len(row))
        assert len(chat.text(completion.ids)) > 20
