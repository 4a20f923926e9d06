"""People's own questions: a file of {"question": text, "answer": text or number} lines.

Blank lines and other fields are ignored. A question that comes twice in a file is kept once, the first time, so that it
does not count double; two different answers to one question are an error. A question's id holds its line number.
"""

import decimal
import pathlib

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.prompts import GENERAL
from mft_jax.tasks import answers
from mft_jax.tasks.json_text import check_field, kind, numbered_lines, parse_object, read_bytes, text_field
from mft_jax.tasks.questions import Question, Task, check_enough, normalised, seeded_order

EXAMPLE = '{"question": "What is 2+3?", "answer": 5}'
REMEDY = f"write a line such as {EXAMPLE}"


def load(config: TaskConfig, seed: int) -> Task:
    """Reads `train_path`, and `eval_path` or as many held-out lines of `train_path`. Raises UserError for bad files.

    With `train_questions` 0 and an `eval_path`, for an evaluation without training, no `train_path` is needed.

    If every answer is a number, an answer's last number counts where it has no box (method, section 3).
    """
    if config.train_questions == 0 and config.eval_path is not None:
        train = ()  # evaluation alone
    elif config.train_path is None:
        raise UserError(f"The task jsonl needs task.train_path: give a file of lines such as {EXAMPLE}.")
    else:
        train = read(config.train_path, "train")
    if config.eval_path is None:
        evaluation, train = _hold_out(train, config, seed)
    else:
        evaluation = read(config.eval_path, "eval")
        if config.train_questions:
            check_enough(config.train_questions, len(train), "task.train_questions", str(config.train_path))
        check_enough(config.eval_questions, len(evaluation), "task.eval_questions", config.eval_path)
        evaluation = seeded_order(evaluation, seed, "jsonl-eval")
        train = seeded_order(train, seed, "jsonl-train")
    numeric = all(answers.number(question.gold or "") is not None for question in (*train, *evaluation))
    return Task(
        name="jsonl",
        train=train[: config.train_questions],
        eval=evaluation[: config.eval_questions],
        parse=answers.parse_numeric if numeric else answers.parse_boxed,
        equivalent=answers.equivalent,
        prompts=GENERAL,
    )


def _hold_out(
    questions: tuple[Question, ...], config: TaskConfig, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Evaluation questions, and the rest. They come first, so that they stay the same whatever `train_questions` is."""
    asked = config.train_questions + config.eval_questions
    check_enough(asked, len(questions), "task.train_questions + task.eval_questions", str(config.train_path))
    order = seeded_order(questions, seed, "jsonl")
    held_out = order[: config.eval_questions]
    renamed = tuple(Question(q.id.replace("-train-", "-eval-"), q.text, q.gold) for q in held_out)
    return renamed, order[config.eval_questions :]


def read(path: str | pathlib.Path, split: str) -> tuple[Question, ...]:
    """The questions of one file, in its order. Raises UserError that names the file and the line."""
    data = read_bytes(path, f"give a file of lines such as {EXAMPLE}")
    kept: dict[str, tuple[int, Question]] = {}
    for number, line in numbered_lines(data):
        question = _question(line, f"{path}, line {number}", f"jsonl-{split}-{number:05d}")
        first, same = kept.setdefault(normalised(question.text), (number, question))
        if not answers.equivalent(same.gold or "", question.gold or ""):
            raise UserError(
                f"{path}, line {number}: the answer is {question.gold!r}, but line {first} has the same question with "
                f"the answer {same.gold!r}: keep the right one."
            )
    return tuple(question for _, question in kept.values())


def _question(line: bytes, where: str, identity: str) -> Question:
    record = parse_object(line, where, REMEDY)
    for field in ("question", "answer"):
        check_field(record, field, where, REMEDY)
    text, answer = text_field(record, "question", where, REMEDY), record["answer"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | decimal.Decimal):
        raise UserError(f'{where}: "answer" is {kind(answer)}, expected a string or a number.')
    # A worked solution that ends in a box is a usual form of gold answer.
    gold = answers.parse_boxed(answer) if "boxed{" in str(answer) else answers.canonical(str(answer))
    if gold is None:
        limit = answers.MAX_LENGTH
        raise UserError(f'{where}: "answer" is empty or longer than {limit} characters: give the answer alone.')
    return Question(identity, text, gold)
