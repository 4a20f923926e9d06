"""Chat templates: rendered as in transformers, with limits on time, memory and size, in any thread."""

import pathlib
import threading
import time

import pytest
from transformers import AutoTokenizer

from mft_jax.base_model import CHECKPOINT
from mft_jax.errors import UserError
from mft_jax.models import template
from mft_jax.models.template import render, render_all
from mft_jax.prompts import user
from tests.models.test_chat import DATED, DIALOGUE, PLAIN, THOUGHTS

TOJSON = """
{%- for m in messages -%}
  {%- generation -%}{{ bos_token }}{{ m | tojson(indent=1) }}{{ m.content.strip().split('x')[-1] }}{%- endgeneration -%}
  {%- if loop.last %}{% break %}{% endif -%}
{% endfor %}
"""


@pytest.mark.parametrize("source", [PLAIN, THOUGHTS, TOJSON, DATED])
@pytest.mark.parametrize("opened", [True, False])
def test_transformers_renders_the_same(source, opened):
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, bos_token="<s>")
    dialogue = [user(" <b>'\"\u00e9\u2028\U0001f642\n "), *DIALOGUE[1:]]
    options = {"date_string": "26 Jul 2024", "enable_thinking": False}
    expected = tokenizer.apply_chat_template(
        dialogue, chat_template=source, tokenize=False, add_generation_prompt=opened, **options
    )
    assert render(source, dialogue, opened=opened, variables=tokenizer.special_tokens_map | options) == expected


def test_any_text_is_rendered_unchanged():
    text = "\ud800 \0 \r\n \x85 </s>"  # an unpaired surrogate, and characters that end lines
    assert render("{{ messages[0].content }}", [user(text)], opened=True, variables={}) == text
    assert render("{{ messages[0].content }}", [user("y" * 5_000_000)], opened=True, variables={}) == "y" * 5_000_000


def test_the_date_in_templates_is_fixed():
    assert render("{{ strftime_now('%d %B %Y') }}", DIALOGUE, opened=True, variables={}) == "26 July 2024"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "takes more than 0.5 s"),
        ("{{ lipsum(n=10 ** 7) }}", "takes more than 0.5 s"),
        ("{{ 'x' * (10 ** 7 + 1) }}", "it makes 10,000,001 characters, more than 10,000,000"),
        ("{{ 'x' * 10 ** 11 }}", "it takes more than 1 GB of memory"),
        ("{{ 'x' | center(10 ** 10) }}", "it takes more than 1 GB of memory"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "maximum recursion depth exceeded"),
        ("{{ raise_exception('x' * 10 ** 6) }}", "xxxxxxxx"),
        ("{{ raise_exception('roles must alternate') }}", "(roles must alternate)"),
        ("{% for x in y %}", "Unexpected end of template"),
        ("{{ ().__class__.__bases__ }}", "access to attribute '__class__' of 'tuple' object is unsafe"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
    ],
)  # fmt: skip
def test_a_malicious_or_broken_template_is_a_one_sentence_error(source, reason, monkeypatch):
    monkeypatch.setattr(template, "CPU_SECONDS", 0.5)
    render(PLAIN, DIALOGUE, opened=True, variables={})  # starts the rendering process
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        render(source, DIALOGUE, opened=True, variables={})
    assert "The chat template cannot render a dialogue of user and assistant turns (" in str(caught.value)
    assert str(caught.value).endswith("): give another one with --model.chat-template FILE.")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("together", [10, 10**6])
def test_dialogues_that_are_rendered_together_are_as_alone_and_each_has_its_own_time(monkeypatch, together):
    monkeypatch.setattr(template, "CHARACTERS_TOGETHER", together)
    monkeypatch.setattr(template, "CPU_SECONDS", 0.25)
    # A thirtieth of a second for each dialogue
    busy = "{% for i in range(40) %}{% for j in range(25000) %}{% endfor %}{% endfor %}" + PLAIN
    dialogues = [(DIALOGUE[:count], bool(count % 2)) for count in (1, 2, 3, 4) for _ in range(4)]
    start = time.monotonic()
    found = render_all(busy, dialogues, variables={})
    assert found == [render(PLAIN, own, opened=opened, variables={}) for own, opened in dialogues]
    assert time.monotonic() - start > 0.25, "all together must take longer than one may"
    assert render_all(PLAIN, [], variables={}) == []


def test_the_error_of_one_dialogue_is_that_of_all():
    source = "{{ raise_exception('not this one') if messages | length == 3 else 'x' }}"
    with pytest.raises(UserError, match=r"\(not this one\)"):
        render_all(source, [(DIALOGUE[:count], False) for count in (1, 2, 3, 4)], variables={})
    assert render_all(source, [(DIALOGUE[:1], False), (DIALOGUE, False)], variables={}) == ["x", "x"]


def test_an_endless_template_is_stopped_without_affecting_other_threads(monkeypatch):
    monkeypatch.setattr(template, "CPU_SECONDS", 0.5)
    found = {}

    def work(name, source):
        try:
            found[name] = render(source, DIALOGUE[:1], opened=False, variables={})
        except UserError as error:
            found[name] = str(error)

    loop = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    threads = [threading.Thread(target=work, args=item) for item in [("loop", loop), ("a", PLAIN), ("b", PLAIN)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "takes more than 0.5 s of processor time" in found.pop("loop")
    assert found == dict.fromkeys("ab", "<|user|>1+1?<|end|>")


def test_a_template_cannot_reach_files(tmp_path):
    target = tmp_path / "written"
    escape = f"{{{{ cycler.__init__.__globals__.os.system('touch {target}') }}}}"
    with pytest.raises(UserError, match="is unsafe"):
        render(escape, DIALOGUE, opened=True, variables={})
    assert not pathlib.Path(target).exists()
