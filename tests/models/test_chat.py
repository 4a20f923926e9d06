"""Chat templates of other models, with the tokenizer of the base model in the package."""

import json
import shutil

import numpy as np
import pytest

import mft_jax.models.chat
from mft_jax.base_model import CHECKPOINT
from mft_jax.errors import UserError
from mft_jax.models.chat import load_chat
from mft_jax.prompts import assistant, user

# As in reasoning models: the thoughts of turns before the last question are dropped, and without thinking a fixed
# thought is inserted.
THOUGHTS = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}
{%- else %}{{ '<|assistant|>' }}{% if loop.index0 > ns.last %}{{ '(thought)' }}{% endif %}{{ m.content + '<|end|>' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% if not enable_thinking %}{{ '(thought)' }}{% endif %}{% endif -%}
"""
PLAIN = """
{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}
"""
DATED = (
    """{{ '<|system|>Today is ' + (date_string if date_string is defined else strftime_now('%d %b %Y')) + '<|end|>' }}"""
    + PLAIN
)
DIALOGUE = [user("1+1?"), assistant("2"), user("Sure?"), assistant("Yes, 2")]


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    return tmp_path / "model"


def template(tmp_path, text):
    path = tmp_path / "template.jinja"
    path.write_text(text)
    return str(path)


def texts(chat, pairs):
    """The text and the target text of each example."""
    return [(chat.tokenizer.decode(ids), chat.tokenizer.decode(ids[mask])) for ids, mask in pairs]


def test_a_model_without_a_chat_template_needs_one(checkpoint, tmp_path):
    path = checkpoint / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    del fields["chat_template"]
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"no chat template: give one with --model\.chat-template FILE"):
        load_chat(checkpoint)
    chat = load_chat(checkpoint, template(tmp_path, PLAIN))
    assert chat.tokenizer.decode(chat.prompt(DIALOGUE[:1])) == "<|user|>1+1?<|end|><|assistant|>"
    assert chat.stop_ids == load_chat(CHECKPOINT).stop_ids
    with pytest.raises(UserError, match=r"Cannot read the chat template .*nowhere"):
        load_chat(checkpoint, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="cannot render a dialogue"):
        load_chat(checkpoint, template(tmp_path, "{{ raise_exception('no system role') }}"))


def test_a_template_that_drops_old_thoughts_gives_an_example_for_each_turn(tmp_path):
    chat = load_chat(CHECKPOINT, template(tmp_path, THOUGHTS))
    first, second = "<|user|>1+1?<|end|><|assistant|>(thought)", "<|user|>Sure?<|end|><|assistant|>(thought)"
    assert texts(chat, chat.examples(DIALOGUE)) == [
        (first + "2<|end|>", "2<|end|>"),
        ("<|user|>1+1?<|end|><|assistant|>2<|end|>" + second + "Yes, 2<|end|>", "Yes, 2<|end|>"),
    ]
    for turn, (ids, mask) in zip((1, 3), chat.examples(DIALOGUE), strict=True):
        assert ids[: mask.argmax()].tolist() == chat.prompt(DIALOGUE[:turn])
    assert texts(chat, chat.examples(DIALOGUE, learned=[0])) == [(first + "2<|end|>", "2<|end|>")]
    assert len(chat.examples(DIALOGUE, learned=[-1])) == 1
    for wrong in (2, -3):
        with pytest.raises(
            UserError, match=f"learns turn {wrong} of the assistant, counted from 0, but .* has 2: correct"
        ):
            chat.examples(DIALOGUE, learned=[0, wrong])
    with pytest.raises(UserError, match="differently once others follow"):
        chat.example(DIALOGUE)


@pytest.mark.parametrize("source", [None, THOUGHTS])
def test_dialogues_that_are_encoded_together_are_as_alone(tmp_path, source, monkeypatch):
    monkeypatch.setattr(mft_jax.models.chat, "ENCODED_TOGETHER", 4)
    chat = load_chat(CHECKPOINT, None if source is None else template(tmp_path, source))
    thought = [DIALOGUE[0], assistant("<think>one and one</think>2"), *DIALOGUE[2:]]
    dialogues = [
        (DIALOGUE, None),
        (thought, None),
        (DIALOGUE[:2], [0]),
        (thought, [-1]),
        (DIALOGUE, [0, 1]),
        (DIALOGUE, []),
    ]
    assert chat.prompts([messages[:-1] for messages, _ in dialogues]) == [
        chat.prompt(messages[:-1]) for messages, _ in dialogues
    ]
    together = chat.all_examples(dialogues)
    for found, (messages, learned) in zip(together, dialogues, strict=True):
        alone = chat.examples(messages, learned)
        assert len(found) == len(alone)
        for pair, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(pair, expected)
    assert len(together[1]) == (1 if source is None else 2)
    assert chat.prompts([]) == chat.all_examples([]) == []


def test_thinking_is_passed_to_the_template(tmp_path):
    thinking = load_chat(CHECKPOINT, template(tmp_path, THOUGHTS), thinking=True)
    assert thinking.tokenizer.decode(thinking.prompt(DIALOGUE[:1])).endswith("<|assistant|>")
    # The model itself writes the thought, so it is a target.
    assert texts(thinking, thinking.examples(DIALOGUE))[0][1] == "(thought)2<|end|>"


def test_a_template_whose_turns_do_not_continue_their_prompt_is_rejected(tmp_path):
    broken = PLAIN.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>Well: ' }}")
    with pytest.raises(UserError, match="renders an assistant turn differently from the prompt that opens it"):
        load_chat(CHECKPOINT, template(tmp_path, broken)).examples(DIALOGUE)


def test_templates_get_a_fixed_date(tmp_path):
    chat = load_chat(CHECKPOINT, template(tmp_path, DATED))
    assert chat.tokenizer.decode(chat.prompt(DIALOGUE[:1])).startswith("<|system|>Today is 26 Jul 2024<|end|>")


def test_stop_ids_are_collected_from_all_files(checkpoint):
    (end,) = load_chat(CHECKPOINT).stop_ids
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert load_chat(checkpoint).stop_ids == tuple(sorted((5, 9, end)))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generation_config.json", b"[]", "is not a generation configuration (it holds [], expected an object)"),
        ("generation_config.json", b"{", "is not a generation configuration (not valid JSON: "),
        ("generation_config.json", b"\xff", "is not a generation configuration (not valid UTF-8: "),
        ("generation_config.json", b'{"eos_token_id": "</s>"}', "its eos_token_id is '</s>', expected a token id or a list"),
        ("generation_config.json", b'{"eos_token_id": [1, "2"]}', "its eos_token_id is [1, '2'], expected a token id"),
        ("generation_config.json", b'{"eos_token_id": -1}', "its eos_token_id is -1, expected a token id"),
        ("generation_config.json", b'{"eos_token_id": true}', "its eos_token_id is True, expected a token id"),
        ("tokenizer.json", b"{}", "has no tokenizer that transformers can load (KeyError: 'added_tokens')"),
        ("tokenizer.json", b"[]", "has no tokenizer that transformers can load (TypeError: "),
        ("tokenizer.json", b"\xff", "has no tokenizer that transformers can load (UnicodeDecodeError: "),
        ("tokenizer.json", None, "has no tokenizer that transformers can load (ValueError: "),
        ("tokenizer_config.json", b"[]", "has no tokenizer that transformers can load (AttributeError: "),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_sentence(checkpoint, file, content, message):
    (checkpoint / file).unlink()
    if content is not None:
        (checkpoint / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_chat(checkpoint)
    assert str(caught.value).startswith(str(checkpoint))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "role"),
    [
        ("{% for m in messages %}<|user|>hello<|end|>{% endfor %}", "user"),
        ("{% for m in messages %}{{ m.content if m.role == 'user' }}<|end|>{% endfor %}", "assistant"),
        ("{% for m in messages %}{{ m.content if m.role == 'assistant' }}<|end|>{% endfor %}", "user"),
        ("{{ messages[-1].content }}", "user"),
        ("", "user"),
    ],
)
def test_a_template_that_omits_message_texts_is_rejected(tmp_path, source, role):
    with pytest.raises(UserError, match=f"leaves out the text of a message of the {role}: give another one with"):
        load_chat(CHECKPOINT, template(tmp_path, source))


def test_a_checkpoint_without_a_generation_config_has_the_tokenizers_stop_ids(checkpoint):
    (checkpoint / "generation_config.json").unlink()
    assert load_chat(checkpoint).stop_ids == load_chat(CHECKPOINT).stop_ids
