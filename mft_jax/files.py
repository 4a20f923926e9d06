"""Writes files and directories atomically: after a kill at any time, the old or the new content is there in full.

Errors of the operating system (a full disk, a read-only directory) are raised as a UserError that names the file.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Generator, Sequence
from typing import Literal

from mft_jax.errors import UserError

_REMEDIES = {
    errno.ENOSPC: "make room on that disk and start again",
    errno.EDQUOT: "make room on that disk and start again",
    errno.EROFS: "make it writable, or give another directory",
    errno.EACCES: "change its permissions, or give another directory",
    errno.EPERM: "change its permissions, or give another directory",
    errno.EEXIST: "move away what is in its place, or give another directory",
    errno.ENOTDIR: "move away what is in its place, or give another directory",
    errno.EISDIR: "move away what is in its place, or give another directory",
    errno.ENOENT: "give the path of a file that exists",
    errno.ENOLCK: "give a directory on a file system that supports locks",
    errno.EOPNOTSUPP: "give a directory on a file system that supports locks",
}


def file_error(doing: Literal["read", "written", "locked"], path: pathlib.Path, error: OSError) -> UserError:
    """The UserError for an error of the operating system: the file, the reason and the remedy."""
    remedy = _REMEDIES.get(error.errno or 0, "check that disk and start again")
    if error.errno == errno.ENOENT and doing != "read":
        remedy = "its directory cannot be created there; give another one"
    return UserError(f"{path} cannot be {doing} ({error.strerror or error}): {remedy}.")


def atomic_write(path: pathlib.Path, data: bytes | str) -> None:
    """Replaces the content of `path` by `data` (text as UTF-8), durably, and creates missing parent directories.

    Raises UserError if it cannot be written; the old content then stays. The name of the temporary file is fixed, so a
    killed process leaves at most one stray file, which the next write replaces.
    """
    temporary = temporary_path(path)
    try:
        make_directory(path.parent)
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise file_error("written", path, error) from error


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Generator[pathlib.Path]:
    """Yields a temporary directory to fill. At the end of the block it becomes `path`, durably. An error removes it.

    Raises UserError if `path` exists and is not an empty directory, if it cannot be written, or if a file that the
    block reads from elsewhere cannot be read. A killed process leaves one stray directory beside `path`. Its name is
    fixed, and the next call removes it.
    """
    path = pathlib.Path(os.path.abspath(path))
    temporary = temporary_path(path)
    try:
        _check_unoccupied(path)
        if temporary.exists():
            shutil.rmtree(temporary)
        make_directory(temporary)
        yield temporary
        for entry in [temporary, *temporary.rglob("*")]:
            _sync(entry)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            elsewhere = _file_elsewhere(error, temporary)
            raise file_error("read" if elsewhere else "written", elsewhere or path, error) from error
        raise


def _check_unoccupied(path: pathlib.Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty: give a new directory.")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: give a new directory.")


def _file_elsewhere(error: OSError, directory: pathlib.Path) -> pathlib.Path | None:
    """The file that an error names, or None if it is in `directory` or above it, or if the error names none."""
    if not isinstance(error.filename, str | os.PathLike):
        return None  # usual for a failed write to an open file
    named = pathlib.Path(os.path.abspath(error.filename))
    return None if named.is_relative_to(directory) or directory.is_relative_to(named) else named


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """The temporary path under which `path` is written."""
    return path.with_name(f".{path.name}.tmp")


def is_temporary(name: str) -> bool:
    """Whether this is the name of a temporary file or directory, which a killed process may have left behind."""
    return name.startswith(".") and name.endswith(".tmp")


def check_name(name: str) -> str:
    """Returns the name of an object of a store, or "". Raises ValueError if it leads out of the store."""
    if name and any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is not the name of an object: expected a relative path such as 'run.json'")
    return name


def make_directory(path: pathlib.Path) -> list[pathlib.Path]:
    """Creates `path` and its missing parents, durably. Returns the directories it created, the outermost first.

    If an OSError is raised, none of them is left behind.
    """
    missing = [directory for directory in (path, *path.parents) if not directory.is_dir()]
    made: list[pathlib.Path] = []
    try:
        for directory in reversed(missing):
            try:
                directory.mkdir()
            except FileExistsError:
                if not directory.is_dir():
                    raise
                continue  # another process was faster
            made.append(directory)
            sync_directory(directory.parent)
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(directories: Sequence[pathlib.Path]) -> None:
    """Removes the empty ones among `directories`, given outermost first. The others stay, without an error."""
    for directory in reversed(directories):
        with contextlib.suppress(OSError):
            directory.rmdir()


def check_space(directory: pathlib.Path, size: int) -> None:
    """Raises OSError if a file of `size` bytes does not fit in `directory`. Leaves no file, even after a kill."""
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, size)


def sync_directory(path: pathlib.Path) -> None:
    """Makes the entries of a directory durable. Without it, a power loss can undo the creation of a synced file."""
    _sync(path)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
