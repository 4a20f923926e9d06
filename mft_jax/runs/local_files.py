"""The files of a store in a local directory."""

import os
import pathlib
import shutil

from mft_jax.errors import UserError
from mft_jax.files import (
    atomic_write,
    check_name,
    file_error,
    is_temporary,
    make_directory,
    sync_directory,
)
from mft_jax.runs.lock import LOCK_FILE, DirectoryLock


class LocalFiles:
    """See `mft_jax.runs.store.Files`. `hold` creates the directory."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self._lock = DirectoryLock(root)

    def path(self, name: str) -> pathlib.Path:
        return self.root / check_name(name)

    def exists(self, name: str) -> bool:
        try:
            os.stat(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise file_error("read", self.path(name), error) from error
        return True

    def is_file(self, name: str) -> bool:
        return os.path.isfile(self.path(name))

    def read(self, name: str) -> bytes:
        try:
            return self.path(name).read_bytes()
        except OSError as error:
            raise file_error("read", self.path(name), error) from error

    def read_if_exists(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise file_error("read", self.path(name), error) from error

    def write(self, name: str, data: bytes) -> None:
        atomic_write(self.path(name), data)

    def names(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        try:
            entries = os.listdir(self.path(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise file_error("read", self.path(folder), error) from error
        return sorted(prefix + entry for entry in entries if not is_temporary(entry))

    def occupants(self) -> list[str]:
        if not os.path.exists(self.root):
            return []
        try:
            return os.listdir(self.root)
        except NotADirectoryError:
            raise UserError(f"{self.root} is a file: give a directory as --run-dir.") from None
        except OSError as error:
            raise file_error("read", self.root, error) from error

    def delete(self, name: str) -> None:
        path = self.path(name)
        try:
            _remove(path)
            sync_directory(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise file_error("written", path, error) from error

    def move(self, name: str, to: str) -> None:
        source, target = self.path(name), self.path(to)
        try:
            make_directory(target.parent)
            os.rename(source, target)
            sync_directory(target.parent)
            sync_directory(source.parent)
        except OSError as error:
            raise file_error("written", target, error) from error

    def hold(self) -> None:
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

    def release(self, *, discard: bool) -> None:
        self._lock.release(discard=discard)

    @property
    def is_mine(self) -> bool:
        return self._lock.is_mine

    def is_held(self) -> bool:
        return self._lock.is_held()

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
