"""Writing files so that a kill at any instant leaves the old content or the new, never half of it."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Generator

from mft_jax.errors import UserError


def atomic_write(path: pathlib.Path, text: str) -> None:
    """Replaces `path` by a file that holds `text`, durable on return; parent directories are made.

    The temporary name is fixed, so that a killed writer leaves at most one stray file, which the next write reuses.
    """
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Generator[pathlib.Path]:
    """A directory to fill, which becomes `path`, whole and durable, when the block ends, or vanishes with its error.

    Raises UserError when something is at `path` already, other than an empty directory, and when it cannot be written.
    A killed writer leaves one stray sibling, whose name is fixed, which the next one clears away.
    """
    path = pathlib.Path(os.path.abspath(path))
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty: give a new directory.")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: give a new directory.")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
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
            raise UserError(f"{path} cannot be written ({error}): make room, or give another directory.") from error
        raise


def make_directory(path: pathlib.Path) -> None:
    """Makes `path` and its parents, durably."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: pathlib.Path) -> None:
    """Makes the names in `path` durable: without it a machine that loses power can forget a file that was synced."""
    _sync(path)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
