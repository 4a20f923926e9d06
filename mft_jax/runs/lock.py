"""The lock that allows only one process at a time to work in a directory."""

import contextlib
import errno
import fcntl
import os
import pathlib
import time

from mft_jax.errors import UserError
from mft_jax.files import file_error, make_directory, remove_empty

LOCK_FILE = "run.lock"
# `take` tries several times, because another process holds the lock for an instant in `is_held`, and because the holder
# may not have written its pid yet.
_ATTEMPTS, _PAUSE = 25, 0.02  # the pause is in seconds


class InUse(UserError):
    """Another process holds the lock of the directory."""


class DirectoryLock:
    """A lock on a file, by default DIRECTORY/run.lock, which contains the pid of its holder.

    It is released when the process ends. `take` makes at most `attempts` attempts, 50 in a second.
    """

    def __init__(self, directory: pathlib.Path, name: str = LOCK_FILE, attempts: int = _ATTEMPTS):
        self.directory, self.file, self._attempts = directory, directory / name, attempts
        self._descriptor: int | None = None
        self._made: list[pathlib.Path] = []

    @property
    def is_mine(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def take(self) -> None:
        """Takes the lock, and creates the directory if it is missing. Does nothing if this object holds the lock.

        Raises InUse, which names the process, if another process or another object in this process holds the lock.
        Raises UserError if the file cannot be written; a directory created for it is removed again.
        """
        if self.is_mine:
            return
        for _ in range(self._attempts):
            if self._try_take():
                return
            time.sleep(_PAUSE)
        if not self.directory.is_dir():  # it could not be created, so no other process can hold the lock
            error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise file_error("written", self.file, error) from None
        raise InUse(
            f"{self.directory} is in use by the process with pid {self._read_holder() or 'unknown'}: wait for it, stop "
            "it, or give another directory."
        )

    def release(self, *, discard: bool = False) -> None:
        """Releases the lock. `discard`: also removes its file, and empty directories that `take` created."""
        if self._descriptor is None:
            return
        try:
            if discard:  # before unlocking, so that a process that has opened the file notices its removal
                with contextlib.suppress(OSError):
                    os.unlink(self.file)
                remove_empty(self._made)
        finally:
            os.close(self._descriptor)
            self._descriptor, self._made = None, []

    def is_held(self) -> bool:
        """Whether some process holds the lock. Changes nothing."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(descriptor)
        return False

    def _try_take(self) -> bool:
        """Takes the lock if it is free, and returns whether it did."""
        try:
            self._made += make_directory(self.directory)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return False  # another process has just removed the directory
        except OSError as error:
            remove_empty(self._made)
            raise file_error("written", self.file, error) from error
        if not self._lock_file(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release(discard=True)
            raise file_error("written", self.file, error) from error
        return True

    def _lock_file(self, descriptor: int) -> bool:
        """Locks the open file. Returns whether it is locked and still the file at the path.

        A lock on a removed file does not keep other processes out.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError as error:
            os.close(descriptor)
            raise file_error("locked", self.file, error) from error

    def _read_holder(self) -> str:
        """The pid in the file; "" if it cannot be read."""
        with contextlib.suppress(OSError):
            return self.file.read_text(encoding="utf-8", errors="replace").strip()[:20]
        return ""
