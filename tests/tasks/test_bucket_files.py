"""Data sets in a bucket: read or copied as they are on disk, and what can go wrong."""

import dataclasses

import pytest

from mft_jax import gcs
from mft_jax.config import TaskConfig
from mft_jax.errors import UserError
from mft_jax.tasks import load_task
from mft_jax.tasks.bucket_files import copy_folder
from tests.runs.object_store import Fault
from tests.tasks.test_gsm8k import believe, config, write

pytestmark = pytest.mark.gcs
LINES = "".join(f'{{"question": "What is {n}+1?", "answer": {n + 1}}}\n' for n in range(8))


def upload(url, data):
    bucket, _, key = url.removeprefix("gs://").partition("/")
    gcs.client().bucket(bucket).blob(key).upload_from_string(data)


def downloads(object_store):
    return sum("alt=media" in request for request in object_store.requests)


def test_questions_are_read_from_an_object(bucket, tmp_path):
    (tmp_path / "own.jsonl").write_text(LINES)
    upload(f"{bucket}/own.jsonl", LINES)
    settings = TaskConfig(name="jsonl", train_questions=4, eval_questions=3)
    local, remote = (
        load_task(dataclasses.replace(settings, train_path=path), 0)
        for path in (str(tmp_path / "own.jsonl"), f"{bucket}/own.jsonl")
    )
    assert (remote.train, remote.eval) == (local.train, local.eval)
    assert len(remote.train) == 4
    upload(f"{bucket}/broken.jsonl", LINES + "{\n")
    with pytest.raises(UserError, match=rf"{bucket}/broken\.jsonl, line 9"):
        load_task(dataclasses.replace(settings, train_path=f"{bucket}/broken.jsonl"), 0)
    with pytest.raises(
        UserError, match=rf"Cannot read the questions {bucket}/none\.jsonl \(no such object\): give a file"
    ):
        load_task(dataclasses.replace(settings, train_path=f"{bucket}/none.jsonl"), 0)
    with pytest.raises(UserError, match=r"gs:///own\.jsonl names no bucket"):
        load_task(dataclasses.replace(settings, train_path="gs:///own.jsonl"), 0)


def test_a_public_data_set_is_copied_once_and_again_when_it_has_changed(bucket, object_store, tmp_path, monkeypatch):
    files = write(tmp_path / "files")
    believe(monkeypatch, files)
    for file in files.iterdir():
        upload(f"{bucket}/data/{file.name}", file.read_bytes())
    upload(f"{bucket}/data/", b"")  # stands for the folder
    settings = config(tmp_path / "remote", f"{bucket}/data")
    expected = load_task(config(tmp_path / "local", files), 0)
    object_store.faults = [Fault("alt=media", 503, 2)]
    for _ in range(2):
        found = load_task(settings, 0)
        assert (found.train, found.eval) == (expected.train, expected.eval)
    assert downloads(object_store) == 4  # two files, and two requests that failed
    assert [path.is_dir() for path in (tmp_path / "remote/cache/copies").iterdir()] == [True]
    larger = write(tmp_path / "larger", (12, 5))
    believe(monkeypatch, larger)
    upload(f"{bucket}/data/train.jsonl", (larger / "train.jsonl").read_bytes())
    assert len(load_task(dataclasses.replace(settings, train_questions=9), 0).train) == 9


@pytest.mark.parametrize("name", ["../up", "a//b", "/root"])
def test_names_that_lead_out_of_the_copy_are_refused(bucket, tmp_path, name):
    upload(f"{bucket}/hostile/{name}", b"")
    with pytest.raises(UserError, match=r"has an object named '.*', which cannot be a file: rename it"):
        copy_folder(f"{bucket}/hostile", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_copy_is_whole_or_not_there(bucket, object_store, tmp_path):
    for name in ("a", "b/c"):
        upload(f"{bucket}/data/{name}", name.encode())
    object_store.faults = [Fault(r"b%2Fc.*alt=media", 403)]
    with pytest.raises(UserError, match=rf"{bucket}/data/b/c cannot be read: these credentials lack the permission"):
        copy_folder(f"{bucket}/data", tmp_path)
    assert list((tmp_path / "copies").iterdir()) == []
    copied = copy_folder(f"{bucket}/data/", tmp_path)
    assert {name: (copied / name).read_text() for name in ("a", "b/c")} == {"a": "a", "b/c": "b/c"}
    with pytest.raises(UserError, match=f"{bucket}/none has no objects: give a folder"):
        copy_folder(f"{bucket}/none", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be copied to .* set task\.cache_dir to another directory"):
        copy_folder(f"{bucket}/data", tmp_path / "file")
