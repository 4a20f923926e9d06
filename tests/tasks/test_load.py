"""Choosing a task and its questions."""

import json

import pytest

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks import load_task


@pytest.mark.parametrize(("name", "near"), [("arithmetics", "arithmetic"), ("gsm-8k", "gsm8k"), ("MMLU", "mmlu")])
def test_an_unknown_task_is_answered_with_the_nearest(name, near):
    tasks = "arithmetic, addition, gsm8k, math, mmlu, jsonl"
    with pytest.raises(UserError, match=rf"no task '{name}' \(there are {tasks}\): did you mean '{near}'"):
        load_task(TaskConfig(name=name), 0)


def test_a_file_given_to_a_task_that_reads_none():
    with pytest.raises(UserError, match=r"task\.train_path is 'mine\.jsonl', but the task arithmetic makes its own"):
        load_task(TaskConfig(train_path="mine.jsonl"), 0)
    with pytest.raises(
        UserError, match=r"task\.eval_path is 'mine\.jsonl', but the task mmlu has questions of its own"
    ):
        load_task(TaskConfig(name="mmlu", eval_path="mine.jsonl"), 0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("arithmetic", "makes its own questions"),
        ("addition", "makes its own questions"),
        ("jsonl", r"reads task\.train_path"),
    ],
)
def test_original_files_given_to_a_task_that_has_none(name, why):
    with pytest.raises(UserError, match=rf"task\.data_dir is 'here', but the task {name} {why}.*set task\.cache_dir"):
        load_task(TaskConfig(name=name, data_dir="here"), 0)


def test_overlapping_questions_are_refused_by_name(tmp_path):
    train, evaluation = tmp_path / "train", tmp_path / "eval"
    train.write_text('{"question": "What is 1+1?", "answer": 2}\n{"question": "What is 2+2?", "answer": 4}\n')
    evaluation.write_text(json.dumps({"question": " what is  2+2?", "answer": 4}) + "\n")
    settings = {"train_path": str(train), "eval_path": str(evaluation), "train_questions": 2, "eval_questions": 1}
    with pytest.raises(UserError, match=r"'what is  2\+2\?' is both a training question") as caught:
        load_task(TaskConfig(name="jsonl", **settings), 0)
    assert "jsonl-train-00002" in str(caught.value)
    assert "jsonl-eval-00001" in str(caught.value)
    assert "remove it from one of the two sets" in str(caught.value)


def test_an_evaluation_needs_no_training_file(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"question": "What is 2+2?", "answer": 4}\n')
    config = TaskConfig(name="jsonl", train_questions=0, eval_questions=1, eval_path=str(tmp_path / "own.jsonl"))
    task = load_task(config, 0)
    assert (task.train, [question.gold for question in task.eval]) == ((), ["4"])


def test_the_seeded_order_is_fixed():
    assert seeds.question_order("abcdefgh", 0, "x") == tuple("hegdbfac")
    assert sorted(seeds.question_order(range(100), 1, "x")) == list(range(100))
    assert len({seeds.question_order("abcdefgh", seed, name) for seed in (0, 1) for name in "xy"}) == 4
