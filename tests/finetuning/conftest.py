"""A byte-level chat template, and a small plan for three adapters with different amounts of data."""

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mft_jax.config import FinetuningConfig, RoleConfig
from mft_jax.finetuning import FirstAnswers, Lesson, likelihood, make_plan
from mft_jax.models.chat import Chat
from mft_jax.programs.train import init_state
from mft_jax.prompts import assistant, user

SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONFIG = FinetuningConfig(
    generator=RoleConfig(learning_rate=1e-2, epochs=2),
    critic=RoleConfig(learning_rate=5e-3, epochs=1),
    batch_rows=2,
    row_tokens=96,
    warmup=0.3,
    weight_decay=0.1,
    clip_norm=0.5,
)


def example(id, *contents, kind="first"):
    """A training dialogue with these contents, alternately by user and assistant."""
    speakers = (user, assistant)
    return {"id": id, "messages": [speakers[i % 2](text) for i, text in enumerate(contents)], "kind": kind}


@pytest.fixture(scope="session")
def chat():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE)
    return Chat(fast, (fast.eos_token_id,))


@pytest.fixture(scope="session")
def examples():
    """For three adapters: 9 short dialogues, 5 dialogues of two rounds, and 2 short ones."""
    rng = np.random.default_rng(0)
    words = lambda low, high: "".join(rng.choice(list("0123456789+*= "), rng.integers(low, high)))
    single = lambda count: [example(f"q{i}", words(3, 10), words(5, 25)) for i in range(count)]
    double = [example(f"q{i}", words(3, 8), words(5, 15), words(3, 8), words(5, 15), kind="kept") for i in range(5)]
    return [single(9), double, single(2)]


def lesson(name, settings, field="finetuning.generator"):
    return Lesson(adapter=name, select=FirstAnswers(0), settings=settings, field=field, stream=0)


LESSONS = (
    lesson("ann", CONFIG.generator),
    lesson("bob", CONFIG.critic, "finetuning.critic"),
    lesson("cy", CONFIG.critic, "finetuning.critic"),
)


def plan_of(chat, examples, lessons=LESSONS, config=CONFIG, seed=1, iteration=2):
    """The plan for these examples, one list per lesson."""
    named = {lesson.adapter: own for lesson, own in zip(lessons, examples, strict=True)}
    return make_plan(chat, lessons, named, config, seed=seed, iteration=iteration)


@pytest.fixture(scope="session")
def plan(chat, examples):
    return plan_of(chat, examples)


@pytest.fixture(scope="session")
def train_step(programs, tiny):
    """The training step for three adapters, compiled once for all tests."""
    return programs.train(likelihood, init_state(tiny.weights), None, False)
