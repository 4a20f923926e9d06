"""The prompts of all tasks."""

import pytest

from mft_jax import prompts
from mft_jax.prompts import GENERAL

ALL = {name: value for name, value in vars(prompts).items() if isinstance(value, prompts.Prompts)}


def test_the_prompts_that_the_base_model_was_trained_on_are_unchanged():
    answers = ["24*13=312\n\\boxed{5}", "\\boxed{6}"]
    messages = [GENERAL.first("Q?"), GENERAL.later("S"), GENERAL.reconsider(), GENERAL.summary("Q?", answers)]
    assert messages == [
        {"role": "user", "content": "Q?\nReason step by step and end with the answer in \\boxed{}."},
        {
            "role": "user",
            "content": "Other solvers say:\nS\nCheck their steps and yours and end with the answer in \\boxed{}.",
        },
        {
            "role": "user",
            "content": "Check your steps, correct any mistake, and end with the answer in \\boxed{}.",
        },
        {
            "role": "user",
            "content": "Q?\nSolver 1: 24*13=312\n\\boxed{5}\nSolver 2: \\boxed{6}\n"
            "Summarize their steps, their answers, and where they differ.",
        },
    ]


@pytest.mark.parametrize("name", ALL)
def test_every_prompt_asks_for_an_answer_and_contains_its_input(name):
    asked = ALL[name]
    form = "one short line" if name == "ADDITION" else r"\boxed{}"
    shown = {
        "why?": asked.first("why?"),
        "they say x": asked.later("they say x"),
        "Solver 1: first\nSolver 2: second": asked.later_direct(["first", "second"]),
        "they say y": asked.later("they say y", cooperate=True),
        "Solver 1: first": asked.later_direct(["first"], cooperate=True),
        "": asked.reconsider(),
    }
    for text, message in shown.items():
        assert message["role"] == "user"
        assert text in message["content"]
        assert message["content"].count(form) == 1
    assert asked.later("x", cooperate=True) != asked.later("x")
    assert asked.first("why?", "Agent 2") == prompts.user("Agent 2\n" + asked.first("why?")["content"])
    summary = asked.summary("why?", ["first", "second"])["content"]
    assert summary.startswith("why?\nSolver 1: first\nSolver 2: second\n")
    assert "boxed" not in summary


def test_the_tasks_ask_for_different_kinds_of_answers():
    assert len({asked.solve for asked in ALL.values()}) == len(ALL) == 5
    assert len({asked.join for asked in ALL.values()}) == len(ALL)
    assert "letter" in prompts.MMLU.solve
    assert "number" in prompts.GSM8K.solve
    assert "LaTeX" in prompts.MATH.solve
