"""The lock that lets one process at a time work in a directory."""

import contextlib
import errno
import fcntl
import os
import pathlib
import time

from mft_jax.errors import UserError
from mft_jax.files import file_error, make_directory, remove_empty

LOCK_FILE = "run.lock"
# A refusal is certain only after a while: the holder may not have written its pid yet, and `is_held` of another process
# holds the lock for an instant.
_ATTEMPTS, _PAUSE = 25, 0.02  # seconds


class InUse(UserError):
    """Another process works in the directory."""


class DirectoryLock:
    """A lock on DIRECTORY/run.lock, which contains the pid of its holder. The end of the process frees it."""

    def __init__(self, directory: pathlib.Path):
        self.directory, self.file = directory, directory / LOCK_FILE
        self._descriptor: int | None = None
        self._made: list[pathlib.Path] = []

    @property
    def is_mine(self) -> bool:
        return self._descriptor is not None

    def take(self) -> None:
        """Takes the lock, and makes the directory if there is none; without effect if it is this object's already.

        Raises InUse, which names the process that has it, this one included, and UserError when the file cannot be
        written; a directory that was made for it is then gone again.
        """
        if self.is_mine:
            return
        for _ in range(_ATTEMPTS):
            if self._try():
                return
            time.sleep(_PAUSE)
        if not self.directory.is_dir():  # it never came into being, so no other process has discarded it either
            error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise file_error("written", self.file, error) from None
        raise InUse(
            f"{self.directory} is in use by the process with pid {self._holder() or 'unknown'}: wait for it, stop it, or "
            "give another directory."
        )

    def release(self, *, discard: bool = False) -> None:
        """Lets others in. `discard` removes the lock's file and the directories that `take` made, where they are empty."""
        if self._descriptor is None:
            return
        try:
            if discard:  # while the lock is held: whoever has opened the file meanwhile sees that it is gone
                with contextlib.suppress(OSError):
                    os.unlink(self.file)
                remove_empty(self._made)
        finally:
            os.close(self._descriptor)
            self._descriptor, self._made = None, []

    def is_held(self) -> bool:
        """Whether some process has the lock. Changes nothing."""
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

    def _try(self) -> bool:
        """Takes the lock if it is free and its file stays in place."""
        try:
            self._made += make_directory(self.directory)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return False  # another process has just discarded the directory
        except OSError as error:
            remove_empty(self._made)
            raise file_error("written", self.file, error) from error
        if not self._lock(descriptor):
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

    def _lock(self, descriptor: int) -> bool:
        """Whether the file could be locked, and is still the one at the path: a lock on a removed file is of no use."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError as error:
            os.close(descriptor)
            raise file_error("locked", self.file, error) from error

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            return self.file.read_text(encoding="utf-8", errors="replace").strip()[:20]
        return ""
