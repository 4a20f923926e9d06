"""What every task must satisfy, and which texts hold an answer."""

import pytest

from mft_jax import prompts
from mft_jax.errors import UserError
from mft_jax.tasks import Question, Task
from mft_jax.tasks.answers import equivalent, parse_boxed, parse_numeric
from mft_jax.tasks.parsing import parse_choice, parse_expression, parse_number
from mft_jax.tasks.questions import check_splits

PARSERS = [parse_numeric, parse_boxed, parse_number, parse_expression, parse_choice]


def task(parse):
    return Task("some", (), (), parse, equivalent, prompts.GENERAL)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "text", ["12+30=42", r"so \boxed{42", r"\boxed{}", "#### 42", "the answer is $42$", "The answer is B", "$x=42$", ""]
)
def test_a_cut_text_without_a_whole_box_has_no_answer(parse, text):
    assert task(parse).answer(text, complete=False) is None
    assert task(parse).answer(text, complete=True) == parse(text)


@pytest.mark.parametrize("parse", PARSERS[:4])
def test_a_cut_text_has_the_answer_in_its_last_whole_box(parse):
    for rest in ("", " Let me check: 7", r" or \boxed{7"):
        assert task(parse).answer(r"first \boxed{41}, then \boxed{42}" + rest, complete=False) == "42"


def test_a_box_that_answers_nothing_is_not_an_answer_of_a_cut_text():
    assert task(parse_numeric).answer(r"12, so \boxed{unknown}, 13", complete=False) is None
    assert task(parse_choice).answer(r"A, so \boxed{(B)}, not C", complete=False) == "B"
    assert task(parse_choice).answer(r"A, so \boxed{42}, not C", complete=False) is None


def test_an_empty_evaluation_is_refused():
    with pytest.raises(UserError, match=r"task\.eval_questions gives no questions"):
        check_splits([Question("t", "one?", "1")], [])
