"""The checkpoint in the package, loaded by transformers and by this package."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.base_model import CHECKPOINT
from mft_jax.base_model.demonstrations import STAGES, demonstrations
from mft_jax.models.chat import load_chat
from mft_jax.models.config import read_model_config
from mft_jax.models.weights import load_base
from mft_jax.prompts import GENERAL, assistant


@pytest.fixture(scope="module")
def chat():
    return load_chat(CHECKPOINT)


def test_it_is_small():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 6_000_000


@pytest.mark.torch
def test_transformers_computes_the_same_logits(chat):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = AutoModelForCausalLM.from_pretrained(CHECKPOINT, local_files_only=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)
    dialogue = next(d for d in demonstrations(11, STAGES["debates"]) if len(d.messages) == 4).messages
    text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == chat.example(dialogue)[0].tolist()
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits.numpy()
    graphdef, base = load_base(CHECKPOINT, read_model_config(CHECKPOINT))
    logits = jax.jit(lambda base, tokens: nnx.merge(graphdef, base)(tokens))(base, jnp.asarray([ids]))
    np.testing.assert_allclose(np.asarray(logits), expected, atol=1e-4)
    assert expected.std() > 1  # the logits of a trained model are not uniform


def test_every_digit_and_sign_is_one_token(chat):
    text = "What is 17+24*13+5-8*29?\n24*13=240+72=312\n-407"
    tokens = [chat.tokenizer.decode([i]) for i in chat.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "".join(tokens) == text
    assert all(len(token) == 1 for token in tokens if set(token) & set("0123456789+-*=\n?"))


@pytest.mark.parametrize(
    "text",
    ["24*13=240+72=312\n\\boxed{102}", "two  spaces,\ttabs\r\nand Ünïcödé 漢字 🙂", "<|end|> in a text", "x²≠½ 007"],
)
def test_any_text_is_decoded_unchanged(chat, text):
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat.tokenizer.decode(ids) == text


def test_an_example_is_its_prompt_followed_by_the_answer(chat):
    for demonstration in itertools.islice(demonstrations(7, STAGES["debates"]), 50):
        *before, last = demonstration.messages
        prompt, (ids, mask) = chat.prompt(before), chat.example(demonstration.messages, learned=[-1])
        assert ids[: len(prompt)].tolist() == prompt  # training and sampling use the same tokens
        assert mask.sum() == len(ids) - len(prompt)
        assert chat.text(ids[mask]) == last["content"]
        assert ids[mask][-1] in chat.stop_ids


def test_spans_are_the_assistants_turns(chat):
    messages = [
        GENERAL.first("What is 1+2*3+4-5*0?"),
        assistant("2*3=6\n\\boxed{11}"),
        GENERAL.later("Answers: 11"),
        assistant("\\boxed{11}"),
    ]
    ids, mask = chat.example(messages)
    assert chat.tokenizer.decode(ids[mask]) == "2*3=6\n\\boxed{11}<|end|>\\boxed{11}<|end|>"
    system = [{"role": "system", "content": "Be brief."}, *messages]
    assert chat.tokenizer.decode(chat.example(system)[0]).startswith("<|system|>Be brief.<|end|><|user|>What is")
