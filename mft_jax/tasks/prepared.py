"""Data sets of tensorflow-datasets in the user's cache directory: built once, then read without TensorFlow.

One process builds a data set while the others wait for it. A damaged data set is replaced only once a new one has been
built beside it and read without an error, so nothing is deleted that cannot be built again. Every host of a run builds
its own.
"""

import contextlib
import dataclasses
import fcntl
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Generator
from typing import TypeVar

import tensorflow_datasets as tfds

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError

T = TypeVar("T")
Builder = tfds.core.GeneratorBasedBuilder
Record = dict[str, str]
Originals = Callable[[pathlib.Path], None]  # fills a directory with the files that a builder reads


class DamagedError(Exception):
    """The data set on disk is not the one this version builds."""


class MissingError(DamagedError):
    """There is no data set on disk."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Where a data set is kept, and what builds it."""

    directory: pathlib.Path
    builder: type[Builder]

    @property
    def path(self) -> pathlib.Path:
        """Where tensorflow-datasets puts it; says nothing about whether it is there."""
        return self.directory / self.builder.name / str(self.builder.VERSION)

    def make_builder(self) -> Builder:
        return self.builder(data_dir=self.directory, file_format="array_record")


def cache_dir(config: TaskConfig) -> pathlib.Path:
    """The directory of prepared data sets: the configuration's, else one in the user's cache directory."""
    if config.cache_dir is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (cache if cache.is_absolute() else pathlib.Path(os.path.expanduser("~/.cache"))) / "mft_jax" / "datasets"
    return local_directory("cache_dir", config.cache_dir)


def local_directory(field: str, value: str) -> pathlib.Path:
    if "://" in value:
        raise UserError(f"task.{field} is {value!r}, expected a local directory: every host prepares its own data.")
    return pathlib.Path(os.path.expanduser(value))  # Path.expanduser raises where a user's home is not known


def load_prepared(task: str, data: Prepared, read: Callable[[Builder], T], originals: Originals) -> T:
    """What `read` makes of the data set, which is built first where it is missing or damaged.

    `read` may raise DamagedError, or whatever the readers of a data set's files make of broken bytes. `originals` fills
    a directory with the files that the builder finds in its download manager's `manual_dir`. Raises UserError when the
    data set can be neither read nor built; it keeps the reason of both.
    """
    try:
        return _read_whole(data, read)
    except DamagedError as error:
        damage = error
    except OSError as error:
        raise UserError(
            f"Cannot read the data set of the task {task} in {data.path} ({error}): make it readable, or set "
            "task.cache_dir to another directory."
        ) from error
    try:
        with _locked(data.directory, task):
            return _read_or_rebuild(data, read, originals)
    except (OSError, DamagedError, UserError) as error:
        raise _explain_failure(task, data, error, damage) from error


def read_records(builder: Builder, split: str) -> list[Record]:
    """All records of a split, as text."""
    source = builder.as_data_source(split=split)
    records = source.__getitems__(list(range(len(source))))
    return [{name: value.decode() for name, value in record.items()} for record in records]


def _read_whole(data: Prepared, read: Callable[[Builder], T]) -> T:
    """Raises DamagedError, or OSError (or MemoryError) where the machine keeps a data set from being read, damaged or not."""
    if not data.path.is_dir():
        raise MissingError("there is no data set")
    try:
        return read(data.make_builder())
    except (DamagedError, MemoryError):
        raise
    except Exception as error:  # whatever the readers of its several files make of broken bytes
        _check_files_readable(data.path)  # they raise RuntimeError for a denied permission, too
        raise DamagedError(f"it cannot be read: {' '.join(str(error).split())}") from error


def _check_files_readable(directory: pathlib.Path) -> None:
    """Raises OSError for a file that the system cannot read, whatever is in it."""
    for file in filter(pathlib.Path.is_file, directory.iterdir()):
        file.read_bytes()


def _read_or_rebuild(data: Prepared, read: Callable[[Builder], T], originals: Originals) -> T:
    """Under the lock: puts a new data set in the place of the damaged or missing one, once it has been built and read."""
    with contextlib.suppress(DamagedError):
        return _read_whole(data, read)  # another process has built it meanwhile
    new = dataclasses.replace(data, directory=data.directory / "new")
    try:
        found = _read_whole(new, read)  # a process that built it was killed before it could put it in place
    except DamagedError:
        if new.directory.exists():
            shutil.rmtree(new.directory)
        _build(new, originals)
        found = _read_whole(new, read)
    if data.path.exists():
        os.replace(data.path, new.directory / "damaged")
    data.path.parent.mkdir(exist_ok=True)
    os.replace(new.path, data.path)
    shutil.rmtree(new.directory)
    return found


def _explain_failure(task: str, data: Prepared, error: Exception, damage: DamagedError) -> UserError:
    failure = str(error)
    if not isinstance(error, UserError):
        failure = (
            f"Cannot build the data set of the task {task} in {data.directory} ({error}): "
            "set task.cache_dir to a directory that can be written to."
        )
    if isinstance(damage, MissingError):
        return UserError(failure)
    return UserError(f"The data set in {data.path} is damaged ({damage}) and could not be built again: {failure}")


@contextlib.contextmanager
def _locked(directory: pathlib.Path, task: str) -> Generator[None]:
    """Holds a lock that the system drops with the process, so a kill leaves none behind."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{task}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(data: Prepared, originals: Originals) -> None:
    """Whole or not at all: tensorflow-datasets writes into a temporary directory that it renames at the end."""
    tfds.disable_progress_bar()
    # Nothing is downloaded here, but the library makes a directory for downloads, by default in the home, and prints.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        manual = pathlib.Path(scratch) / "originals"
        manual.mkdir()
        originals(manual)
        data.make_builder().download_and_prepare(
            download_dir=pathlib.Path(scratch) / "downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=manual),
        )
