"""Prepared data sets: they survive kills, damage and concurrent builds, and are never deleted before there is a new one."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks import prepared
from mft_jax.tasks.prepared import DamagedError
from tests.tasks.trial import SIZE, load_trial

ROOT = pathlib.Path(__file__).parents[2]
RECORDS = "mft_trial-eval.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory with the data set in it; not to be changed."""
    directory = tmp_path_factory.mktemp("whole")
    load_trial(directory)
    return directory


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it to damage."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def builds(monkeypatch):
    """Data sets that are built, one entry for each."""
    found, build = [], prepared._build
    monkeypatch.setattr(prepared, "_build", lambda data, originals: (found.append(data.path), build(data, originals)))
    return found


def no_originals(directory):
    raise UserError("The network is down: connect it.")


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted((directory / "mft_trial" / "1.0.0").iterdir())}


def damage_file(path, damage):
    content = path.read_bytes()
    match damage:
        case "remove":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "overwrite":
            path.write_bytes(b"x" * len(content))


def test_what_is_written_is_read_in_order(whole):
    assert load_trial(whole, no_originals)["eval"] == [f"eval {number}" for number in range(SIZE)]


@pytest.mark.parametrize("name", ["dataset_info.json", RECORDS])
@pytest.mark.parametrize("damage", ["remove", "empty", "cut", "overwrite"])
def test_a_damaged_data_set_is_built_again(whole, copy, builds, name, damage):
    damage_file(copy / "mft_trial" / "1.0.0" / name, damage)
    assert load_trial(copy) == load_trial(whole)
    assert len(builds) == 1
    assert contents(copy) == contents(whole)
    assert [path.name for path in copy.iterdir() if path.is_dir()] == ["mft_trial"]


@pytest.mark.parametrize("name", ["dataset_info.json", RECORDS])
def test_a_damaged_data_set_that_cannot_be_built_again_stays_and_both_reasons_are_told(copy, name):
    damage_file(copy / "mft_trial" / "1.0.0" / name, "cut")
    before = contents(copy)
    with pytest.raises(UserError) as caught:
        load_trial(copy, no_originals)
    assert contents(copy) == before
    assert f"The data set in {copy / 'mft_trial' / '1.0.0'} is damaged (it cannot be read: " in str(caught.value)
    assert ") and could not be built again: The network is down: connect it." in str(caught.value)


def test_a_data_set_of_another_size_is_damaged_too(copy, builds):
    def read(builder):
        if not builds:
            raise DamagedError("it has 5 records, expected 6")
        return "as expected"

    assert load_trial(copy, read=read) == "as expected"
    assert len(builds) == 1


def test_a_new_data_set_that_is_damaged_as_well_replaces_nothing(copy, builds):
    def read(builder):
        raise DamagedError("it has 5 records, expected 6")

    before = contents(copy)
    with pytest.raises(UserError, match=r"Cannot build the data set of the task trial .*it has 5 records, expected 6"):
        load_trial(copy, read=read)
    assert (contents(copy), len(builds)) == (before, 1)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_what_keeps_a_whole_data_set_from_being_read_is_not_damage(copy, builds, monkeypatch, code):
    """The library's readers raise RuntimeError for a file that cannot be opened."""

    def refuse(path):
        raise OSError(code, os.strerror(code), str(path))

    def read(builder):
        raise RuntimeError(f"open() failed: {os.strerror(code)}")

    before = contents(copy)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", refuse)
        with pytest.raises(UserError, match=rf"Cannot read the data set of the task trial .*{os.strerror(code)}"):
            load_trial(copy, read=read)
    assert (contents(copy), builds) == (before, [])


def test_too_little_memory_is_not_damage(copy, builds):
    def read(builder):
        raise MemoryError

    with pytest.raises(MemoryError):
        load_trial(copy, read=read)
    assert builds == []


def test_two_builds_at_once_are_quiet_and_leave_one_whole_data_set(whole, tmp_path):
    code = (
        "import pathlib, sys\nfrom tests.tasks.trial import load_trial\n"
        "texts = load_trial(pathlib.Path(sys.argv[1]))\n"
        "assert 'tensorflow' not in sys.modules\n"
        "sys.exit(len(texts['train']))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
    assert [(process.communicate(timeout=120), process.returncode) for process in running] == [((b"", b""), SIZE)] * 2
    assert [path.name for path in (tmp_path / "mft_trial").iterdir()] == ["1.0.0"]
    assert load_trial(tmp_path, no_originals) == load_trial(whole)


@pytest.mark.parametrize("moment", ["generate", "replace"])
def test_a_build_that_was_killed_is_finished_by_the_next(whole, copy, moment):
    """While it generates; and when the old data set has been moved away, but the new one is not in its place yet."""
    code = (
        "import os, pathlib, signal, sys\nfrom mft_jax.tasks import prepared\nfrom tests.tasks import trial\n"
        "kill = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[2] == 'generate':\n    trial.MftTrial._generate_examples = kill\n"
        "else:\n    replace = os.replace\n"
        "    os.replace = lambda a, b: kill() if pathlib.Path(b).name == '1.0.0' and 'new' in str(a) else replace(a, b)\n"
        "trial.load_trial(pathlib.Path(sys.argv[1]))"
    )
    damage_file(copy / "mft_trial" / "1.0.0" / RECORDS, "cut")
    done = subprocess.run([sys.executable, "-c", code, str(copy), moment], timeout=120, cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (copy / "new").is_dir()
    originals = {} if moment == "generate" else {"originals": no_originals}
    assert load_trial(copy, **originals) == load_trial(whole)
    assert [path.name for path in copy.iterdir() if path.is_dir()] == ["mft_trial"]


def test_a_directory_that_cannot_hold_the_data_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"set task\.cache_dir to a directory that can be written to"):
        load_trial(tmp_path / "file")
    with pytest.raises(UserError, match=r"task\.cache_dir is 'gs://bucket', expected a local directory"):
        prepared.cache_dir(TaskConfig(cache_dir="gs://bucket"))


def test_the_default_directory_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared.cache_dir(TaskConfig()) == tmp_path / "mft_jax" / "datasets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(prepared.cache_dir(TaskConfig())) == "/home/someone/.cache/mft_jax/datasets"
