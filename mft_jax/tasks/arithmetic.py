"""The arithmetic task: a + b * c + d - e * f, six integers uniform in 0..29 (method, section 3).

A data set of tensorflow-datasets, built once into a directory and read without TensorFlow. Each split holds a fixed
pool of questions, none in both; a run uses a seeded choice from them. All are reserved ones (arithmetic_split.py), on
which the shipped base model has not been trained.
"""

import contextlib
import fcntl
import functools
import io
import os
import pathlib
import random
import shutil
import tempfile
from collections.abc import Generator

import tensorflow_datasets as tfds

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks import answers
from mft_jax.tasks.arithmetic_split import LARGEST, question_text, reserved, value
from mft_jax.tasks.questions import Question, Task, check_enough, seeded_order

POOL = 4000  # questions in each split
SPLITS = ("train", "eval")

Numbers = tuple[int, ...]


class DamagedError(Exception):
    """The data set on disk is not the one this version builds."""


class MftArithmetic(tfds.core.GeneratorBasedBuilder):
    """Builds the two pools as array_record files."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "question": tfds.features.Text(),
                "answer": tfds.features.Text(),
            }
        )
        # Without shuffling, record i is question i: a run can read just the ones it uses.
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        for index, numbers in enumerate(pool(split)):
            question = make_question(split, index, numbers)
            yield index, {"id": question.id, "question": question.text, "answer": question.gold}


@functools.cache
def pool(split: str) -> tuple[Numbers, ...]:
    """The six integers of each question of a split: reserved, distinct, and in no other split. The same everywhere."""
    draws = random.Random("arithmetic 1.0.0")
    found: dict[Numbers, None] = {}  # a set that keeps its order
    while len(found) < POOL * len(SPLITS):
        numbers = tuple(int(draws.random() * (LARGEST + 1)) for _ in range(6))
        if reserved(numbers):
            found[numbers] = None
    start = SPLITS.index(split) * POOL
    return tuple(found)[start : start + POOL]


def make_question(split: str, index: int, numbers: Numbers) -> Question:
    return Question(f"arithmetic-{split}-{index:05d}", question_text(numbers), str(value(numbers)))


def load(config: TaskConfig, seed: int) -> Task:
    """Builds the data set where it is missing, and reads the questions that `seed` chooses."""
    check_enough(config.train_questions, POOL, "task.train_questions", "the task arithmetic's training set")
    check_enough(config.eval_questions, POOL, "task.eval_questions", "the task arithmetic's evaluation set")
    chosen = {
        "train": seeded_order(range(POOL), seed, "arithmetic-train")[: config.train_questions],
        "eval": seeded_order(range(POOL), seed, "arithmetic-eval")[: config.eval_questions],
    }
    directory = data_dir(config)
    try:
        questions = _read(directory, chosen)
    except DamagedError:
        questions = _build_and_read(directory, chosen)
    return Task("arithmetic", questions["train"], questions["eval"], answers.parse_numeric, answers.equivalent)


def data_dir(config: TaskConfig) -> pathlib.Path:
    """The directory of data sets: the configuration's, else one in the user's cache directory."""
    if config.data_dir is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (cache if cache.is_absolute() else pathlib.Path.home() / ".cache") / "mft_jax" / "datasets"
    if "://" in config.data_dir:
        raise UserError(
            f"task.data_dir is {config.data_dir!r}, expected a local directory: every host builds its own data."
        )
    return pathlib.Path(config.data_dir).expanduser()


def _build_and_read(directory: pathlib.Path, chosen: dict[str, tuple[int, ...]]) -> dict[str, tuple[Question, ...]]:
    """Replaces what is there, if anything; processes that want the same data set wait for the first."""
    try:
        with _locked(directory):
            with contextlib.suppress(DamagedError):
                return _read(directory, chosen)  # another process has built it meanwhile
            for name in (f"{MftArithmetic.VERSION}", f"incomplete.*_{MftArithmetic.VERSION}"):
                for leftover in (directory / MftArithmetic.name).glob(name):
                    shutil.rmtree(leftover)  # damaged, or the unfinished work of a process that was killed
            _build(directory)
            return _read(directory, chosen)
    except (OSError, DamagedError) as error:
        raise UserError(
            f"Cannot build the data set of the task arithmetic in {directory} ({error}): "
            "set task.data_dir to a directory that can be written to."
        ) from error


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Generator[None]:
    """Holds a lock that the system drops with the process, so a kill leaves none behind."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "arithmetic.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(directory: pathlib.Path) -> None:
    """Whole or not at all: tensorflow-datasets writes into a temporary directory that gets its name at the end."""
    tfds.disable_progress_bar()
    builder = MftArithmetic(data_dir=directory, file_format="array_record")
    # Nothing is downloaded, but the library makes a directory for downloads, by default in the home, and prints.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_dir=scratch, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


def _read(directory: pathlib.Path, chosen: dict[str, tuple[int, ...]]) -> dict[str, tuple[Question, ...]]:
    """The chosen questions of each split, checked against what they must be. Raises DamagedError."""
    if not (directory / MftArithmetic.name / str(MftArithmetic.VERSION)).is_dir():
        raise DamagedError("there is no data set")
    try:
        builder = MftArithmetic(data_dir=directory, file_format="array_record")
        return {split: _read_split(builder, split, indices) for split, indices in chosen.items()}
    except DamagedError:
        raise
    except Exception as error:  # whatever the readers of its several files make of broken bytes
        raise DamagedError(f"the data set cannot be read: {' '.join(str(error).split())}") from error


def _read_split(builder: MftArithmetic, split: str, indices: tuple[int, ...]) -> tuple[Question, ...]:
    source = builder.as_data_source(split=split)
    if len(source) != POOL:
        raise DamagedError(f"its split {split} has {len(source)} questions, expected {POOL}")
    expected = pool(split)
    questions = []
    for index, record in zip(indices, source.__getitems__(list(indices)), strict=True):
        question = Question(record["id"].decode(), record["question"].decode(), record["answer"].decode())
        # An older build could hold questions that the base model has seen: never trust, always compare.
        if question != make_question(split, index, expected[index]):
            raise DamagedError(f"its question {question.id} is not the one expected")
        questions.append(question)
    return tuple(questions)
