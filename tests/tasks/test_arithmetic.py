"""The arithmetic task: its pools of questions, and the ones that a run takes from them."""

import re

import pytest

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.prompts import GENERAL
from mft_jax.tasks import arithmetic, load_task
from mft_jax.tasks.arithmetic_split import reserved


def config(train=20, evaluation=30):
    return TaskConfig(train_questions=train, eval_questions=evaluation)


def digits(question):
    return tuple(int(number) for number in re.findall(r"\d+", question.text))


def test_questions_are_reserved_distinct_and_right():
    task = load_task(config(arithmetic.POOL, arithmetic.POOL), 0)
    everything = [digits(question) for question in (*task.train, *task.eval)]
    assert len(set(everything)) == 2 * arithmetic.POOL
    assert all(reserved(numbers) for numbers in everything)
    assert {number for numbers in everything for number in numbers} == set(range(30))
    for (a, b, c, d, e, f), question in zip(everything, (*task.train, *task.eval), strict=True):
        assert question.gold == str(a + b * c + d - e * f)
    assert len({question.id for question in (*task.train, *task.eval)}) == 2 * arithmetic.POOL


def test_the_seed_chooses_and_a_smaller_set_is_part_of_a_larger():
    small, other = (load_task(config(20, 30), seed) for seed in (0, 1))
    large = load_task(config(50, 60), 0)
    assert (len(small.train), len(small.eval)) == (20, 30)
    assert small.train == large.train[:20]
    assert small.eval == large.eval[:30]
    assert small.train != other.train
    assert small == load_task(config(20, 30), 0)


def test_the_pools_never_change():
    # A run's questions follow from its configuration alone.
    assert arithmetic.question("train", 0).text == "What is 6+0*7+19-12*27?"
    assert arithmetic.question("eval", 3999).text == "What is 22+23*6+1-7*2?"


def test_answers_are_read_and_compared_as_numbers():
    task = load_task(config(), 0)
    assert (task.name, task.prompts) == ("arithmetic", GENERAL)
    assert task.parse("first 12, then -7") == "-7"
    assert task.equivalent("-7", "-7.0")


@pytest.mark.parametrize("sizes", [(4001, 10), (10, 4001)])
def test_more_questions_than_there_are(sizes):
    with pytest.raises(UserError, match="has 4000 questions: set it to 4000 or less"):
        load_task(config(*sizes), 0)
