"""GSM8K: grade school word problems with numeric answers, prepared by the builder of tensorflow-datasets.

Training questions come from its train split, evaluation questions from its test split. The id of a question contains
its line number.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence

import tensorflow_datasets as tfds
from tensorflow_datasets.text.gsm8k.gsm8k import Gsm8k

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks import answers
from mft_jax.tasks.json_text import numbered_lines, parse_object, read_bytes, text_field
from mft_jax.tasks.prepared import Record
from mft_jax.tasks.public import PublicData, check_count, load_records, make_task
from mft_jax.tasks.questions import Question, Task

URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
# Of the files in this repository.
COUNTS = {"train": 7473, "test": 1319}
CHECKSUMS = {
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}
MARK = "#### "  # separates the worked solution from the answer
REMEDY = "get the original file again"


class MftGsm8k(Gsm8k):
    """The builder of tensorflow-datasets, but it reads local files, and only the main variant of the questions."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "train.jsonl and test.jsonl"

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        info.as_proto.disable_shuffling = True  # record i is line i
        return info

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(dl_manager.manual_dir / f"{split}.jsonl") for split in COUNTS}


def load(config: TaskConfig, seed: int) -> Task:
    """Chooses questions of the data set by `seed`. Prepares the data set first if necessary."""
    data = PublicData(
        task="gsm8k",
        title="GSM8K",
        layout="GSM8K's train.jsonl and test.jsonl",
        builder=MftGsm8k,
        counts=COUNTS,
        find=find,
        parse=parse,
        urls={f"{split}.jsonl": f"{URL}{split}.jsonl" for split in COUNTS},
        checksums={f"{split}.jsonl": checksum for split, checksum in CHECKSUMS.items()},
    )
    records = load_records(config, data)
    train, evaluation = (_questions(split, records[split]) for split in COUNTS)
    return make_task(data, config, seed, train=train, evaluation=evaluation)


def find(directory: pathlib.Path) -> list[pathlib.Path]:
    """The two original files in the directory. Raises UserError if one is missing."""
    files = [directory / f"{split}.jsonl" for split in COUNTS]
    for path in files:
        if not path.is_file():
            raise UserError(f"There is no {path}: give a directory that holds GSM8K's train.jsonl and test.jsonl.")
    return files


def parse(files: Sequence[pathlib.Path]) -> dict[str, list[Record]]:
    """Parses both files. Raises UserError for an invalid line, a wrong number of lines, or other questions."""
    return {split: _parse_split(split, path) for split, path in zip(COUNTS, files, strict=True)}


def _parse_split(split: str, path: pathlib.Path) -> list[Record]:
    data = read_bytes(path, REMEDY)
    records = [_record(line, f"{path}, line {number}") for number, line in numbered_lines(data)]
    check_count(len(records), COUNTS[split], str(path), f"GSM8K's {split} split")
    # The records are written as in the original, so that copies with other line ends or escapes have its checksum.
    digest = hashlib.sha256("".join(json.dumps(record) + "\n" for record in records).encode()).hexdigest()
    if digest != CHECKSUMS[split]:
        raise UserError(
            f"{path} holds other questions than GSM8K's {split} split (SHA-256 {digest}, expected {CHECKSUMS[split]}): "
            f"{REMEDY}, or use the task jsonl for questions of your own."
        )
    return records


def _record(line: bytes, where: str) -> Record:
    raw = parse_object(line, where, REMEDY)
    record = {field: text_field(raw, field, where, REMEDY) for field in ("question", "answer")}
    _, mark, gold = record["answer"].partition(MARK)
    if not mark or answers.number(answers.canonical(gold) or "") is None:
        raise UserError(f'{where}: "answer" does not end with {MARK!r} and a number: {REMEDY}.')
    return {field: raw[field] for field in record}


def _questions(split: str, records: Sequence[Record]) -> list[Question]:
    return [
        Question(f"gsm8k-{split}-{line:05d}", record["question"].strip(), answers.canonical(record["short_answer"]))
        for line, record in enumerate(records, start=1)
    ]
