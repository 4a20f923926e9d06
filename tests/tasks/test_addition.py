"""Sums of two numbers: the pools, and the questions a run takes from them."""

import re

import pytest

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.prompts import ADDITION
from mft_jax.tasks import addition, load_task


def config(train=500, evaluation=500, digits=2):
    return TaskConfig(name="addition", train_questions=train, eval_questions=evaluation, addition_digits=digits)


def terms(question):
    match = re.fullmatch(r"What is (\d+)\+(\d+)\?", question.text)
    return int(match[1]), int(match[2])


def test_the_whole_pools_are_right_and_share_no_pair_in_either_order():
    task = load_task(config(addition.LARGEST_POOL, addition.LARGEST_POOL), 0)
    everything = [*task.train, *task.eval]
    pairs = [terms(question) for question in everything]
    assert len({tuple(sorted(pair)) for pair in pairs}) == 2 * addition.LARGEST_POOL
    assert {len(str(number)) for pair in pairs for number in pair} == {2}
    assert [question.gold for question in everything] == [str(a + b) for a, b in pairs]
    assert len({question.id for question in everything}) == len(everything)
    assert any(a > b for a, b in pairs)
    assert task.prompts is ADDITION
    assert (task.parse("12+30 is 42"), task.parse(r"\boxed{41} or 42")) == ("42", "41")


def test_the_seed_chooses_and_a_smaller_set_is_part_of_a_larger():
    small, large = load_task(config(20, 30), 3), load_task(config(), 3)
    assert (small.train, small.eval) == (large.train[:20], large.eval[:30])
    assert small.train != load_task(config(20, 30), 4).train


@pytest.mark.parametrize(("digits", "size"), [(1, 22), (2, 2000), (9, 2000)])
def test_numbers_of_other_lengths(digits, size):
    assert addition.pool_size(digits) == size
    task = load_task(config(20, 20, digits), 0)
    assert {len(str(number)) for question in task.train for number in terms(question)} == {digits}
    assert task.train[0].id.startswith(f"addition-{digits}-train-")
    with pytest.raises(UserError, match=f"has {size} questions: set it to {size} or less"):
        load_task(config(size + 1, 1, digits), 0)


def test_the_pools_never_change():
    # A run's questions follow from its configuration alone.
    assert addition.question(2, "train", 0).text == "What is 99+89?"
    assert addition.question(3, "eval", 1999).text == "What is 597+146?"
