"""What can go wrong with a bucket: lost requests, torn uploads, permissions, and a lock whose holder has died."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mft_jax import gcs
from mft_jax.errors import UserError
from mft_jax.runs import bucket_lock
from mft_jax.runs.bucket_lock import LockLost
from mft_jax.runs.lock import InUse
from mft_jax.runs.store import Store
from tests.runs.object_store import Fault

pytestmark = pytest.mark.gcs
EVERY = 1_000_000


@pytest.mark.parametrize(
    "fault", [Fault("", 503, 3), Fault("", 429, 3), Fault("", 0, 3), Fault("", 503, 1, after=True)]
)
def test_requests_that_fail_for_a_moment_are_repeated(bucket, object_store, fault):
    acts = {
        "write": (lambda store: store.write("a/new", b"1"), ["a/new", "a/old"]),
        "read": (lambda store: store.read("a/old"), ["a/old"]),
        "list": (lambda store: store.names("a"), ["a/old"]),
        "move": (lambda store: store.set_aside("a/old"), []),
        "delete": (lambda store: store.delete("a/old"), []),
        "lock": (lambda store: store.hold(), ["a/old"]),
    }
    for name, (act, left) in acts.items():
        store = Store(f"{bucket}/{name}")
        store.write("a/old", b"old")
        object_store.faults = [dataclasses.replace(fault)]
        act(store)
        assert object_store.faults[0].times == 0
        assert store.names("a") == left
        store.release()
    assert Store(f"{bucket}/write").read("a/new") == b"1"
    assert Store(f"{bucket}/move").read("damaged/a/old") == b"old"


@pytest.mark.parametrize("size", [100, 9_000_000])
def test_a_torn_upload_never_becomes_an_object(bucket, object_store, monkeypatch, size):
    monkeypatch.setattr(gcs, "RETRY_SECONDS", 0.05)
    store = Store(bucket)
    store.write("a", b"old")
    object_store.faults = [Fault("^(POST|PUT) /upload", 0, EVERY)]
    for name in ("a", "b"):
        with pytest.raises(UserError, match=f"{bucket}/{name} cannot be written .*although the request was repeated"):
            store.write(name, bytes(size))
    object_store.faults = []
    assert (store.names(), store.read("a")) == (["a"], b"old")


@pytest.mark.parametrize(
    ("act", "method", "permission"),
    [
        (lambda store: store.write("a", b""), "POST", "storage.objects.create"),
        (lambda store: store.read("a"), "GET", "storage.objects.get"),
        (lambda store: store.names(), "GET", "storage.objects.list"),
        (lambda store: store.delete("a"), "DELETE", "storage.objects.delete"),
        (lambda store: store.hold(), "POST", "storage.objects.create"),
    ],
)
def test_a_missing_permission_is_named(bucket, object_store, act, method, permission):
    store = Store(bucket)
    store.write("a", b"1")
    object_store.faults = [Fault(f"^{method}", 403, EVERY, message="Forbidden")]
    with pytest.raises(UserError) as caught:
        act(store)
    assert str(caught.value).startswith(bucket)
    assert f"lack the permission {permission} " in str(caught.value)
    assert "on the bucket bucket" in str(caught.value)
    object_store.faults[0].message = "somebody does not have storage.objects.special access to the object."
    with pytest.raises(UserError, match=r"lack the permission storage\.objects\.special on the bucket bucket"):
        act(store)
    assert not store.is_mine


def test_a_bucket_that_does_not_exist_is_named(bucket, object_store):
    store = Store("gs://nobody-has-it/run")
    for act in (lambda: store.exists("a"), lambda: store.names(), lambda: store.write("a", b""), store.hold):
        with pytest.raises(UserError, match=r"gs://nobody-has-it/run.* there is no bucket nobody-has-it: create it"):
            act()


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs://", "gs:///"])
def test_other_urls_are_refused(path):
    with pytest.raises(UserError, match="is neither a local directory nor a place in a bucket"):
        Store(path)


def test_without_the_extra_the_command_to_install_it_is_given(bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    gcs.prepare.cache_clear()
    with pytest.raises(UserError, match=r"gs:// needs the package gcsfs, .*: pip install 'mft_jax\[gcs\]'\."):
        Store(bucket)


HOLD = """
import sys
from mft_jax.runs.store import Store
Store(sys.argv[1]).hold()
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def quick(monkeypatch):
    """A lock that expires soon."""
    for name, seconds in {"LEASE": 1.0, "RENEW": 0.2, "POLL": 0.05}.items():
        monkeypatch.setattr(bucket_lock, name, seconds)


def test_the_lock_of_a_killed_process_is_taken_at_once_on_its_machine(bucket, monkeypatch, quick):
    with subprocess.Popen([sys.executable, "-c", HOLD, bucket], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert Store(bucket).is_held()
        with pytest.raises(InUse, match=f"is in use by the process with pid {process.pid} on "):
            Store(bucket).hold()
        process.send_signal(signal.SIGKILL)
    assert not Store(bucket).is_held()
    monkeypatch.setattr(bucket_lock, "LEASE", 1e9)
    Store(bucket).hold()


def test_a_holder_on_another_machine_keeps_its_lock_while_it_renews_it(bucket, monkeypatch, quick):
    holder, other = Store(bucket), Store(bucket)
    holder.hold()
    monkeypatch.setattr(bucket_lock.Holder, "is_alive", None)  # it is not known
    with pytest.raises(InUse):
        other.hold()
    holder._files._lock._stop.set()  # as if its process were stopped
    begin = time.monotonic()
    other.hold()
    assert time.monotonic() - begin >= 0.9
    assert json.loads(holder.read("run.lock"))["token"] == other._files._lock._token
    time.sleep(1.1)
    holder._files._lock._stop.clear()
    with pytest.raises(LockLost, match=f"was taken over by the process with pid {os.getpid()} on "):
        holder.write("a", b"late")
    holder.release()
    assert other.is_held()
    assert other.names() == ["run.lock"]


def test_a_holder_that_has_slept_renews_its_lock_and_goes_on(bucket, quick):
    store = Store(bucket)
    store.hold()
    store._files._lock._renewed -= 10
    store.write("a", b"1")
    assert (store.is_mine, store.read("a")) == (True, b"1")


def test_a_lock_whose_answer_was_lost_is_held_all_the_same(bucket, object_store):
    object_store.faults = [Fault("^POST /upload", 503, 1, after=True)]
    store = Store(bucket)
    store.hold()
    assert store.is_mine
    assert object_store.faults[0].times == 0
    with pytest.raises(InUse):
        Store(bucket).hold()
