"""The user's own questions: a file of {"question": text, "answer": text or number} lines. The answer may be missing.

Blank lines and other fields are ignored. If a file repeats a question, the question counts once, with the line number
of its first line and the answer from any of its lines. Two different answers to one question are an error. The id of a
question contains its line number.
"""

import dataclasses
import decimal
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks import answers
from mft_jax.tasks.json_text import json_type, numbered_lines, parse_object, read_bytes, text_field
from mft_jax.tasks.questions import Question, Task, check_enough, normalise
from mft_jax.tasks.rules import without_questions

EXAMPLE = '{"question": "What is 2+3?", "answer": 5}'
REMEDY = f"write a line such as {EXAMPLE}"


def load(config: TaskConfig, seed: int) -> Task:
    """Reads training questions from `train_path`, and evaluation questions from `eval_path`.

    Without an `eval_path`, questions of `train_path` are held out for evaluation. With `train_questions` 0 and an
    `eval_path`, no `train_path` is needed. Raises UserError for invalid files, or if there are too few questions.
    """
    if config.train_questions == 0 and config.eval_path is not None:
        train = ()  # an evaluation without training
    elif config.train_path is None:
        raise UserError(f"The task jsonl needs task.train_path: give a file of lines such as {EXAMPLE}.")
    else:
        train = read_questions(config.train_path, "train")
    if config.eval_path is None:
        evaluation, train = _hold_out(train, config, seed)
    else:
        evaluation = read_questions(config.eval_path, "eval")
        if config.train_questions:
            check_enough(config.train_questions, len(train), "task.train_questions", str(config.train_path))
        check_enough(config.eval_questions, len(evaluation), "task.eval_questions", config.eval_path)
        evaluation = seeds.question_order(evaluation, seed, "jsonl-eval")
        train = seeds.question_order(train, seed, "jsonl-train")
    return dataclasses.replace(
        without_questions("jsonl"),
        train=train[: config.train_questions],
        eval=evaluation[: config.eval_questions],
        parse=choose_parser(evaluation),
    )


def choose_parser(evaluation: Sequence[Question]) -> Callable[[str], str | None]:
    """The parser of answers. If all known evaluation answers are numbers, it also takes the last number without a box.

    Otherwise, and if no evaluation answer is known, only a box counts. The answers of training questions are not used:
    the votes depend on the parser, and must be the same with and without these answers.
    """
    golds = [question.gold for question in evaluation if question.gold is not None]
    numeric = bool(golds) and all(answers.number(gold) is not None for gold in golds)
    return answers.parse_numeric if numeric else answers.parse_boxed


def _hold_out(
    questions: tuple[Question, ...], config: TaskConfig, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Returns (evaluation questions, the rest). The evaluation questions do not depend on `train_questions`."""
    asked = config.train_questions + config.eval_questions
    check_enough(asked, len(questions), "task.train_questions + task.eval_questions", str(config.train_path))
    order = seeds.question_order(questions, seed, "jsonl")
    held_out = order[: config.eval_questions]
    renamed = tuple(Question(q.id.replace("-train-", "-eval-"), q.text, q.gold) for q in held_out)
    return renamed, order[config.eval_questions :]


def read_questions(path: str | pathlib.Path, split: str) -> tuple[Question, ...]:
    """Reads the questions of a file, in its order. Raises a UserError that names the file and the line."""
    data = read_bytes(path, f"give a file of lines such as {EXAMPLE}")
    kept: dict[str, Question] = {}
    answered: dict[str, int] = {}  # question text -> line number of its answer
    for number, line in numbered_lines(data):
        question = _parse_line(line, f"{path}, line {number}", f"jsonl-{split}-{number:05d}")
        text = normalise(question.text)
        first = kept.setdefault(text, question)
        if question.gold is None:
            continue
        if first.gold is None:
            kept[text] = dataclasses.replace(first, gold=question.gold)
        elif not answers.equivalent(first.gold, question.gold):
            raise UserError(
                f"{path}, line {number}: the answer is {question.gold!r}, but line {answered[text]} has the same "
                f"question with the answer {first.gold!r}: keep the right one."
            )
        answered.setdefault(text, number)
    return tuple(kept.values())


def _parse_line(line: bytes, where: str, identity: str) -> Question:
    record = parse_object(line, where, REMEDY)
    text = text_field(record, "question", where, REMEDY)
    return Question(identity, text, _parse_gold(record["answer"], where) if "answer" in record else None)


def _parse_gold(answer: Any, where: str) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | decimal.Decimal):
        raise UserError(
            f'{where}: "answer" is {json_type(answer)}, expected a string or a number: write one, or leave "answer" '
            "out."
        )
    # Gold answers are often worked solutions that end in a box.
    gold = (
        answers.parse_boxed(answer)
        if isinstance(answer, str) and "boxed{" in answer
        else answers.canonical(str(answer))
    )
    if gold is None:
        limit = answers.MAX_LENGTH
        raise UserError(f'{where}: "answer" is empty or longer than {limit} characters: give the answer alone.')
    return gold
