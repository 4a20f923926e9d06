"""The arithmetic data set: what is in it, and that it survives kills, damage and company."""

import re
import shutil
import signal
import subprocess
import sys

import pytest

from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks import arithmetic, load_task, prepared
from mft_jax.tasks.arithmetic_split import reserved


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with the data set in it; not to be changed."""
    directory = tmp_path_factory.mktemp("data")
    load_task(config(directory), 0)
    return directory


def config(directory, train=20, evaluation=30):
    return TaskConfig(cache_dir=str(directory), train_questions=train, eval_questions=evaluation)


def digits(question):
    return tuple(int(number) for number in re.findall(r"\d+", question.text))


def test_questions_are_reserved_distinct_and_right(built):
    task = load_task(config(built, arithmetic.POOL, arithmetic.POOL), 0)
    everything = [digits(question) for question in (*task.train, *task.eval)]
    assert len(set(everything)) == 2 * arithmetic.POOL
    assert all(reserved(numbers) for numbers in everything)
    assert {number for numbers in everything for number in numbers} == set(range(30))
    for (a, b, c, d, e, f), question in zip(everything, (*task.train, *task.eval), strict=True):
        assert question.gold == str(a + b * c + d - e * f)
    assert len({question.id for question in (*task.train, *task.eval)}) == 2 * arithmetic.POOL


def test_the_seed_chooses_and_a_smaller_set_is_part_of_a_larger(built):
    small, other = (load_task(config(built, 20, 30), seed) for seed in (0, 1))
    large = load_task(config(built, 50, 60), 0)
    assert (len(small.train), len(small.eval)) == (20, 30)
    assert small.train == large.train[:20]
    assert small.eval == large.eval[:30]
    assert small.train != other.train
    assert small == load_task(config(built, 20, 30), 0)


def test_the_pools_never_change():
    # A run's questions follow from its configuration alone; an edit here needs a new VERSION of the data set.
    assert arithmetic.question("train", 0).text == "What is 6+0*7+19-12*27?"
    assert arithmetic.question("eval", 3999).text == "What is 22+23*6+1-7*2?"


def test_answers_are_read_and_compared_as_numbers(built):
    task = load_task(config(built), 0)
    assert task.name == "arithmetic"
    assert task.parse("first 12, then -7") == "-7"
    assert task.equivalent("-7", "-7.0")


@pytest.mark.parametrize("sizes", [(4001, 10), (10, 4001)])
def test_more_questions_than_there_are(tmp_path, sizes):
    with pytest.raises(UserError, match="has 4000 questions: set it to 4000 or less"):
        load_task(config(tmp_path, *sizes), 0)


def test_two_builds_at_once_are_quiet_and_leave_one_whole_data_set(built, tmp_path):
    code = (
        "import sys\nfrom mft_jax.config import TaskConfig\nfrom mft_jax.tasks import load_task\n"
        "task = load_task(TaskConfig(cache_dir=sys.argv[1], train_questions=20, eval_questions=30), 0)\n"
        "assert 'tensorflow' not in sys.modules\n"
        "sys.exit(len(task.train))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(process.communicate(timeout=120), process.returncode) for process in running] == [((b"", b""), 20)] * 2
    assert [path.name for path in (tmp_path / "mft_arithmetic").iterdir()] == ["1.0.0"]
    assert load_task(config(tmp_path), 0) == load_task(config(built), 0)


def test_a_build_that_was_killed_is_done_again(built, tmp_path):
    code = (
        "import os, signal, sys\nfrom mft_jax.config import TaskConfig\n"
        "from mft_jax.tasks import arithmetic, load_task\n"
        "arithmetic.value = lambda numbers: os.kill(os.getpid(), signal.SIGKILL)\n"
        "load_task(TaskConfig(cache_dir=sys.argv[1]), 0)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120).returncode == -signal.SIGKILL
    assert [path.name[:10] for path in (tmp_path / "mft_arithmetic").iterdir()] == ["incomplete"]
    assert load_task(config(tmp_path), 0) == load_task(config(built), 0)
    assert [path.name for path in (tmp_path / "mft_arithmetic").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("name", ["dataset_info.json", "mft_arithmetic-eval.array_record-00000-of-00001"])
@pytest.mark.parametrize("damage", ["remove", "empty", "cut", "overwrite"])
def test_a_damaged_data_set_is_built_again(built, tmp_path, monkeypatch, name, damage):
    builds = []
    build = lambda data, originals: (builds.append(1), _copy(built, data.directory))
    monkeypatch.setattr(prepared, "_build", build)
    _copy(built, tmp_path)
    file = tmp_path / "mft_arithmetic" / "1.0.0" / name
    whole = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        kept = {"empty": 0, "cut": len(whole) // 2, "overwrite": len(whole)}[damage]
        file.write_bytes(whole[:kept] if damage != "overwrite" else b"x" * kept)
    assert load_task(config(tmp_path), 0) == load_task(config(built), 0)
    assert len(builds) == 1


def test_a_data_set_of_other_questions_is_not_believed(built, tmp_path, monkeypatch):
    _copy(built, tmp_path)
    swapped = {"train": arithmetic.pool("eval"), "eval": arithmetic.pool("train")}
    with monkeypatch.context() as patch:
        # As if the split between the task and the base model's training text had been changed since.
        patch.setattr(arithmetic, "pool", lambda split: swapped[split])
        changed = load_task(config(tmp_path), 0)
    assert {digits(question) for question in changed.train} <= set(swapped["train"])


def test_a_directory_that_cannot_hold_the_data_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"set task\.cache_dir to a directory that can be written to"):
        load_task(config(tmp_path / "file"), 0)
    with pytest.raises(UserError, match=r"task\.cache_dir is 'gs://bucket', expected a local directory"):
        load_task(config("gs://bucket"), 0)


def test_the_default_directory_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared.cache_dir(TaskConfig()) == tmp_path / "mft_jax" / "datasets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(prepared.cache_dir(TaskConfig())) == "/home/someone/.cache/mft_jax/datasets"


def _copy(source, target):
    shutil.copytree(source / "mft_arithmetic", target / "mft_arithmetic", dirs_exist_ok=True)
