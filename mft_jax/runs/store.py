"""The store of a run: every read and write of its files, Orbax's own excepted, goes through here.

Files are whole, immutable objects, named by relative POSIX paths ("iteration_1/debate/train.jsonl"): written at once,
replaced at once, never appended to or truncated, by the one process that holds the store. Object stores such as gs://
offer the same. Whatever the operating system refuses is a UserError that names the file.
"""

import os
import pathlib
import shutil

from mft_jax.errors import UserError
from mft_jax.files import atomic_write, file_error, is_temporary, make_directory, sync_directory
from mft_jax.runs.lock import LOCK_FILE, DirectoryLock

DAMAGED = "damaged"  # the folder for what `set_aside` moves away


class Damage(Exception):
    """Why something is not what was written. The functions that read it set it aside, or raise DamagedFile."""


class DamagedFile(UserError):
    """Something is not what was written, told to whoever only reads it."""


class Store:
    """The files below a local directory, which `hold` makes."""

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root)
        self._lock = DirectoryLock(self.root)

    def path(self, name: str) -> pathlib.Path:
        """Where an object is on disk; "" is the store itself. Raises ValueError for a name that leads out of it."""
        if name and any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{name!r} is not the name of an object: expected a relative path such as 'run.json'")
        return self.root / name

    def exists(self, name: str) -> bool:
        """Whether there is a file or directory of this name."""
        try:
            os.stat(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise file_error("read", self.path(name), error) from error
        return True

    def read(self, name: str) -> bytes:
        """The content of an object. Raises UserError when there is none, and when it cannot be read."""
        try:
            return self.path(name).read_bytes()
        except OSError as error:
            raise file_error("read", self.path(name), error) from error

    def read_if_exists(self, name: str) -> bytes | None:
        """The content of an object, or None when there is none. Raises UserError when it cannot be read."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise file_error("read", self.path(name), error) from error

    def write(self, name: str, data: bytes) -> None:
        """Replaces an object, whole and durable on return. Raises UserError; the old content then stays."""
        atomic_write(self.path(name), data)

    def names(self, folder: str = "") -> list[str]:
        """The full names of what a folder contains, directories included, sorted; none when there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        try:
            entries = os.listdir(self.path(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise file_error("read", self.path(folder), error) from error
        return sorted(prefix + entry for entry in entries if not is_temporary(entry))

    def delete(self, name: str) -> None:
        """Removes an object, or a directory with all that it contains; without effect when there is none."""
        path = self.path(name)
        try:
            _remove(path)
            sync_directory(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise file_error("written", path, error) from error

    def set_aside(self, name: str) -> str:
        """Moves a damaged file or directory to "damaged/NAME", with a number if that is taken; returns the new name."""
        aside, number = f"{DAMAGED}/{name}", 1
        while self.exists(aside):
            number += 1
            aside = f"{DAMAGED}/{name}.{number}"
        source, target = self.path(name), self.path(aside)
        try:
            make_directory(target.parent)
            os.rename(source, target)
            sync_directory(target.parent)
            sync_directory(source.parent)
        except OSError as error:
            raise file_error("written", target, error) from error
        return aside

    def hold(self) -> None:
        """Takes the store for this process, before anything is written, and clears away what a killed writer left.

        Raises `InUse`, which names the process that has it, and UserError when nothing can be written there.
        """
        if self.is_mine:
            return
        self._lock.take()
        try:
            self._clear()
        except BaseException as error:
            self._lock.release(discard=True)
            if isinstance(error, OSError):
                raise file_error("written", self.root, error) from error
            raise

    def release(self, *, discard: bool = False) -> None:
        """Lets other processes in. `discard` also removes the lock's file and the directories that `hold` made."""
        self._lock.release(discard=discard)

    @property
    def is_mine(self) -> bool:
        """Whether this object holds the store."""
        return self._lock.is_mine

    def is_held(self) -> bool:
        """Whether some process holds the store. Changes nothing."""
        return self._lock.is_held()

    def _clear(self) -> None:
        """Removes half-written files, except in stores inside this one, which other processes may hold."""
        for folder, directories, files in os.walk(self.root):
            if pathlib.Path(folder) != self.root and LOCK_FILE in files:
                directories.clear()
                continue
            for entry in filter(is_temporary, (*directories, *files)):
                _remove(pathlib.Path(folder, entry))
            directories[:] = [entry for entry in directories if not is_temporary(entry)]


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)
