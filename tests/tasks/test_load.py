"""Choosing a task and its questions."""

import dataclasses
import json

import pytest

from mft_jax import seeds
from mft_jax.arguments import Eval
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


def own_questions(folder, count, name):
    path = folder / name
    lines = [json.dumps({"question": f"What is {n}+{n}, asked in {name}?", "answer": 2 * n}) for n in range(count)]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("name", ["arithmetic", "addition", "jsonl", "jsonl without an evaluation file"])
def test_validation_questions_are_training_questions_that_are_not_trained_on(name, tmp_path):
    settings = {"name": name.split()[0], "train_questions": 5, "eval_questions": 7}
    if settings["name"] == "jsonl":
        settings["train_path"] = own_questions(tmp_path, 30, "train.jsonl")
        settings["eval_path"] = own_questions(tmp_path, 7, "eval.jsonl") if name == "jsonl" else None
    task = load_task(TaskConfig(**settings), 3)
    chosen = load_task(TaskConfig(**settings, validation=True), 3)
    texts = lambda questions: {question.text for question in questions}
    assert (len(chosen.train), len(chosen.eval)) == (5, 7)
    assert chosen.train == task.train
    assert not texts(chosen.eval) & (texts(chosen.train) | texts(task.eval))
    more = load_task(TaskConfig(**settings | {"train_questions": 12}), 3)
    assert texts(more.train) == texts(chosen.train) | texts(chosen.eval)


def test_too_few_training_questions_for_validation(tmp_path):
    settings = {"train_path": own_questions(tmp_path, 10, "a"), "eval_path": own_questions(tmp_path, 6, "b")}
    config = TaskConfig(name="jsonl", train_questions=5, eval_questions=6, validation=True, **settings)
    with pytest.raises(
        UserError, match=r"counts 6 evaluation questions too\. task\.train_questions is 11, but .* has 10"
    ):
        load_task(config, 0)


def test_mft_eval_asks_the_held_out_questions():
    trained = TaskConfig(train_questions=5, eval_questions=7, validation=True)
    held_out = load_task(dataclasses.replace(trained, validation=False), 3)
    same = Eval(run_dir="runs/x", task="arithmetic", eval_questions=4).evaluated_task(trained)
    assert load_task(same, 3).eval == held_out.eval[:4]
    assert not Eval(run_dir="runs/x", task="addition").evaluated_task(trained).validation


def test_a_run_on_one_file_is_evaluated_on_the_rest_of_it():
    trained = TaskConfig(name="jsonl", train_path="own.jsonl", train_questions=4)
    assert Eval(run_dir="runs/x").evaluated_task(trained) == trained
    with pytest.raises(UserError, match="mft eval --task jsonl needs the questions"):
        Eval(run_dir="runs/x", task="jsonl").evaluated_task(TaskConfig())
