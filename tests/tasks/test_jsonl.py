"""People's own questions."""

import json

import pytest

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks import load_task
from mft_jax.tasks.answers import parse_boxed, parse_numeric
from mft_jax.tasks.jsonl import read_questions


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def records(count, start=0):
    return [{"question": f"What is {k}+1?", "answer": k + 1} for k in range(start, start + count)]


def test_two_files(tmp_path):
    train, evaluation = write(tmp_path / "train", records(5)), write(tmp_path / "eval", records(4, 100))
    settings = TaskConfig(name="jsonl", train_path=train, eval_path=evaluation, train_questions=5, eval_questions=3)
    task = load_task(settings, 0)
    by_id = {question.id: question for question in task.train}
    assert sorted(by_id) == [f"jsonl-train-{line:05d}" for line in range(1, 6)]
    assert (by_id["jsonl-train-00003"].text, by_id["jsonl-train-00003"].gold) == ("What is 2+1?", "3")
    assert len(task.eval) == 3
    assert {question.id[:11] for question in task.eval} == {"jsonl-eval-"}
    assert task == load_task(settings, 0)
    assert task.train != load_task(settings, 1).train


def test_evaluation_questions_are_held_out_of_the_one_file(tmp_path):
    path = write(tmp_path / "all", records(10))
    settings = TaskConfig(name="jsonl", train_path=path, train_questions=6, eval_questions=4)
    task = load_task(settings, 3)
    assert len({question.text for question in (*task.train, *task.eval)}) == 10
    fewer = load_task(TaskConfig(name="jsonl", train_path=path, train_questions=2, eval_questions=4), 3)
    assert fewer.eval == task.eval
    assert fewer.train == task.train[:2]
    with pytest.raises(UserError, match=r"train_questions \+ task.eval_questions is 11, but .*all has 10 questions"):
        load_task(TaskConfig(name="jsonl", train_path=path, train_questions=7, eval_questions=4), 3)


def test_answers_may_be_text_numbers_or_boxed_solutions(tmp_path):
    given = ["Paris", 5, 0.50, -0.0, "1,000", r"so \boxed{\frac{2}{4}}", "$18.", 1e3]
    path = write(tmp_path / "a", [{"question": f"q{k}", "answer": answer} for k, answer in enumerate(given)])
    assert " ".join(question.gold for question in read_questions(path, "train")) == "Paris 5 0.5 0 1000 1/2 18 1000"


PARIS = {"question": "Capital of France?", "answer": "Paris"}


def without_answers(lines):
    return [{"question": line["question"]} for line in lines]


@pytest.mark.parametrize(
    ("evaluation", "parser"),
    [
        (records(3, 100), parse_numeric),
        ([*records(1, 100), *without_answers(records(2, 200))], parse_numeric),
        ([*records(2, 100), PARIS], parse_boxed),
        (without_answers(records(3, 100)), parse_boxed),
    ],
)
@pytest.mark.parametrize(
    "train",
    [records(2), without_answers(records(2)), [*records(1), {"question": "Capital of Peru?", "answer": "Lima"}]],
)
def test_the_evaluation_answers_alone_decide_how_answers_are_read(tmp_path, evaluation, parser, train):
    """As numbers where all that are given are numbers. Training answers may be missing, or words."""
    paths = {"train_path": write(tmp_path / "train", train), "eval_path": write(tmp_path / "eval", evaluation)}
    config = TaskConfig(name="jsonl", train_questions=len(train), eval_questions=1, **paths)
    assert load_task(config, 0).parse is parser


def test_training_answers_change_nothing_but_the_golds(tmp_path):
    """The questions, their ids and order, and the parser: all that training data depend on."""
    evaluation = write(tmp_path / "eval", records(3, 100))
    tasks = []
    for lines in (records(5), without_answers(records(5)), [*records(2), *without_answers(records(5)[2:])]):
        train = write(tmp_path / "train", lines)
        config = TaskConfig(name="jsonl", train_path=train, eval_path=evaluation, train_questions=4, eval_questions=3)
        tasks.append(load_task(config, 0))
    first, unanswered, mixed = tasks
    assert {question.gold for question in unanswered.train} == {None}
    assert {question.gold is None for question in mixed.train} == {True, False}
    for task in tasks:
        assert [(q.id, q.text) for q in task.train] == [(q.id, q.text) for q in first.train]
        assert (task.eval, task.parse) == (first.eval, first.parse)


def test_a_file_without_any_answer_serves_training_and_evaluation(tmp_path):
    path = write(tmp_path / "all", without_answers(records(10)))
    task = load_task(TaskConfig(name="jsonl", train_path=path, train_questions=6, eval_questions=4), 3)
    assert [question.gold for question in (*task.train, *task.eval)] == [None] * 10


def test_a_question_with_and_without_its_answer_keeps_the_answer(tmp_path):
    bare = {"question": "What is 1+1?"}
    for lines in ([bare, {**bare, "answer": 2}], [{**bare, "answer": 2}, bare], [bare, {**bare, "answer": 2}, bare]):
        (question,) = read_questions(write(tmp_path / "a", lines), "train")
        assert (question.id, question.gold) == ("jsonl-train-00001", "2")
    path = write(tmp_path / "a", [bare, {**bare, "answer": 2}, {**bare, "answer": 3}])
    with pytest.raises(
        UserError, match="line 3: the answer is '3', but line 2 has the same question with the answer '2'"
    ):
        read_questions(path, "train")


def test_a_repeated_question_counts_once(tmp_path):
    once = {"question": "What is 1+1?", "answer": 2}
    path = write(tmp_path / "a", [once, {"question": "what  is 1+1? ", "answer": "2.0"}])
    assert [question.id for question in read_questions(path, "train")] == ["jsonl-train-00001"]
    write(tmp_path / "a", [once, {**once, "answer": 3}])
    with pytest.raises(
        UserError, match="a, line 2: the answer is '3', but line 1 has the same question with the answer '2'"
    ):
        read_questions(path, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "q", "answer": 1', "not valid JSON"),
        (b'{"question": "q", "answer": NaN}', "not valid JSON (NaN is not JSON)"),
        (b'{"question": "q", "answer": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"answer": 1}', 'the field "question" is missing'),
        (b"[1]", "got an array, expected an object"),
        (b'{"question": 5, "answer": 1}', '"question" is a number, expected a string'),
        (b'{"question": " ", "answer": 1}', '"question" is empty'),
        (b'{"question": "q", "answer": true}', '"answer" is a boolean, expected a string or a number'),
        (b'{"question": "q", "answer": null}', '"answer" is null, expected a string or a number'),
        (b'{"question": "q", "answer": " "}', '"answer" is empty'),
        (b'{"question": "\xff", "answer": 1}', "not valid UTF-8"),
        (b'{"question": "\\ud800", "answer": 1}', "not valid UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "fine?", "answer": 1}\r\n\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        read_questions(path, "train")
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert message in str(caught.value)


def test_files_that_are_missing_empty_or_too_short(tmp_path):
    def load(train, evaluation=None, questions=1):
        names = {"train_path": train, "eval_path": evaluation}
        load_task(TaskConfig(name="jsonl", train_questions=questions, eval_questions=1, **names), 0)

    good, empty = write(tmp_path / "good", records(3)), write(tmp_path / "empty", [])
    with pytest.raises(UserError, match=r"needs task\.train_path"):
        load(None)
    with pytest.raises(UserError, match="Cannot read the questions nowhere"):
        load("nowhere")
    with pytest.raises(UserError, match="empty has no questions"):
        load(good, empty)
    with pytest.raises(UserError, match=r"train_questions is 4, but .*good has 3 questions: set it to 3 or less"):
        load(good, write(tmp_path / "eval", records(1, 50)), questions=4)
