"""The store of a run, which reads and writes all its files except those of Orbax.

Files are objects, named by relative POSIX paths ("iteration_1/debate/train.jsonl"). They are written and replaced as a
whole, and never appended to or truncated. A store is a local directory, or a place in a bucket of Google Cloud Storage
("gs://BUCKET/PATH"). Only the process that holds the store writes to it. Errors of the operating system and of the
bucket are raised as a UserError that names the file.

In a run on several hosts, all hosts call the same methods in the same order. Host 0 holds the store, and every host gets
what host 0 reads.
"""

import pathlib
from typing import Protocol, cast

from mft_jax.errors import UserError
from mft_jax.parallel.hosts import decided, first_only
from mft_jax.runs.local_files import LocalFiles

BUCKET_SCHEME = "gs://"
DAMAGED = "damaged"  # the folder that `set_aside` moves files to


class Damage(Exception):
    """The reason why a file is not as it was written. Callers move the file to damaged/ or raise DamagedFile."""


class DamagedFile(UserError):
    """A file is not as it was written, and the caller does not repair it."""


class Files(Protocol):
    """Where the files of a store are. The methods are those of `Store`, on this host only."""

    root: pathlib.Path

    def path(self, name: str) -> pathlib.Path: ...
    def exists(self, name: str) -> bool: ...
    def is_file(self, name: str) -> bool: ...
    def read(self, name: str) -> bytes: ...
    def read_if_exists(self, name: str) -> bytes | None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def names(self, folder: str) -> list[str]: ...
    def occupants(self) -> list[str]: ...
    def delete(self, name: str) -> None: ...
    def move(self, name: str, to: str) -> None: ...
    def hold(self) -> None: ...
    def release(self, *, discard: bool) -> None: ...
    @property
    def is_mine(self) -> bool: ...
    def is_held(self) -> bool: ...


class Store:
    """The files in a local directory or in a bucket."""

    def __init__(self, root: str | pathlib.Path):
        """Reads and writes nothing. Raises UserError if `root` is a URL other than gs://BUCKET..."""
        self.root = root if isinstance(root, pathlib.Path) else to_path(root)
        self._files = _open_files(self.root)

    @property
    def is_local(self) -> bool:
        """Whether the files are in a local directory, where a directory can be renamed in one step."""
        return isinstance(self._files, LocalFiles)

    def check_local(self, purpose: str) -> None:
        """Raises UserError if the files are in a bucket. `purpose`: what needs a local directory, for the message."""
        if not self.is_local:
            raise UserError(f"{self.root} is in a bucket, but {purpose} needs a local directory: copy it to one.")

    def path(self, name: str) -> pathlib.Path:
        """The path of an object; "" is the root. Raises ValueError for a name that leads out of the store.

        In a bucket it has only the interface of a pathlib.Path.
        """
        return self._files.path(name)

    @decided
    def exists(self, name: str) -> bool:
        """Whether a file or directory of this name exists."""
        return self._files.exists(name)

    @decided
    def is_file(self, name: str) -> bool:
        """Whether a file of this name exists. A file in a local directory that cannot be read counts as missing."""
        return self._files.is_file(name)

    @decided
    def read(self, name: str) -> bytes:
        """The content of an object. Raises UserError if it does not exist or cannot be read."""
        return self._files.read(name)

    @decided
    def read_if_exists(self, name: str) -> bytes | None:
        """The content of an object; None if it does not exist. Raises UserError if it cannot be read."""
        return self._files.read_if_exists(name)

    @first_only
    def write(self, name: str, data: bytes) -> None:
        """Writes an object as a whole, durably. Raises UserError if that fails; the old content then stays."""
        self._files.write(name, data)

    @decided
    def names(self, folder: str = "") -> list[str]:
        """The full names of the files and directories in a folder, sorted; empty if the folder does not exist."""
        return self._files.names(folder)

    @decided
    def occupants(self) -> list[str]:
        """The names of all that is in the root, with temporary files. Raises UserError if the root is a file."""
        return self._files.occupants()

    @first_only
    def delete(self, name: str) -> None:
        """Removes an object, or a directory with its contents. Does nothing if it does not exist."""
        self._files.delete(name)

    @decided
    def set_aside(self, name: str) -> str:
        """Moves a damaged file or directory to damaged/, numbered if the name is taken there. Returns the new name."""
        aside = self._free_damaged_name(name)
        self._files.move(name, aside)
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
        self._files.hold()

    @first_only
    def release(self, *, discard: bool = False) -> None:
        """Releases the store. `discard`: also removes the lock file, and empty directories that `hold` created."""
        self._files.release(discard=discard)

    @property
    def is_mine(self) -> bool:
        """Whether this object holds the store. On several hosts, only host 0 can hold it."""
        return self._files.is_mine

    @decided
    def is_held(self) -> bool:
        """Whether some process holds the store. Changes nothing."""
        return self._files.is_held()

    def _free_damaged_name(self, name: str) -> str:
        """A name in damaged/ for this object that is not taken."""
        aside, number = f"{DAMAGED}/{name}", 1
        while self.exists(aside):
            number += 1
            aside = f"{DAMAGED}/{name}.{number}"
        return aside


def to_path(path: str | pathlib.Path) -> pathlib.Path:
    """A local path, with "~" expanded; for gs://BUCKET/PATH, an object with the interface of a pathlib.Path.

    Raises UserError for another URL, and for one without a bucket.
    """
    text = str(path)
    if not _is_utf8(text) or "\0" in text:
        raise UserError(f"The path {text!a} has zero bytes, or bytes that are not UTF-8: give another one.")
    if "://" not in text:
        return pathlib.Path(text).expanduser()
    if not text.startswith(BUCKET_SCHEME) or text.strip("/") == BUCKET_SCHEME.strip("/"):
        raise UserError(
            f"{text} is neither a local directory nor a place in a bucket: give a local path or gs://BUCKET/PATH as "
            "run_dir."
        )
    from etils import epath  # imported here, because it takes long

    return cast("pathlib.Path", epath.Path(text))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_path(path: str | pathlib.Path) -> bytes:
    """The content of a file. Raises OSError if it is local and cannot be read, and UserError if it is in a bucket."""
    path = path if isinstance(path, pathlib.Path) else to_path(path)
    return path.read_bytes() if isinstance(path, pathlib.Path) else Store(path.parent).read(path.name)


def _open_files(root: pathlib.Path) -> Files:
    if isinstance(root, pathlib.Path):
        return LocalFiles(root)
    from mft_jax.runs.bucket import BucketFiles

    return BucketFiles(root)
