"""MMLU: questions with four choices from 57 subjects. The answer is a letter.

Training questions come from its dev and val splits, evaluation questions from its test split. Its auxiliary training
set is not used, because it consists of questions of other benchmarks. The id of a question contains its subject and its
row in the file of the subject.
"""

import csv
import io
import pathlib
import shutil
import tarfile
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks.json_text import read_bytes
from mft_jax.tasks.prepared import Record
from mft_jax.tasks.public import LineBuilder, PublicData, check_count, load_records, make_task
from mft_jax.tasks.questions import Question, Task

URL = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"
CHECKSUM = "bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b"  # the value that other projects use
ARCHIVE = "data.tar"
COUNTS = {"dev": 285, "val": 1531, "test": 14042}  # from the data set card of cais/mmlu
CHOICES = ("A", "B", "C", "D")
LAYOUT = "MMLU's dev, val and test folders of SUBJECT_SPLIT.csv"
REMEDY = "get the original file again"


class MftMmlu(LineBuilder):
    """Questions by subject, in the order of the files."""

    VERSION = tfds.core.Version("1.0.0")
    FIELDS = ("id", "question", *CHOICES, "answer")
    SPLITS = tuple(COUNTS)


def load(config: TaskConfig, seed: int) -> Task:
    """Chooses questions of the data set by `seed`. Prepares the data set first if necessary."""
    data = PublicData(
        task="mmlu",
        title="MMLU",
        layout=LAYOUT,
        builder=MftMmlu,
        counts=COUNTS,
        find=find,
        parse=parse,
        urls={ARCHIVE: URL},
        checksums={ARCHIVE: CHECKSUM},
        unpack=unpack,
    )
    records = load_records(config, data)
    pools = {split: [_question(record) for record in records[split]] for split in COUNTS}
    return make_task(data, config, seed, train=pools["dev"] + pools["val"], evaluation=pools["test"])


def find(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files of all subjects in the directory, or in its folder data, into which the archive unpacks.

    Raises UserError if a split has none.
    """
    for root in (directory, directory / "data"):
        files = {split: sorted((root / split).glob(f"*_{split}.csv")) for split in COUNTS}
        if all(files.values()):
            return [path for paths in files.values() for path in paths]
    raise UserError(f"{directory} does not hold MMLU: give a directory that holds {LAYOUT}.")


def unpack(directory: pathlib.Path) -> None:
    """Unpacks the three splits of the downloaded archive, without its large auxiliary training set."""
    with tarfile.open(directory / ARCHIVE) as archive:
        for member in archive:
            place = pathlib.PurePosixPath(member.name)
            source = archive.extractfile(member) if place.suffix == ".csv" and place.parent.name in COUNTS else None
            if source is not None:  # only the last two names are used, so nothing is written outside `directory`
                target = directory / place.parent.name / place.name
                target.parent.mkdir(exist_ok=True)
                with source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)


def parse(files: Sequence[pathlib.Path]) -> dict[str, list[Record]]:
    """Parses all rows. Raises UserError for an invalid row or a wrong number of rows."""
    found: dict[str, list[Record]] = {split: [] for split in COUNTS}
    for path in files:
        found[path.parent.name] += _rows(path)
    for split, records in found.items():
        parts = [path for path in files if path.parent.name == split]
        check_count(len(records), COUNTS[split], f"{parts[0].parent} ({len(parts)} files)", "MMLU's 57 files")
    return found


def _rows(path: pathlib.Path) -> Iterator[Record]:
    try:
        text = read_bytes(path, REMEDY).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 ({error.reason}): {REMEDY}.") from error
    subject = path.stem.removesuffix(f"_{path.parent.name}")
    reader = csv.reader(io.StringIO(text, newline=""))
    start, number = 1, 0
    try:
        for row in reader:
            if row:
                number += 1
                identity = f"mmlu-{path.parent.name}-{subject}-{number:04d}"
                yield {"id": identity, **_record(row, f"{path}, line {start}")}
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {start}: not valid CSV ({error}): {REMEDY}.") from error


def _record(row: list[str], where: str) -> Record:
    if len(row) != 6:
        raise UserError(f"{where}: got {len(row)} fields, expected a question, four choices and a letter: {REMEDY}.")
    question, *choices, answer = (field.strip() for field in row)
    if not question:
        raise UserError(f"{where}: the question is empty: {REMEDY}.")
    if answer not in CHOICES:
        raise UserError(f"{where}: the answer is {answer!r}, expected A, B, C or D: {REMEDY}.")
    return {"question": question, **dict(zip(CHOICES, choices, strict=True)), "answer": answer}


def _question(record: Record) -> Question:
    listed = "".join(f"\n({letter}) {record[letter]}" for letter in CHOICES)
    return Question(record["id"], record["question"] + listed, record["answer"])
