"""Writing files so that a kill at any instant leaves the old content or the new, never half of it.

What the operating system refuses (a full disk, a directory that is read-only) becomes a UserError that names the file.
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
    """The sentence for a user: which file, why, and the remedy."""
    remedy = _REMEDIES.get(error.errno or 0, "check that disk and start again")
    return UserError(f"{path} cannot be {doing} ({error.strerror or error}): {remedy}.")


def atomic_write(path: pathlib.Path, data: bytes | str) -> None:
    """Replaces `path` by a file that holds `data` (text as UTF-8), durable on return; parent directories are made.

    Raises UserError when it cannot be written; the old content then stays. The temporary name is fixed, so that a
    killed writer leaves at most one stray file, which the next write reuses.
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
    """A directory to fill, which becomes `path`, whole and durable, when the block ends, or vanishes with its error.

    Raises UserError when something is at `path` already, other than an empty directory, when it cannot be written, and
    when a file that the block reads from elsewhere cannot be read. A killed writer leaves one stray sibling, whose name
    is fixed, which the next one clears away.
    """
    path = pathlib.Path(os.path.abspath(path))
    temporary = temporary_path(path)
    try:
        _refuse_occupied(path)
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
            elsewhere = _named_elsewhere(error, temporary)
            raise file_error("read" if elsewhere else "written", elsewhere or path, error) from error
        raise


def _refuse_occupied(path: pathlib.Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty: give a new directory.")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: give a new directory.")


def _named_elsewhere(error: OSError, directory: pathlib.Path) -> pathlib.Path | None:
    """The file that an error names, where it is neither in `directory` nor above it."""
    if not isinstance(error.filename, str | os.PathLike):
        return None  # a write to an open file, above all
    named = pathlib.Path(os.path.abspath(error.filename))
    return None if named.is_relative_to(directory) or directory.is_relative_to(named) else named


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """Where `path` is while it is being written."""
    return path.with_name(f".{path.name}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file or directory of this name is what a killed writer left."""
    return name.startswith(".") and name.endswith(".tmp")


def make_directory(path: pathlib.Path) -> list[pathlib.Path]:
    """Makes `path` and its parents, durably. Returns those that were not there before, the outermost first.

    An OSError leaves none of them behind.
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
    """Removes those of `directories`, the outermost first, that are empty; the others stay, without an error."""
    for directory in reversed(directories):
        with contextlib.suppress(OSError):
            directory.rmdir()


def check_space(directory: pathlib.Path, size: int) -> None:
    """Raises OSError unless a file of `size` bytes can be written in `directory`. Nothing stays there, even after a kill."""
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, size)


def sync_directory(path: pathlib.Path) -> None:
    """Makes the names in `path` durable: without it a machine that loses power can forget a file that was synced."""
    _sync(path)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
