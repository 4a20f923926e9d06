"""Writing files so that a kill at any instant leaves the old content or the new, never half of it."""

import os
import pathlib


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


def make_directory(path: pathlib.Path) -> None:
    """Makes `path` and its parents, durably."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: pathlib.Path) -> None:
    """Makes the names in `path` durable: without it a machine that loses power can forget a file that was synced."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
