"""Data sets in a bucket, gs://BUCKET/PATH: files are read there; folders are copied to the cache directory first."""

import concurrent.futures
import hashlib
import os
import pathlib
import shutil
import tempfile
from typing import TYPE_CHECKING

from mft_jax import gcs
from mft_jax.errors import UserError
from mft_jax.files import check_name, check_space

if TYPE_CHECKING:
    from google.cloud import storage

DOWNLOADS = 8  # at the same time; MATH has 12,500 small files, and the client keeps 10 connections


def is_in_bucket(path: str | pathlib.Path) -> bool:
    return str(path).startswith("gs://")


def read(url: str) -> bytes | None:
    """The content of an object; None if it does not exist. Raises UserError if it cannot be read."""
    bucket, key = _split(url)
    with gcs.explained("read", url):
        return gcs.download(gcs.client().bucket(bucket).blob(key)) if key else None


def copy_folder(url: str, cache: pathlib.Path) -> pathlib.Path:
    """A directory in `cache` with a copy of every object of a folder, which is copied again only if an object has changed.

    Raises UserError if the folder has no objects, or if it cannot be read or stored.
    """
    bucket, key = _split(url)
    prefix = f"{key.rstrip('/')}/".lstrip("/")
    with gcs.explained("listed", url):
        blobs = list(gcs.client().list_blobs(bucket, prefix=prefix, retry=gcs.retry()))
    # Some tools make objects that stand for folders.
    by_name = {name: blob for blob in blobs if (name := blob.name.removeprefix(prefix)) and not name.endswith("/")}
    if not by_name:
        raise UserError(f"{url} has no objects: give a folder with the files of the data set.")
    for name in by_name:
        _check_path(url, name)
    versions = "\n".join(f"{url} {name} {blob.generation}" for name, blob in sorted(by_name.items()))
    directory = cache / "copies" / hashlib.sha256(versions.encode()).hexdigest()[:16]
    if directory.is_dir():
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        check_space(directory.parent, 1 + sum(blob.size for blob in by_name.values()))
        new = pathlib.Path(tempfile.mkdtemp(prefix="new-", dir=directory.parent))
        try:
            _download_all(url, by_name, new)
            if not directory.is_dir():  # another process may have copied it in the meantime
                os.replace(new, directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{url} cannot be copied to {directory.parent} ({error.strerror}): make room there, or set task.cache_dir to "
            "another directory."
        ) from error
    return directory


def _download_all(url: str, blobs: dict[str, "storage.Blob"], directory: pathlib.Path) -> None:
    def download(name: str) -> None:
        path = directory / name
        with gcs.explained("read", f"{url.rstrip('/')}/{name}"):
            data = gcs.download(blobs[name])
        if data is None:
            raise UserError(f"{url.rstrip('/')}/{name} was deleted while the folder was copied: start again.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with concurrent.futures.ThreadPoolExecutor(DOWNLOADS) as pool:
        futures = [pool.submit(download, name) for name in blobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check_path(url: str, name: str) -> None:
    """Raises UserError if the name of an object is not the relative path of a file."""
    try:
        check_name(name)
    except ValueError as error:
        raise UserError(f"{url} has an object named {name!r}, which cannot be a file: rename it.") from error


def _split(url: str) -> tuple[str, str]:
    """(bucket, the rest) of a gs:// URL."""
    bucket, _, key = url.removeprefix("gs://").partition("/")
    if not bucket:
        raise UserError(f"{url} names no bucket: give a path such as gs://my-bucket/data.")
    return bucket, key
