"""The files of a store in a bucket of Google Cloud Storage, one object for each.

A folder is only a common beginning of names: it exists while it has objects, and is moved and deleted one object after
the other.
"""

import functools
import pathlib
from typing import TYPE_CHECKING

from mft_jax import gcs
from mft_jax.errors import UserError
from mft_jax.files import check_name
from mft_jax.runs.bucket_lock import BucketLock
from mft_jax.runs.lock import LOCK_FILE

if TYPE_CHECKING:
    from google.cloud import storage


class BucketFiles:
    """See `mft_jax.runs.store.Files`."""

    def __init__(self, root: pathlib.Path):
        gcs.prepare()
        self.root = root
        _, _, self._prefix = str(root).removeprefix("gs://").partition("/")

    def path(self, name: str) -> pathlib.Path:
        return self.root / check_name(name) if name else self.root

    def exists(self, name: str) -> bool:
        return self.is_file(name) or bool(self._list(f"{self._key(name)}/".lstrip("/"), most=1))

    def is_file(self, name: str) -> bool:
        # Of the names that begin with `key`, `key` itself is the first. Unlike a request for the object, a list fails if
        # there is no such bucket.
        key = self._key(name)
        return bool(key) and self._list(key, most=1) == [key]

    def read(self, name: str) -> bytes:
        data = self.read_if_exists(name)
        if data is None:
            raise UserError(f"{self.path(name)} cannot be read (No such object): give the path of one that exists.")
        return data

    def read_if_exists(self, name: str) -> bytes | None:
        with gcs.explained("read", self.path(name)):
            return gcs.download(self._blob(self._key(name)))

    def write(self, name: str, data: bytes) -> None:
        self._lock.check()
        with gcs.explained("written", self.path(name)):
            gcs.upload(self._blob(self._key(name)), data)

    def names(self, folder: str) -> list[str]:
        start = f"{self._key(folder)}/".lstrip("/")
        prefix = f"{folder}/" if folder else ""
        with gcs.explained("listed", self.path(folder)):
            found = gcs.client().list_blobs(self._bucket, prefix=start, delimiter="/", retry=gcs.retry())
            keys = [blob.name for blob in found if blob.name != start]  # some tools make objects that stand for folders
            return sorted(prefix + key.removeprefix(start).rstrip("/") for key in (*keys, *found.prefixes))

    def occupants(self) -> list[str]:
        return self.names("")

    def delete(self, name: str) -> None:
        self._lock.check()
        for key in self._keys_of(name):
            self._delete_one(key)

    def move(self, name: str, to: str) -> None:
        """Copies all objects before it deletes the first one, so that none is lost if the process is killed."""
        self._lock.check()
        source, target = self._key(name), self._key(to)
        keys = self._keys_of(name)
        if not keys:
            raise UserError(f"{self.path(name)} cannot be moved to {self.path(to)} (no such object): start again.")
        with gcs.explained("written", self.path(to)):
            for key in keys:
                self._copy(self._blob(key), self._blob(target + key.removeprefix(source)))
        for key in keys:
            self._delete_one(key)

    def hold(self) -> None:
        self._lock.take()

    def release(self, *, discard: bool) -> None:
        self._lock.release(discard=discard)

    @property
    def is_mine(self) -> bool:
        return self._lock.is_mine

    def is_held(self) -> bool:
        return self._lock.is_held()

    @functools.cached_property
    def _lock(self) -> BucketLock:
        return BucketLock(self.root, self._bucket, self._key(LOCK_FILE))

    @functools.cached_property
    def _bucket(self) -> "storage.Bucket":
        return gcs.client().bucket(gcs.bucket_of(self.root))

    def _key(self, name: str) -> str:
        """The name of an object in the bucket."""
        return "/".join(part for part in (self._prefix, check_name(name)) if part)

    def _blob(self, key: str) -> "storage.Blob":
        return self._bucket.blob(key)

    def _keys_of(self, name: str) -> list[str]:
        """The keys of an object, or of all objects in a folder."""
        key = self._key(name)
        return [key] * self.is_file(name) + self._list(f"{key}/".lstrip("/"))

    def _list(self, prefix: str, most: int | None = None) -> list[str]:
        """The keys that begin with `prefix`, in order; at most `most`."""
        with gcs.explained("listed", self.root):
            found = gcs.client().list_blobs(self._bucket, prefix=prefix, max_results=most, retry=gcs.retry())
            return [blob.name for blob in found]

    def _copy(self, source: "storage.Blob", target: "storage.Blob") -> None:
        token, _, _ = target.rewrite(source, retry=gcs.retry(), timeout=gcs.TIMEOUT)
        while token is not None:  # of a large object, one request copies a part
            token, _, _ = target.rewrite(source, token=token, retry=gcs.retry(), timeout=gcs.TIMEOUT)

    def _delete_one(self, key: str) -> None:
        from google.api_core.exceptions import NotFound

        with gcs.explained("deleted", self.root / key.removeprefix(self._prefix).lstrip("/")):
            try:
                self._blob(key).delete(retry=gcs.retry(), timeout=gcs.TIMEOUT)
            except NotFound:  # a repeated request finds what the first one has deleted
                return
