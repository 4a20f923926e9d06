"""Requests to Google Cloud Storage, with Google's client, and their errors as one sentence each.

Every request that fails for a reason that may pass (429, 5xx, a lost connection) is repeated, with growing pauses, for
RETRY_SECONDS. An upload carries its length and its checksum, and an object appears only when both are right. The
packages are those of the extra `gcs`, and are imported only when a path in a bucket is used.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal

from mft_jax.errors import UserError

if TYPE_CHECKING:
    from google.cloud import storage

RETRY_SECONDS = 120.0
RETRY_DELAYS = {"initial": 0.5, "maximum": 16.0, "multiplier": 2.0}  # in seconds
TIMEOUT = 60.0  # seconds without an answer after which a request counts as failed

Doing = Literal["read", "listed", "written", "deleted"]
_PERMISSIONS = {
    "read": "storage.objects.get",
    "listed": "storage.objects.list",
    "written": "storage.objects.create (and .delete, to replace an object)",
    "deleted": "storage.objects.delete",
}
_CREDENTIALS = (
    "run `gcloud auth application-default login`, or give the machine a service account that may use the bucket"
)


@functools.cache
def prepare() -> None:
    """Sets up the clients of Orbax, on each host. Raises UserError if the packages of the extra are missing."""
    missing = [name for name in ("google.cloud.storage", "gcsfs") if not _is_installed(name)]
    if missing:
        raise UserError(f"gs:// needs the package {missing[0]}, which is not installed: pip install 'mft_jax[gcs]'.")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator.startswith("http"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)  # for the arrays of checkpoints
    # Orbax lists directories through gcsfs. It must not ask for permissions on the bucket that a run does not need, and
    # must see at once what this module has written or deleted.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    from fsspec.config import conf

    conf.setdefault("gs", {}).setdefault("use_listings_cache", False)


@functools.cache
def client() -> "storage.Client":
    """Google's client, with the default credentials, or for the emulator that STORAGE_EMULATOR_HOST names.

    Raises UserError if there are no credentials, and as `prepare` does.
    """
    prepare()
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage

    try:
        return storage.Client(project=None)
    except GoogleAuthError as error:
        raise UserError(f"gs:// needs credentials of Google Cloud ({_first_line(error)}): {_CREDENTIALS}.") from error


def retry() -> Any:
    """The policy by which failed requests are repeated."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(**RETRY_DELAYS)


def download(blob: "storage.Blob") -> bytes | None:
    """The content of an object; None if it does not exist. Also sets `blob.generation`."""
    from google.api_core.exceptions import NotFound

    try:
        return blob.download_as_bytes(checksum="crc32c", retry=retry(), timeout=TIMEOUT)
    except NotFound:
        return None


def upload(blob: "storage.Blob", data: bytes, **condition: int) -> None:
    """Writes an object. `condition` is passed to `Blob.upload_from_string`, for example if_generation_match."""
    blob.cache_control = "no-store"  # an object of a public bucket could otherwise be read back an hour old
    blob.upload_from_string(
        data, "application/octet-stream", checksum="crc32c", retry=retry(), timeout=TIMEOUT, **condition
    )


@contextlib.contextmanager
def explained(doing: Doing, path: pathlib.Path | str) -> Generator[None]:
    """Raises errors of the client in its block as a UserError: path, reason, and remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of the client, of the credentials, and of the connection
        sentence = explain(doing, path, error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def explain(doing: Doing, path: pathlib.Path | str, error: BaseException) -> str | None:
    """The sentence for an error of one of the clients (Google's, gcsfs, tensorstore); None for any other error.

    None also for an object that does not exist, which callers that read know how to name.
    """
    bucket, code = bucket_of(path), _status(error)
    if code == 403:
        named = re.search(r"storage\.[a-z]+\.[a-zA-Z]+", str(error))
        permission = named[0] if named else _PERMISSIONS[doing]
        return (
            f"{path} cannot be {doing}: these credentials lack the permission {permission} on the bucket {bucket}: "
            "have the role roles/storage.objectAdmin on it granted to them, or give another bucket."
        )
    if code == 404 and doing == "read":
        return None
    if code == 404:
        return (
            f"{path} cannot be {doing}: there is no bucket {bucket}: create it with `gcloud storage buckets create "
            f"gs://{bucket}`, or give another."
        )
    if code == 401 or _is_of(error, "google.auth"):
        return f"{path} cannot be {doing}: the credentials of Google Cloud are refused or missing: {_CREDENTIALS}."
    if code is not None or _is_of(error, "google.api_core", "requests", "urllib3", "google.resumable_media"):
        reason = f"{code}, {_first_line(error)}" if code else _first_line(error)
        return (
            f"{path} cannot be {doing} ({reason}), although the request was repeated for {RETRY_SECONDS:.0f} seconds: "
            "check the network and the bucket, and start again."
        )
    return None


def bucket_of(path: pathlib.Path | str) -> str:
    """The name of the bucket in a path."""
    return str(path).removeprefix("gs://").split("/")[0]


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error; None if it has none. gcsfs and tensorstore may have it only in their text."""
    cause = getattr(error, "cause", None)  # of RetryError
    for own in (error, cause, error.__cause__):
        code = getattr(own, "code", None)
        if isinstance(code, int):
            return int(code)
    if str(error).startswith("Forbidden: "):
        return 403
    found = re.search(r"http_response_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def _is_of(error: BaseException, *packages: str) -> bool:
    names = [f"{kind.__module__}." for kind in type(error).__mro__]
    return any(name.startswith(f"{package}.") for name in names for package in packages)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False
