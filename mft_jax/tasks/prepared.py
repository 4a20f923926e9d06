"""Builds data sets with tensorflow-datasets in the user's cache directory, once, and reads them without TensorFlow.

One process builds a data set while others wait for it. A damaged data set is replaced only after a new one has been
built beside it and read without an error, so a failed build deletes nothing. Each host of a run builds its own data
sets.
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
    """The data set on disk is damaged, or differs from what this version builds."""


class MissingError(DamagedError):
    """There is no data set on disk."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The directory of a data set and its builder."""

    directory: pathlib.Path
    builder: type[Builder]

    @property
    def path(self) -> pathlib.Path:
        """The path at which tensorflow-datasets stores it. It may not exist yet."""
        return self.directory / self.builder.name / str(self.builder.VERSION)

    def make_builder(self) -> Builder:
        return self.builder(data_dir=self.directory, file_format="array_record")


def cache_dir(config: TaskConfig) -> pathlib.Path:
    """The directory of prepared data sets: `config.cache_dir`, or else one in the user's cache directory."""
    if config.cache_dir is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (cache if cache.is_absolute() else pathlib.Path(os.path.expanduser("~/.cache"))) / "mft_jax" / "datasets"
    return local_directory("cache_dir", config.cache_dir)


def local_directory(field: str, value: str) -> pathlib.Path:
    """The directory `value` of the setting task.`field`, with "~" expanded. Raises UserError for a URL."""
    if "://" in value:
        raise UserError(f"task.{field} is {value!r}, expected a local directory: every host prepares its own data.")
    return pathlib.Path(os.path.expanduser(value))  # Path.expanduser raises if the home directory is unknown


def load_prepared(task: str, data: Prepared, read: Callable[[Builder], T], originals: Originals) -> T:
    """Reads a data set with `read`, and builds it first if it is missing or damaged.

    `read` may raise DamagedError, or any error of the library that reads the files. `originals` writes the files that
    the builder reads from the `manual_dir` of its download manager into a directory. Raises UserError if the data set
    can be neither read nor built; the message contains both reasons.
    """
    try:
        return _read_undamaged(data, read)
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


def _read_undamaged(data: Prepared, read: Callable[[Builder], T]) -> T:
    """Reads a data set. Raises DamagedError if it is damaged, OSError or MemoryError if the system cannot read it."""
    if not data.path.is_dir():
        raise MissingError("there is no data set")
    try:
        return read(data.make_builder())
    except (DamagedError, MemoryError):
        raise
    except Exception as error:  # the libraries raise various errors for damaged files
        _check_files_readable(data.path)  # because they raise RuntimeError also if a permission is missing
        raise DamagedError(f"it cannot be read: {' '.join(str(error).split())}") from error


def _check_files_readable(directory: pathlib.Path) -> None:
    """Raises OSError if the system cannot read a file, whatever its content."""
    for file in filter(pathlib.Path.is_file, directory.iterdir()):
        file.read_bytes()


def _read_or_rebuild(data: Prepared, read: Callable[[Builder], T], originals: Originals) -> T:
    """Builds a new data set, reads it, and only then replaces the damaged or missing one. Call it under the lock."""
    with contextlib.suppress(DamagedError):
        return _read_undamaged(data, read)  # another process may have built it in the meantime
    new = dataclasses.replace(data, directory=data.directory / "new")
    try:
        found = _read_undamaged(new, read)  # a killed process may have built it completely
    except DamagedError:
        if new.directory.exists():
            shutil.rmtree(new.directory)
        _build(new, originals)
        found = _read_undamaged(new, read)
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
    """Holds a file lock during the block. The system releases it if the process is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{task}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(data: Prepared, originals: Originals) -> None:
    """Builds a data set. tensorflow-datasets writes to a temporary directory and renames it at the end."""
    tfds.disable_progress_bar()
    # Nothing is downloaded, but the library prints, and creates a download directory, by default in the home directory.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        manual = pathlib.Path(scratch) / "originals"
        manual.mkdir()
        originals(manual)
        data.make_builder().download_and_prepare(
            download_dir=pathlib.Path(scratch) / "downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=manual),
        )
