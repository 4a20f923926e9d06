"""The training data of the base model: correct steps except for slips, correct summaries, no reserved questions."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from mft_jax.base_model.demonstrations import (
    CLEAN,
    NOISY,
    STAGES,
    Noise,
    demonstrations,
    draw_numbers,
    first_answer,
    later_answer,
    slip,
    summarize,
)
from mft_jax.tasks.arithmetic_split import question_text, reserved, value

NUMBERS = (17, 24, 13, 5, 8, 29)


def steps_of(text: str) -> list[str]:
    """The lines with a computation: "x*y=parts=result" or "x+y=result"."""
    return [line for line in text.split("\n") if "=" in line]


def is_correct(step: str) -> bool:
    """Whether all expressions between the "=" signs have the same value."""
    return len({eval(part) for part in step.split("=")}) == 1


def questions_in(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, re.findall(r"\d+", match))) for match in re.findall(r"What is ([^?]*)\?", text)]


def test_every_step_is_correct_without_slips():
    seen = 0
    for demonstration in itertools.islice(
        demonstrations(3, dataclasses.replace(STAGES["debates"], targets=CLEAN, context=CLEAN)), 400
    ):
        numbers = questions_in(demonstration.messages[0]["content"])[0]
        for message in demonstration.messages:
            if message["role"] == "assistant" and "boxed" in message["content"]:
                steps = steps_of(message["content"])
                assert len(steps) == 5
                assert all(is_correct(step) for step in steps), message["content"]
                assert message["content"].endswith(f"\\boxed{{{value(numbers)}}}")
                seen += 1
    assert seen > 300


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_no_reserved_question_appears(stage):
    found = [
        numbers
        for demonstration in itertools.islice(demonstrations(5, STAGES[stage]), 2000)
        for message in demonstration.messages
        for numbers in questions_in(message["content"])
    ]
    assert len(found) == 2000
    assert not any(reserved(numbers) for numbers in found)


def test_one_question_in_eight_is_reserved():
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 30, (20000, 6)).tolist()
    assert np.mean([reserved(numbers) for numbers in drawn]) == pytest.approx(1 / 8, abs=0.01)


def test_question_and_value():
    assert question_text(NUMBERS) == "What is 17+24*13+5-8*29?"
    assert value(NUMBERS) == 17 + 312 + 5 - 232


def test_styles_differ():
    rng = np.random.default_rng(0)
    texts = {first_answer(rng, NUMBERS, CLEAN).text for _ in range(200)}
    assert any("24*13=312\n" in text for text in texts)
    assert any("24*13=240+72=312\n" in text for text in texts)
    assert any("24*13=260+52=312\n" in text for text in texts)
    assert len(texts) > 10


def test_later_steps_use_the_wrong_result_of_a_slip():
    """The sums continue with the wrong products: all other steps are correct."""
    rng = np.random.default_rng(0)
    answer = first_answer(rng, NUMBERS, Noise(direct=1.0, split=1.0))
    assert answer.products[0] in (302, 322)
    assert answer.products[1] in (222, 242)
    wrong = [step for step in steps_of(answer.text) if not is_correct(step)]
    assert len(wrong) == 2
    assert answer.result == 17 + answer.products[0] + 5 - answer.products[1]


def test_a_slip_changes_one_digit_by_one():
    rng = np.random.default_rng(0)
    assert {slip(rng, 312, 1.0, tens=True) for _ in range(50)} == {302, 322}
    assert {slip(rng, -95, 1.0, tens=False) for _ in range(50)} == {-94, -96}
    assert {slip(rng, 10, 0.2, tens=True) for _ in range(200)} == {10, 20}  # never 00
    assert {slip(rng, 42, 0.2, tens=False) for _ in range(200)} == {42, 43}  # a rare slip has one direction


def test_a_later_round_corrects_a_disputed_product():
    rng = np.random.default_rng(0)
    right = first_answer(rng, NUMBERS, CLEAN)
    wrong = dataclasses.replace(right, products=(302, 232), result=92)
    assert later_answer(rng, NUMBERS, [wrong, wrong, right], CLEAN).result == value(NUMBERS)  # against the majority
    noise = Noise(differ=0.3)
    results = [later_answer(rng, NUMBERS, [right, wrong, right], noise).products[0] for _ in range(400)]
    assert set(results) == {312, 302}
    assert results.count(302) / 400 == pytest.approx(0.3, abs=0.08)


def test_a_later_round_has_no_slips_if_all_agree_and_are_right():
    rng = np.random.default_rng(0)
    right = first_answer(rng, NUMBERS, CLEAN)
    assert all(later_answer(rng, NUMBERS, [right] * 3, NOISY).result == value(NUMBERS) for _ in range(200))


def test_a_summary_contains_the_written_values():
    rng = np.random.default_rng(0)
    right = first_answer(rng, NUMBERS, CLEAN)
    wrong = dataclasses.replace(right, products=(302, 232), result=92)
    assert summarize(NUMBERS, [right, right]) == "24*13=312\n8*29=232\nAnswers: 102"
    assert summarize(NUMBERS, [right, wrong]) == (
        "24*13=312, 302 (they differ)\n8*29=232\nAnswers: 102, 92 (they differ)"
    )


def test_the_same_seed_gives_the_same_demonstrations():
    one, two, other = (list(itertools.islice(demonstrations(seed, STAGES["debates"]), 20)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_draws_cover_the_range():
    rng = np.random.default_rng(0)
    drawn = np.array([draw_numbers(rng) for _ in range(2000)])
    assert drawn.min(axis=0).tolist() == [0] * 6
    assert drawn.max(axis=0).tolist() == [29] * 6
