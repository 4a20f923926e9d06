import errno
import os
import subprocess
import sys
import time

import pytest

from mft_jax.errors import UserError
from mft_jax.runs import lock
from mft_jax.runs.lock import InUse
from mft_jax.runs.store import Store
from tests.runs.disk import FAULTS, Stopped, fail_with, stopped_before


def files(root) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture(params=["local", pytest.param("gs", marks=pytest.mark.gcs)])
def place(request, tmp_path):
    """Where a store can be, as a string: a local directory or a place in a bucket."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def objects(store, folder="") -> list[str]:
    """The names of all objects, without folders."""
    return [
        found for name in store.names(folder) for found in ([name] if store.is_file(name) else objects(store, name))
    ]


def test_objects_are_written_read_listed_and_deleted(place):
    store = Store(f"{place}/run")
    Store(f"{place}/runs").write("a/other", b"")
    store.write("a/b/one.json", b"1")
    store.write("a/two.json", b"2\n")
    store.write("a/two.json", b"22\n")
    assert (store.read("a/two.json"), store.exists("a/b"), store.exists("a/c")) == (b"22\n", True, False)
    assert store.read_if_exists("a/c/d") is None
    assert store.names("a") == ["a/b", "a/two.json"]
    assert store.names() == ["a"]
    assert store.names("nothing") == []
    store.delete("a/b")
    store.delete("a/b")
    assert objects(store) == ["a/two.json"]
    assert (store.is_file("a/two.json"), store.is_file("a"), store.is_file("a/two")) == (True, False, False)
    assert str(store.path("a/two.json")) == f"{place}/run/a/two.json"
    with pytest.raises(UserError, match=r"run/a/b cannot be read \(No such (file|object).*\): give the path of"):
        store.read("a/b")
    large = bytes(range(256)) * 50_000  # Google's client sends it in another way
    store.write("large", large)
    assert store.read("large") == large
    store.delete("a")
    assert store.names() == ["large"]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a//b", "a/./b", "."])
def test_a_name_cannot_lead_out_of_the_store(place, name):
    with pytest.raises(ValueError, match="is not the name of an object"):
        Store(place).write(name, b"")


@pytest.mark.parametrize("path", ["runs/a\0b", "runs/\udcff"])
def test_a_directory_that_no_file_can_have(path):
    with pytest.raises(UserError, match=r"^The path 'runs/.*' has zero bytes, or bytes that are not UTF-8"):
        Store(path)


def test_what_is_set_aside_is_kept_under_a_name_of_its_own(place):
    store = Store(place)
    for content in (b"1", b"2", b"3"):
        store.write("a/one.json", content)
        store.set_aside("a/one.json")
    store.write("b/4/file", b"4")
    assert store.set_aside("b/4") == "damaged/b/4"
    kept = ["a/one.json", "a/one.json.2", "a/one.json.3", "b/4/file"]
    assert objects(store) == [f"damaged/{name}" for name in kept]
    assert store.read("damaged/a/one.json.2") == b"2"
    assert not store.exists("a/one.json")


def test_a_write_that_is_killed_leaves_the_old_content_and_at_most_one_stray_file(tmp_path):
    store, step = Store(tmp_path / "run"), 0
    store.write("file", b"old")
    while True:
        try:
            with stopped_before(step):
                store.write("file", b"new")
            break
        except Stopped:
            assert store.read("file") in (b"old", b"new")
            assert set(files(store.root)) <= {"file", ".file.tmp"}
            assert store.names() == ["file"]
            store.write("file", b"old")
            assert files(store.root) == ["file"]
        step += 1
    assert step >= 3


def test_holding_clears_what_killed_writers_left_but_not_in_a_store_inside(tmp_path):
    store, inside = Store(tmp_path / "run"), Store(tmp_path / "run" / "evaluations" / "other")
    store.write("file", b"1")
    inside.hold()
    for stray in (store.root / ".file.tmp", store.root / ".initial.tmp" / "x", inside.root / ".busy.tmp"):
        stray.parent.mkdir(exist_ok=True)
        stray.write_text("half")
    store.hold()
    expected = ["evaluations", "evaluations/other", "evaluations/other/.busy.tmp", "evaluations/other/run.lock"]
    assert files(store.root) == [*expected, "file", "run.lock"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_an_error_while_what_is_stray_is_cleared_away_frees_the_store(tmp_path, monkeypatch, error):
    store = Store(tmp_path / "run")
    store.write("a/file", b"1")
    (store.root / "a" / ".file.tmp").write_text("half")

    def fail(_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail)
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
            store.hold()
    assert not store.is_held()
    store.hold()
    assert store.names("a") == ["a/file"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ["write", "lock", "set_aside"])
def test_a_disk_that_refuses_is_one_sentence_and_leaves_nothing_half_written(tmp_path, monkeypatch, fault, action):
    number, functions, reason, remedy = FAULTS[fault]
    store = Store(tmp_path / "deep" / "run")
    if action != "lock":
        store.write("file", b"old")
    before = files(tmp_path)
    act = {
        "write": lambda: store.write("sub/file" if fault == "read-only" else "file", b"new"),
        "lock": store.hold,
        "set_aside": lambda: store.set_aside("file"),
    }[action]
    with monkeypatch.context() as patch:
        fail_with(patch, number, functions)
        if fault == "read-only":  # `open` of Python does not go through os.open
            patch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(OSError(number, reason)))
        with pytest.raises(UserError) as caught:
            act()
    assert f"cannot be written ({reason}): {remedy}" in str(caught.value)
    assert str(store.root) in str(caught.value)
    assert files(tmp_path) == before
    if action != "lock":
        assert store.read("file") == b"old"
    act()


@pytest.mark.parametrize(("error", "remedy"), [(PermissionError(13, "no"), "change its permissions"),
                                               (OSError(5, "Input/output error"), "check that disk")])  # fmt: skip
def test_a_read_that_is_refused_is_one_sentence(tmp_path, monkeypatch, error, remedy):
    store = Store(tmp_path)
    store.write("file", b"1")

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "stat", refuse)
    for act in (store.read, store.read_if_exists, store.names, store.exists):
        with pytest.raises(UserError, match=f"file cannot be read .*: {remedy}"):
            act("file")


def test_the_lock_is_made_first_and_a_mistake_leaves_no_directory(tmp_path):
    store = Store(tmp_path / "runs" / "new" / "run")
    store.hold()
    assert store.is_mine
    assert (store.root / "run.lock").read_text() == f"{os.getpid()}\n"
    store.release(discard=True)
    assert files(tmp_path) == []
    (tmp_path / "mine").mkdir()
    existing = Store(tmp_path / "mine")
    existing.hold()
    existing.release(discard=True)
    assert files(tmp_path) == ["mine"]
    existing.hold()
    existing.release()
    assert files(tmp_path) == ["mine", "mine/run.lock"]


def test_a_directory_that_never_comes_into_being_is_not_called_in_use(tmp_path, monkeypatch):
    """As in /proc, where nobody can make a directory: the system says that there is none above it."""
    monkeypatch.setattr(lock, "_PAUSE", 0)
    refuse = lambda path: (_ for _ in ()).throw(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    monkeypatch.setattr(lock, "make_directory", refuse)
    with pytest.raises(UserError, match=r"run.lock cannot be written \(No such file or directory\)") as caught:
        Store(tmp_path / "run").hold()
    assert not isinstance(caught.value, InUse)


def test_the_same_process_twice_is_refused(place):
    first, second = Store(f"{place}/run"), Store(f"{place}/run")
    first.hold()
    first.hold()  # its own already
    assert (second.is_held(), second.is_mine) == (True, False)
    with pytest.raises(
        InUse, match=f"run is in use by the process with pid {os.getpid()}( on .*)?: wait for it, stop it, or give"
    ):
        second.hold()
    first.release()
    assert not second.is_held()
    second.hold()
    assert second.names() == ["run.lock"]
    second.release(discard=True)
    assert second.names() == []


def test_asking_whether_it_is_held_changes_nothing(place):
    assert not Store(f"{place}/none").is_held()
    assert objects(Store(place)) == []


def test_a_lock_on_a_file_that_was_removed_does_not_count(tmp_path, monkeypatch):
    """One process opens the lock, and before it locks it the holder discards the directory and a third makes it anew."""
    holder, third, late = (Store(tmp_path / "run") for _ in range(3))
    holder.hold()
    real = os.open
    done = []

    def open_then_lose(path, flags, *rest):
        descriptor = real(path, flags, *rest)
        if str(path).endswith("run.lock") and not done:
            done.append(True)
            holder.release(discard=True)
            third.hold()
        return descriptor

    monkeypatch.setattr(os, "open", open_then_lose)
    with pytest.raises(InUse):
        late.hold()
    assert third.is_mine


RACE = """
import os, sys, time
from mft_jax.errors import UserError
from mft_jax.runs import lock
from mft_jax.runs.store import Store
lock._ATTEMPTS = 5  # a loser is to be there for the next round
Store(f"{sys.argv[1]}/0").is_held()  # imports what it needs
print("ready", flush=True)
sys.stdin.readline()
while time.time() < float(sys.argv[2]):
    pass
for number in range(int(sys.argv[3])):
    store = Store(f"{sys.argv[1]}/{number}")
    while time.time() < float(sys.argv[2]) + 0.15 * number:
        pass
    try:
        store.hold()
        print("won", os.getpid(), flush=True)
    except UserError as error:
        print("lost", error, flush=True)
sys.stdin.readline()
"""


def test_of_processes_that_start_together_exactly_one_works(place):
    """Two processes take new directories at the same instants; who loses says who won."""
    rounds, begin = 20 if "://" not in place else 8, str(time.time() + 2.0)
    command = [sys.executable, "-c", RACE, place, begin, str(rounds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [[process.stdout.readline().split(maxsplit=1) for _ in range(rounds)] for process in processes]
    for process in processes:
        process.communicate("end\n")
    for number in range(rounds):
        tries = [outcome[number] for outcome in outcomes]
        assert sorted(word for word, _ in tries) == ["lost", "won"]
        winner = next(rest for word, rest in tries if word == "won").strip()
        assert f"in use by the process with pid {winner}" in next(rest for word, rest in tries if word == "lost")
