"""The lock that allows only one process at a time to work in a place of a bucket.

It is an object that names its holder. It is only ever written on the condition that it has not changed since it was
read (if-generation-match), so of two processes that try at once, one fails. The holder renews it every RENEW seconds.
A lock that another process has watched for LEASE seconds without a change belongs to a dead process, and is taken over.
To take the lock, no clock is compared with that of another machine.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING

from mft_jax import gcs
from mft_jax.errors import UserError
from mft_jax.runs.lock import LOCK_FILE, InUse

if TYPE_CHECKING:
    from google.cloud import storage

LEASE, RENEW, POLL = 30.0, 5.0, 1.0  # in seconds
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # on Linux it goes on while the machine sleeps
_FREE = b"{}\n"


class LockLost(UserError):
    """Another process has taken over the lock, because this one did not renew it in time."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The content of a lock that is held."""

    token: str  # different for each time that a lock is taken
    pid: int
    host: str
    machine: str  # the boot of the machine and the pid namespace that `pid` belongs to; "" if not known
    started: str  # when the process started, in the kernel's ticks; tells it from a later one with the same pid
    renewed: float  # seconds since 1970, for people, and for `is_held`

    @property
    def is_alive(self) -> bool | None:
        """Whether the process is alive; None if that cannot be found out here, as for one on another machine."""
        if not self.machine or self.machine != _machine():
            return None
        return _start_of(self.pid) == self.started

    def __str__(self) -> str:
        return f"the process with pid {self.pid} on {self.host}"


class BucketLock:
    """The lock in an object of a bucket, for the place `root`. A thread renews it while it is held."""

    def __init__(self, root: pathlib.Path, bucket: "storage.Bucket", key: str):
        """`key`: the name of the object in the bucket."""
        self._root, self._bucket, self._key = root, bucket, key
        self._token: str | None = None  # while this object holds the lock
        self._generation, self._renewed = 0, 0.0
        self._lost = ""
        self._mutex, self._stop = threading.Lock(), threading.Event()

    @property
    def is_mine(self) -> bool:
        """Whether this object holds the lock."""
        return self._token is not None

    def take(self) -> None:
        """Takes the lock. Does nothing if this object holds it. Waits at most about LEASE seconds for a dead holder.

        Raises InUse, which names the holder, if it is alive, and UserError if the object cannot be written.
        """
        if self.is_mine:
            return
        token, seen, since = uuid.uuid4().hex, None, _now()
        while True:
            generation, holder = self._read()
            if holder is not None and holder.is_alive is not False:
                if holder.is_alive or seen not in (None, generation):
                    raise InUse(f"{self._root} is in use by {holder}: wait for it, stop it, or give another directory.")
                if seen is None:
                    seen, since = generation, _now()
                if _now() - since < LEASE:
                    time.sleep(POLL)
                    continue
            if self._write(token, generation):
                break
            seen = generation  # another process was faster: if it holds the lock at the next look, it is alive
        self._token, self._lost, self._stop = token, "", threading.Event()
        threading.Thread(target=self._keep_renewing, args=(self._stop,), daemon=True, name="lock").start()

    def check(self) -> None:
        """Call it before each write. Raises LockLost if another process has taken over the lock of this object.

        Raises UserError if the lock has not been renewed in time, because the machine has slept, and cannot be renewed now.
        """
        if self.is_mine and not self._lost and _now() - self._renewed > LEASE:
            self._renew()
        if self._lost:
            raise LockLost(self._lost)

    def release(self, *, discard: bool) -> None:
        """Releases the lock. `discard`: also deletes its object. If that fails, the lock expires by itself."""
        if not self.is_mine:
            return
        self._stop.set()
        with self._mutex, contextlib.suppress(Exception):
            if not self._lost:
                blob = self._new_blob()
                gcs.upload(blob, _FREE, if_generation_match=self._generation)
                if discard:
                    blob.delete(if_generation_match=blob.generation, retry=gcs.retry())
        self._token = None

    def is_held(self) -> bool:
        """Whether some process holds the lock. Changes nothing.

        For a process on another machine, the time of its last renewal is compared with the clock of this machine.
        """
        _, holder = self._read()
        if holder is None or holder.is_alive is not None:
            return holder is not None and bool(holder.is_alive)
        return time.time() - holder.renewed < LEASE

    def _keep_renewing(self, stop: threading.Event) -> None:
        while not stop.wait(RENEW) and not self._lost:
            with contextlib.suppress(Exception):  # no network: it is tried again, and `check` says so if it lasts
                self._renew()

    def _renew(self) -> None:
        with self._mutex:
            if self._token is None or self._stop.is_set() or self._write(self._token, self._generation):
                return
            _, holder = self._read()
            self._lost = (
                f"{self._root} was taken over by {holder or 'another process'}, because this process did not renew "
                f"its lock for {LEASE:.0f} seconds: this process stops, and what it has written stays. Run the same command "
                "again when the other process has ended."
            )

    def _read(self) -> tuple[int, Holder | None]:
        """(generation of the object, its holder): (0, None) without an object, (generation, None) if nobody holds it."""
        blob = self._new_blob()
        with gcs.explained("read", self._path):
            data = gcs.download(blob)
        if data is None:
            return 0, None
        try:
            return blob.generation, Holder(**json.loads(data))
        except (ValueError, TypeError):
            return blob.generation, None

    def _write(self, token: str, generation: int) -> bool:
        """Writes the lock if its object still has this generation. Returns whether it is this object's now."""
        from google.api_core.exceptions import PreconditionFailed

        blob, before = self._new_blob(), _now()
        holder = Holder(token, os.getpid(), socket.gethostname(), _machine(), _start_of(os.getpid()) or "", time.time())
        content = (json.dumps(dataclasses.asdict(holder)) + "\n").encode()
        with gcs.explained("written", self._path):
            try:
                gcs.upload(blob, content, if_generation_match=generation)
                written = blob.generation
            except PreconditionFailed:
                # Also raised if a request succeeded, but its answer was lost and it was repeated: the lock is then this
                # object's after all.
                written, found = self._read()
                if found is None or found.token != token:
                    return False
        self._generation, self._renewed = written, before
        return True

    @property
    def _path(self) -> pathlib.Path:
        return self._root / LOCK_FILE

    def _new_blob(self) -> "storage.Blob":
        """One for each request, because a blob keeps the generation that it has seen, and two threads use the lock."""
        return self._bucket.blob(self._key)


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _machine() -> str:
    """Identifies the boot of this machine and the pid namespace of this process; "" where Linux's /proc is missing."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None if it has ended."""
    try:
        state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError, ValueError):
        return None
    return None if state in "ZX" else fields[18]
