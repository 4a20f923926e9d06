"""MATH: problems of mathematics competitions in seven subjects and five levels. The answers are LaTeX expressions.

Training questions come from its train split, evaluation questions from its test split, in the levels of `math_levels`.
The ids and the order of the questions are determined by the text of the problems, so they are the same for every layout
in which the data set is distributed.
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
from mft_jax.tasks import parsing
from mft_jax.tasks.json_text import numbered_lines, parse_object, read_bytes, text_field
from mft_jax.tasks.prepared import Record
from mft_jax.tasks.public import LineBuilder, PublicData, check_count, load_records, make_task
from mft_jax.tasks.questions import Question, Task

# The problems of the original archive, MATH.tar, on a mirror that evaluation harnesses use.
URL = "https://huggingface.co/datasets/EleutherAI/hendrycks_math/resolve/main/"
# Questions in (train, test) by subject, from the dataset card of that mirror. The totals agree with the paper.
SUBJECTS = {
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
    """Chooses questions of `math_levels` by `seed`. Prepares the data set first if necessary."""
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
    return make_task(data, config, seed, train=train, evaluation=evaluation)


def find(directory: pathlib.Path) -> list[pathlib.Path]:
    """The original files, in one of three layouts, in the directory or in its folder MATH (as the archive unpacks).

    Raises UserError if there are none.
    """
    for root in (directory, directory / "MATH"):
        layouts = [[path for split in SPLITS for path in sorted(root.glob(f"{split}{pattern}"))]
                   for pattern in (".jsonl", "/*/*.json")]  # fmt: skip
        layouts.append([path for split in SPLITS for path in sorted(root.glob(f"*/{split}-*.parquet"))])
        for files in layouts:
            if {_split_of(path) for path in files} == set(SPLITS):
                return files
    raise UserError(f"{directory} does not hold MATH: give a directory that holds {LAYOUT}.")


def _split_of(path: pathlib.Path) -> str:
    """The split of a file: the name of the folder above that of the subject, or the beginning of the file name."""
    return path.parent.parent.name if path.suffix == ".json" else re.split(r"[.-]", path.name)[0]


def parse(files: Sequence[pathlib.Path]) -> dict[str, list[Record]]:
    """Parses all problems. Raises UserError for an invalid problem or a wrong number of problems."""
    found: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for path in files:
        found[_split_of(path)] += [_record(raw, where) for where, raw in _objects(path)]
    for split, records in found.items():
        _check_counts(split, records, os.path.commonpath(files))
        _add_ids(split, records)
    return found


def _objects(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (location for error messages, JSON object) for each problem of a file."""
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
    except (OSError, ValueError) as error:  # errors of pyarrow are subclasses of these
        raise UserError(f"{path}: not a Parquet file ({' '.join(str(error).split())}): {REMEDY}.") from error


def _record(raw: dict[str, Any], where: str) -> Record:
    record = {field: text_field(raw, field, where, REMEDY) for field in FIELDS}
    # Two problems of the original have "Level ?".
    if not re.fullmatch(r"Level [1-5?]", record["level"]):
        raise UserError(f'{where}: "level" is {record["level"]!r}, expected "Level 1" to "Level 5": {REMEDY}.')
    if record["type"] not in SUBJECTS:
        raise UserError(f'{where}: "type" is {record["type"]!r}, expected one of {", ".join(SUBJECTS)}: {REMEDY}.')
    return record


def _expected_counts(split: str) -> Counter[str]:
    return Counter({subject: counts[SPLITS.index(split)] for subject, counts in SUBJECTS.items()})


def _check_counts(split: str, records: Sequence[Record], directory: str) -> None:
    expected, found = _expected_counts(split), Counter(record["type"] for record in records)
    for subject in SUBJECTS:  # naming the incomplete subject is more useful than the total
        check_count(found[subject], expected[subject], f"{directory}: {subject} of the {split} split", "MATH")


def _add_ids(split: str, records: list[Record]) -> None:
    """Adds to each record an id made from a checksum of its text, and sorts the records by their ids."""
    repeats: Counter[str] = Counter()
    for record in records:
        digest = hashlib.sha256(f"{record['problem']}\n{record['solution']}".encode()).hexdigest()[:12]
        repeats[digest] += 1
        again = f"-{repeats[digest]}" if repeats[digest] > 1 else ""
        record["id"] = f"math-{split}-{digest}{again}"
    records.sort(key=lambda record: record["id"])


def _questions(records: Sequence[Record], levels: Sequence[int]) -> list[Question]:
    """The problems of these levels whose solution has a boxed answer. The others cannot be graded."""
    names = {f"Level {level}" for level in levels}
    chosen = [record for record in records if record["level"] in names]
    golds = [parsing.parse_final(record["solution"]) for record in chosen]
    return [
        Question(record["id"], record["problem"], gold)
        for record, gold in zip(chosen, golds, strict=True)
        if gold is not None
    ]
