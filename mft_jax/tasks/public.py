"""Public data sets, prepared from their original files, which the user provides or which are downloaded.

All files are read and verified before anything is stored. The directory name of a prepared data set contains a checksum
of its original files, so data sets from different files are never confused.
"""

import dataclasses
import hashlib
import http.client
import json
import pathlib
import shutil
import tarfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence

import tensorflow_datasets as tfds

from mft_jax import seeds
from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks.bucket_files import copy_folder, is_in_bucket
from mft_jax.tasks.prepared import (
    Builder,
    DamagedError,
    Prepared,
    Record,
    cache_dir,
    load_prepared,
    local_directory,
    read_records,
)
from mft_jax.tasks.questions import Question, Task, check_enough, normalise
from mft_jax.tasks.rules import without_questions

TIMEOUT = 10.0  # seconds without received data; short, so that a missing network is reported soon


class LineBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads one record from each line of `manual_dir`/SPLIT.jsonl, in order. A subclass names the fields and splits."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "SPLIT.jsonl"
    FIELDS: tuple[str, ...] = ()
    SPLITS: tuple[str, ...] = ()

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in self.FIELDS})
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(dl_manager.manual_dir / f"{split}.jsonl") for split in self.SPLITS}

    def _generate_examples(self, path):
        yield from enumerate(json.loads(line) for line in path.read_text().splitlines())


Records = Mapping[str, Sequence[Record]]  # by split of the builder


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicData:
    """One data set as its authors published it."""

    task: str
    title: str
    layout: str
    """A description of its original files, for error messages."""
    builder: type[Builder]
    """Reads one record from each line of SPLIT.jsonl in its download manager's `manual_dir`, in order."""
    counts: Mapping[str, int]
    """Number of questions in each split."""
    find: Callable[[pathlib.Path], Sequence[pathlib.Path]]
    """Finds the original files in a directory. Raises UserError if one is missing."""
    parse: Callable[[Sequence[pathlib.Path]], Records]
    """Parses and verifies these files. Raises a UserError that names the file and, if possible, the line."""
    urls: Mapping[str, str]
    """The URL of each file, by the path of the file in the directory."""
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The SHA-256 of the files whose checksum is known, by the path of the file in the directory."""
    unpack: Callable[[pathlib.Path], None] = lambda directory: None
    """Unpacks downloaded archives in a directory, before `find` looks for the original files there."""


def load_records(config: TaskConfig, data: PublicData) -> dict[str, list[Record]]:
    """All records of each split. They are read from the cache directory, and prepared there first if necessary.

    Raises UserError if `config.data_dir` lacks a file, if a file is invalid, or if one can be neither read nor downloaded.
    """
    if config.data_dir is None:
        given = None
    elif is_in_bucket(config.data_dir):
        given = copy_folder(config.data_dir, cache_dir(config))
    else:
        given = local_directory("data_dir", config.data_dir)
    if given is not None and not given.is_dir():
        raise UserError(
            f"task.data_dir is {str(given)!r}, which is not a directory: give one that holds {data.layout}."
        )
    key = _official_key(data) if given is None else _key_of_files(given, data.find(given))

    def originals(directory: pathlib.Path) -> None:
        found = data.parse(data.find(given)) if given is not None else _download(data, directory / "download")
        for split, records in found.items():
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (directory / f"{split}.jsonl").write_text(lines, encoding="ascii")

    def read(builder: Builder) -> dict[str, list[Record]]:
        found = {split: read_records(builder, split) for split in data.counts}
        for split, records in found.items():
            if len(records) != data.counts[split]:
                raise DamagedError(f"its split {split} has {len(records)} records, expected {data.counts[split]}")
        return found

    return load_prepared(data.task, Prepared(cache_dir(config) / f"{data.task}-{key}", data.builder), read, originals)


def make_task(
    data: PublicData,
    config: TaskConfig,
    seed: int,
    *,
    train: Sequence[Question],
    evaluation: Sequence[Question],
) -> Task:
    """Chooses questions by `seed` from the pools `train` and `evaluation`.

    Public data sets contain duplicate questions, even across their splits. The evaluation pool stays as published. A
    training question is left out if it repeats an earlier one or one of the evaluation pool.
    """
    evaluated = {normalise(question.text) for question in evaluation}
    kept: dict[str, Question] = {}
    for question in train:
        text = normalise(question.text)
        if text not in evaluated:
            kept.setdefault(text, question)
    pool = tuple(kept.values())
    check_enough(config.train_questions, len(pool), "task.train_questions", f"the task {data.task}'s training set")
    check_enough(config.eval_questions, len(evaluation), "task.eval_questions", f"the task {data.task}'s test set")
    return dataclasses.replace(
        without_questions(data.task),
        train=seeds.question_order(pool, seed, f"{data.task}-train")[: config.train_questions],
        eval=seeds.question_order(evaluation, seed, f"{data.task}-eval")[: config.eval_questions],
    )


def check_count(found: int, expected: int, where: str, of: str) -> None:
    if found != expected:
        raise UserError(
            f"{where} has {found:,} questions, expected the {expected:,} of {of}: get the complete original again, or "
            "use the task jsonl for questions of your own."
        )


def sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _official_key(data: PublicData) -> str:
    """The key of the published files. If all checksums are known, a user's copy of the files has the same key."""
    return _combined_key(data.checksums) if set(data.checksums) == set(data.urls) else "public"


def _key_of_files(directory: pathlib.Path, files: Sequence[pathlib.Path]) -> str:
    try:
        return _combined_key({path.relative_to(directory).as_posix(): sha256(path) for path in files})
    except OSError as error:
        raise UserError(
            f"Cannot read the questions {error.filename} ({error.strerror}): give a directory of files that can be "
            "read."
        ) from error


def _combined_key(checksums: Mapping[str, str]) -> str:
    listed = "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _download(data: PublicData, directory: pathlib.Path) -> Records:
    """Downloads and parses the original files. On failure, raises a UserError with the reason and the alternatives."""
    for name, url in data.urls.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(path, "wb") as file:
                shutil.copyfileobj(response, file)
        except (OSError, http.client.HTTPException) as error:
            raise _download_error(data, f"{url}: {getattr(error, 'reason', None) or error}") from error
        if name in data.checksums and sha256(path) != data.checksums[name]:
            raise _download_error(data, f"{url} has the SHA-256 {sha256(path)}, expected {data.checksums[name]}")
    try:
        data.unpack(directory)
        return data.parse(data.find(directory))
    except (OSError, tarfile.TarError, UserError) as error:
        raise _download_error(data, str(error).rstrip(".")) from error


def _download_error(data: PublicData, reason: str) -> UserError:
    return UserError(
        f"{data.title} cannot be downloaded ({reason}): connect this machine to the network, or give a directory that "
        f"holds {data.layout}, with --task.data-dir DIR (mft eval: --data-dir DIR)."
    )
