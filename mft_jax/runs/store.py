"""The store of a run, which reads and writes all its files except those of Orbax.

Files are immutable objects, named by relative POSIX paths ("iteration_1/debate/train.jsonl"). They are written and
replaced as a whole, and never appended to or truncated. Object stores such as gs:// offer the same operations. Only the
process that holds the store writes to it. Errors of the operating system are raised as a UserError that names the file.

In a run on several hosts, all hosts call the same methods in the same order. Host 0 holds the store, and every host gets
what host 0 reads.
"""

import os
import pathlib
import shutil

from mft_jax.errors import UserError
from mft_jax.files import atomic_write, file_error, is_temporary, make_directory, sync_directory
from mft_jax.parallel.hosts import decided, first_only
from mft_jax.runs.lock import LOCK_FILE, DirectoryLock

DAMAGED = "damaged"  # the folder that `set_aside` moves files to


class Damage(Exception):
    """The reason why a file is not as it was written. Callers move the file to damaged/ or raise DamagedFile."""


class DamagedFile(UserError):
    """A file is not as it was written, and the caller does not repair it."""


class Store:
    """The files in a local directory, which `hold` creates."""

    def __init__(self, root: str | pathlib.Path):
        self.root = pathlib.Path(root)
        self._lock = DirectoryLock(self.root)

    def path(self, name: str) -> pathlib.Path:
        """The path of an object on disk; "" is the root. Raises ValueError for a name that leads out of the store."""
        if name and any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{name!r} is not the name of an object: expected a relative path such as 'run.json'")
        return self.root / name

    @decided
    def exists(self, name: str) -> bool:
        """Whether a file or directory of this name exists."""
        try:
            os.stat(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise file_error("read", self.path(name), error) from error
        return True

    @decided
    def read(self, name: str) -> bytes:
        """The content of an object. Raises UserError if it does not exist or cannot be read."""
        try:
            return self.path(name).read_bytes()
        except OSError as error:
            raise file_error("read", self.path(name), error) from error

    @decided
    def read_if_exists(self, name: str) -> bytes | None:
        """The content of an object; None if it does not exist. Raises UserError if it cannot be read."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise file_error("read", self.path(name), error) from error

    @first_only
    def write(self, name: str, data: bytes) -> None:
        """Writes an object as a whole, durably. Raises UserError if that fails; the old content then stays."""
        atomic_write(self.path(name), data)

    @decided
    def names(self, folder: str = "") -> list[str]:
        """The full names of the files and directories in a folder, sorted; empty if the folder does not exist."""
        prefix = f"{folder}/" if folder else ""
        try:
            entries = os.listdir(self.path(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise file_error("read", self.path(folder), error) from error
        return sorted(prefix + entry for entry in entries if not is_temporary(entry))

    @first_only
    def delete(self, name: str) -> None:
        """Removes an object, or a directory with its contents. Does nothing if it does not exist."""
        path = self.path(name)
        try:
            _remove(path)
            sync_directory(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise file_error("written", path, error) from error

    @decided
    def set_aside(self, name: str) -> str:
        """Moves a damaged file or directory to damaged/, numbered if the name is taken there. Returns the new name."""
        aside = self._free_damaged_name(name)
        source, target = self.path(name), self.path(aside)
        try:
            make_directory(target.parent)
            os.rename(source, target)
            sync_directory(target.parent)
            sync_directory(source.parent)
        except OSError as error:
            raise file_error("written", target, error) from error
        return aside

    @decided
    def copy_aside(self, name: str) -> str:
        """Copies a damaged file to damaged/, so that it can be replaced in one step. Returns the name of the copy."""
        aside = self._free_damaged_name(name)
        self.write(aside, self.read(name))
        return aside

    @decided
    def hold(self) -> None:
        """Takes the store for this process, before it writes, and removes temporary files left by a killed process.

        Raises InUse if another process holds it; the error names its pid. Raises UserError if nothing can be written.
        """
        if self.is_mine:
            return
        self._lock.take()
        try:
            self._remove_temporary()
        except BaseException as error:
            self._lock.release(discard=True)
            if isinstance(error, OSError):
                raise file_error("written", self.root, error) from error
            raise

    @first_only
    def release(self, *, discard: bool = False) -> None:
        """Releases the store. `discard`: also removes the lock file, and empty directories that `hold` created."""
        self._lock.release(discard=discard)

    @property
    def is_mine(self) -> bool:
        """Whether this object holds the store; on several hosts, that of host 0."""
        return self._lock.is_mine

    @decided
    def is_held(self) -> bool:
        """Whether some process holds the store. Changes nothing."""
        return self._lock.is_held()

    def _free_damaged_name(self, name: str) -> str:
        """A name in damaged/ for this object that is not taken."""
        aside, number = f"{DAMAGED}/{name}", 1
        while self.exists(aside):
            number += 1
            aside = f"{DAMAGED}/{name}.{number}"
        return aside

    def _remove_temporary(self) -> None:
        """Removes temporary files, except in stores inside this one, which other processes may hold."""
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
