"""MATH: problems of mathematics competitions in seven subjects and five levels; the answers are LaTeX expressions.

Training questions come from its train split, evaluation questions from its test split, of levels 1 to 3 unless
`math_levels` says otherwise. The questions, their order and their ids follow from the problems' text, so that every
layout in which the data set is distributed gives a run the same ones.
"""

import hashlib
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.prompts import MATH
from mft_jax.tasks import parsing
from mft_jax.tasks.json_text import numbered_lines, parse_object, read_bytes, text_field
from mft_jax.tasks.prepared import Record
from mft_jax.tasks.public import LineBuilder, PublicData, check_count, load_records, make_task
from mft_jax.tasks.questions import Question, Task

# The problems of the original archive, MATH.tar, on a mirror that evaluation harnesses use.
URL = "https://huggingface.co/datasets/EleutherAI/hendrycks_math/resolve/main/"
SUBJECTS = {  # questions in (train, test) by subject: from that mirror's dataset card; the totals are the paper's
    "Algebra": (1744, 1187),
    "Counting & Probability": (771, 474),
    "Geometry": (870, 479),
    "Intermediate Algebra": (1295, 903),
    "Number Theory": (869, 540),
    "Prealgebra": (1205, 871),
    "Precalculus": (746, 546),
}
SPLITS = ("train", "test")
FIELDS = ("problem", "level", "type", "solution")
LAYOUT = "MATH's train and test folders of SUBJECT/*.json, or its train.jsonl and test.jsonl"
REMEDY = "get the original file again"


class MftMath(LineBuilder):
    """Problems in the order of their ids."""

    VERSION = tfds.core.Version("1.0.0")
    FIELDS = ("id", *FIELDS)
    SPLITS = SPLITS


def load(config: TaskConfig, seed: int) -> Task:
    """The questions of `math_levels` that `seed` chooses of the data set, which is prepared first where it is missing."""
    folders = [subject.lower().replace("&", "and").replace(" ", "_") for subject in SUBJECTS]
    files = [f"{folder}/{split}-00000-of-00001.parquet" for folder in folders for split in SPLITS]
    data = PublicData(
        task="math",
        title="MATH",
        layout=LAYOUT,
        builder=MftMath,
        counts={split: _expected_counts(split).total() for split in SPLITS},
        find=find,
        parse=parse,
        urls={file: URL + file for file in files},
    )
    records = load_records(config, data)
    train, evaluation = (_questions(records[split], config.math_levels) for split in SPLITS)
    return make_task(
        data, config, seed, train=train, evaluation=evaluation, parse=parsing.parse_expression, prompts=MATH
    )


def find(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files of the layout that is there, in the directory or in the folder MATH that the archive unpacks to."""
    for root in (directory, directory / "MATH"):
        layouts = [[path for split in SPLITS for path in sorted(root.glob(f"{split}{pattern}"))]
                   for pattern in (".jsonl", "/*/*.json")]  # fmt: skip
        layouts.append([path for split in SPLITS for path in sorted(root.glob(f"*/{split}-*.parquet"))])
        for files in layouts:
            if {_split_of(path) for path in files} == set(SPLITS):
                return files
    raise UserError(f"{directory} does not hold MATH: give a directory that holds {LAYOUT}.")


def _split_of(path: pathlib.Path) -> str:
    """train or test: in the layout of folders, the folder above the subject's; else how the file's name begins."""
    return path.parent.parent.name if path.suffix == ".json" else re.split(r"[.-]", path.name)[0]


def parse(files: Sequence[pathlib.Path]) -> dict[str, list[Record]]:
    """Every problem. Raises UserError for a broken one, else for a wrong number of them."""
    found: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for path in files:
        found[_split_of(path)] += [_record(raw, where) for where, raw in _objects(path)]
    for split, records in found.items():
        _check_counts(split, records, os.path.commonpath(files))
        _add_ids(split, records)
    return found


def _objects(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the place in the file, for error messages; the object) of each problem of a file."""
    if path.suffix == ".parquet":
        yield from ((f"{path}, row {row}", raw) for row, raw in enumerate(_parquet_rows(path), start=1))
    elif path.suffix == ".json":
        yield str(path), parse_object(read_bytes(path, REMEDY), str(path), REMEDY)
    else:
        for number, line in numbered_lines(read_bytes(path, REMEDY)):
            where = f"{path}, line {number}"
            yield where, parse_object(line, where, REMEDY)


def _parquet_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    import pyarrow.parquet  # comes with tensorflow-datasets

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are among them
        raise UserError(f"{path}: not a Parquet file ({' '.join(str(error).split())}): {REMEDY}.") from error


def _record(raw: dict[str, Any], where: str) -> Record:
    record = {field: text_field(raw, field, where, REMEDY) for field in FIELDS}
    # The original has two problems of "Level ?".
    if not re.fullmatch(r"Level [1-5?]", record["level"]):
        raise UserError(f'{where}: "level" is {record["level"]!r}, expected "Level 1" to "Level 5": {REMEDY}.')
    if record["type"] not in SUBJECTS:
        raise UserError(f'{where}: "type" is {record["type"]!r}, expected one of {", ".join(SUBJECTS)}: {REMEDY}.')
    return record


def _expected_counts(split: str) -> Counter[str]:
    return Counter({subject: counts[SPLITS.index(split)] for subject, counts in SUBJECTS.items()})


def _check_counts(split: str, records: Sequence[Record], directory: str) -> None:
    expected, found = _expected_counts(split), Counter(record["type"] for record in records)
    for subject in SUBJECTS:  # an incomplete subject tells more than the total
        check_count(found[subject], expected[subject], f"{directory}: {subject} of the {split} split", "MATH")


def _add_ids(split: str, records: list[Record]) -> None:
    """Gives every record an id that is a checksum of its text, and sorts the records by it."""
    repeats: Counter[str] = Counter()
    for record in records:
        digest = hashlib.sha256(f"{record['problem']}\n{record['solution']}".encode()).hexdigest()[:12]
        repeats[digest] += 1
        again = f"-{repeats[digest]}" if repeats[digest] > 1 else ""
        record["id"] = f"math-{split}-{digest}{again}"
    records.sort(key=lambda record: record["id"])


def _questions(records: Sequence[Record], levels: Sequence[int]) -> list[Question]:
    """The problems of these levels whose solution has its answer in a box: others could not be graded."""
    names = {f"Level {level}" for level in levels}
    chosen = [record for record in records if record["level"] in names]
    golds = [parsing.parse_final(record["solution"]) for record in chosen]
    return [
        Question(record["id"], record["problem"], gold)
        for record, gold in zip(chosen, golds, strict=True)
        if gold is not None
    ]
