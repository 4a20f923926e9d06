"""People's own questions: a file of {"question": text, "answer": text or number} lines. The answer may be left out.

Blank lines and other fields are ignored. A question that a file repeats is kept once, at its first line, so that it does
not count double, and with its answer, whichever line has it; two different answers to one question are an error. A
question's id holds its line number.
"""

import dataclasses
import decimal
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.prompts import GENERAL
from mft_jax.tasks import answers
from mft_jax.tasks.json_text import json_type, numbered_lines, parse_object, read_bytes, text_field
from mft_jax.tasks.questions import Question, Task, check_enough, normalise

EXAMPLE = '{"question": "What is 2+3?", "answer": 5}'
REMEDY = f"write a line such as {EXAMPLE}"


def load(config: TaskConfig, seed: int) -> Task:
    """Reads `train_path`, and `eval_path` or as many held-out lines of `train_path`. Raises UserError for bad files.

    With `train_questions` 0 and an `eval_path`, for an evaluation without training, no `train_path` is needed.
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
    return Task(
        name="jsonl",
        train=train[: config.train_questions],
        eval=evaluation[: config.eval_questions],
        parse=choose_parser(evaluation),
        equivalent=answers.equivalent,
        prompts=GENERAL,
    )


def choose_parser(evaluation: Sequence[Question]) -> Callable[[str], str | None]:
    """How answers are read: also without a box, as the last number, if every known evaluation answer is a number.

    Training answers have no say: the votes that make the training data depend on the parser, and must be the same with
    and without them. Without any evaluation answer only a box counts, since an answer may then be of any kind.
    """
    golds = [question.gold for question in evaluation if question.gold is not None]
    numeric = bool(golds) and all(answers.number(gold) is not None for gold in golds)
    return answers.parse_numeric if numeric else answers.parse_boxed


def _hold_out(
    questions: tuple[Question, ...], config: TaskConfig, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """(evaluation questions, the rest). The first come first, so that they are the same whatever `train_questions` is."""
    asked = config.train_questions + config.eval_questions
    check_enough(asked, len(questions), "task.train_questions + task.eval_questions", str(config.train_path))
    order = seeds.question_order(questions, seed, "jsonl")
    held_out = order[: config.eval_questions]
    renamed = tuple(Question(q.id.replace("-train-", "-eval-"), q.text, q.gold) for q in held_out)
    return renamed, order[config.eval_questions :]


def read_questions(path: str | pathlib.Path, split: str) -> tuple[Question, ...]:
    """The questions of one file, in its order. Raises UserError that names the file and the line."""
    data = read_bytes(path, f"give a file of lines such as {EXAMPLE}")
    kept: dict[str, Question] = {}
    answered: dict[str, int] = {}  # the line that a question's answer comes from
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
                f"{path}, line {number}: the answer is {question.gold!r}, but line {answered[text]} has the same question "
                f"with the answer {first.gold!r}: keep the right one."
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
            f'{where}: "answer" is {json_type(answer)}, expected a string or a number: write one, or leave "answer" out.'
        )
    # A worked solution that ends in a box is a usual form of gold answer.
    gold = (
        answers.parse_boxed(answer)
        if isinstance(answer, str) and "boxed{" in answer
        else answers.canonical(str(answer))
    )
    if gold is None:
        limit = answers.MAX_LENGTH
        raise UserError(f'{where}: "answer" is empty or longer than {limit} characters: give the answer alone.')
    return gold
