"""Data sets of tensorflow-datasets in the user's cache directory: built once, read without TensorFlow.

A data set is built whole or not at all, by one process while the others wait for it, and built again where it is found
damaged. Every host of a run builds its own.
"""

import contextlib
import dataclasses
import fcntl
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import tensorflow_datasets as tfds

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError

T = TypeVar("T")
Builder = tfds.core.GeneratorBasedBuilder
Record = dict[str, str]


class DamagedError(Exception):
    """The data set on disk is not the one this version builds."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Where a data set is kept, and what builds it."""

    directory: pathlib.Path
    builder: type[Builder]
    config: str | None = None
    """One of the builder's BUILDER_CONFIGS, by name."""

    @property
    def path(self) -> pathlib.Path:
        """Where tensorflow-datasets puts it; says nothing about whether it is there."""
        versions = self.directory / self.builder.name
        return (versions if self.config is None else versions / self.config) / str(self.builder.VERSION)

    def make_builder(self) -> Builder:
        return self.builder(data_dir=self.directory, config=self.config, file_format="array_record")


def cache_dir(config: TaskConfig) -> pathlib.Path:
    """The directory of prepared data sets: the configuration's, else one in the user's cache directory."""
    if config.cache_dir is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (cache if cache.is_absolute() else pathlib.Path.home() / ".cache") / "mft_jax" / "datasets"
    return local_directory("cache_dir", config.cache_dir)


def local_directory(field: str, value: str) -> pathlib.Path:
    if "://" in value:
        raise UserError(f"task.{field} is {value!r}, expected a local directory: every host prepares its own data.")
    return pathlib.Path(value).expanduser()


def load_prepared(
    task: str,
    data: Prepared,
    read: Callable[[Builder], T],
    originals: Callable[[pathlib.Path], None] | None = None,
) -> T:
    """What `read` finds in the data set, which is built first where it is missing or damaged.

    `read` raises DamagedError, or whatever a reader makes of broken bytes. `originals` fills a directory with the files
    that the builder finds in its download manager's `manual_dir`; its UserError is passed on.
    """
    try:
        return _read(data, read)
    except DamagedError:
        return _build_and_read(task, data, read, originals)


def read_records(builder: Builder, split: str, indices: Sequence[int] | None = None) -> list[Record]:
    """Records of a split as text: those of `indices`, or all."""
    source = builder.as_data_source(split=split)
    chosen = range(len(source)) if indices is None else indices
    records = source.__getitems__(list(chosen))
    return [{name: value.decode() for name, value in record.items()} for record in records]


def _read(data: Prepared, read: Callable[[Builder], T]) -> T:
    if not data.path.is_dir():
        raise DamagedError("there is no data set")
    try:
        return read(data.make_builder())
    except DamagedError:
        raise
    except Exception as error:  # whatever the readers of its several files make of broken bytes
        raise DamagedError(f"the data set cannot be read: {' '.join(str(error).split())}") from error


def _build_and_read(task: str, data: Prepared, read: Callable[[Builder], T], originals) -> T:
    """Replaces what is there, if anything; processes that want the same data set wait for the first."""
    try:
        with _locked(data.directory, task):
            with contextlib.suppress(DamagedError):
                return _read(data, read)  # another process has built it meanwhile
            for name in (data.path.name, f"incomplete.*_{data.path.name}"):
                for leftover in data.path.parent.glob(name):
                    shutil.rmtree(leftover)  # damaged, or the unfinished work of a process that was killed
            _build(data, originals)
            return _read(data, read)
    except (OSError, DamagedError) as error:
        raise UserError(
            f"Cannot build the data set of the task {task} in {data.directory} ({error}): "
            "set task.cache_dir to a directory that can be written to."
        ) from error


@contextlib.contextmanager
def _locked(directory: pathlib.Path, task: str) -> Generator[None]:
    """Holds a lock that the system drops with the process, so a kill leaves none behind."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{task}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(data: Prepared, originals: Callable[[pathlib.Path], None] | None) -> None:
    """Whole or not at all: tensorflow-datasets writes into a temporary directory that gets its name at the end."""
    tfds.disable_progress_bar()
    # Nothing is downloaded here, but the library makes a directory for downloads, by default in the home, and prints.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        manual = pathlib.Path(scratch) / "originals"
        manual.mkdir()
        if originals is not None:
            originals(manual)
        data.make_builder().download_and_prepare(
            download_dir=pathlib.Path(scratch) / "downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=manual),
        )
