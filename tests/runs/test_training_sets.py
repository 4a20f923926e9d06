import hashlib
import json

import pytest

from mft_jax.errors import UserError
from mft_jax.runs.store import Store
from mft_jax.runs.training_sets import read_training_set, read_training_sets, write_training_sets
from tests.runs.disk import FAULTS, Stopped, fail_with, stopped_before

SETS = {
    "writer": [{"id": "q1", "messages": [{"role": "user", "content": "ü \u2028"}]}, {"id": "q2", "messages": []}],
    "reviewer": [],
}
NAMES = tuple(SETS)
FOLDER = "iteration_2/finetune"


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "run")


def test_what_was_written_is_read_back(store):
    assert read_training_sets(store, 2, NAMES, pytest.fail) is None
    write_training_sets(store, 2, SETS)
    assert read_training_sets(store, 2, NAMES, pytest.fail) == SETS
    assert read_training_set(store, 2, "writer") == SETS["writer"]
    data = store.read(f"{FOLDER}/writer.jsonl")
    assert [json.loads(line) for line in data.decode().split("\n")[:-1]] == SETS["writer"]
    digests = json.loads(store.read(f"{FOLDER}/training_sets.json"))["sha256"]
    assert digests == {"writer": hashlib.sha256(data).hexdigest(), "reviewer": hashlib.sha256(b"").hexdigest()}


def test_sets_whose_writing_was_killed_are_not_there(tmp_path):
    step, is_killed = 0, True
    while is_killed:
        store = Store(tmp_path / str(step))
        try:
            with stopped_before(step):
                write_training_sets(store, 2, SETS)
            is_killed = False
        except Stopped:
            assert read_training_sets(store, 2, NAMES, pytest.fail) in (None, SETS)
        step += 1
    assert step > 10


def test_a_damaged_set_is_set_aside_and_the_sets_are_chosen_again(store):
    write_training_sets(store, 2, SETS)
    name = f"{FOLDER}/writer.jsonl"
    spoilt = store.read(name).replace(b"q2", b"q3")
    store.write(name, spoilt)
    with pytest.raises(UserError, match=r"writer\.jsonl cannot be used \(its checksum is wrong"):
        read_training_set(store, 2, "writer")
    heard = []
    assert read_training_sets(store, 2, NAMES, heard.append) is None
    assert heard[0].startswith(f"{store.path(name)} is damaged (its checksum is wrong")
    assert store.read(f"damaged/{name}") == spoilt
    write_training_sets(store, 2, SETS)
    assert read_training_sets(store, 2, NAMES, pytest.fail) == SETS


@pytest.mark.parametrize("text", [b"", b"[]", b'{"sha256": []}', b'{"sha256": {"writer": 1}}', b"\xff", b"[" * 9000])
def test_damaged_checksums_are_set_aside(store, text):
    write_training_sets(store, 2, SETS)
    store.write(f"{FOLDER}/training_sets.json", text)
    heard = []
    assert read_training_sets(store, 2, NAMES, heard.append) is None
    assert "training_sets.json is damaged (a checksum is missing): it was moved to" in heard[0]
    assert store.read(f"damaged/{FOLDER}/training_sets.json") == text
    assert read_training_sets(store, 2, NAMES, pytest.fail) is None


def test_a_set_that_is_gone_is_said(store):
    write_training_sets(store, 2, SETS)
    store.delete(f"{FOLDER}/reviewer.jsonl")
    heard = []
    assert read_training_sets(store, 2, NAMES, heard.append) is None
    assert "reviewer.jsonl is damaged (it is missing): the training sets are selected again" in heard[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_refuses(store, monkeypatch, fault):
    number, functions, reason, remedy = FAULTS[fault]
    with monkeypatch.context() as patch:
        fail_with(patch, number, functions)
        with pytest.raises(UserError, match=rf"writer\.jsonl cannot be written \({reason}\): {remedy}"):
            write_training_sets(store, 2, SETS)
    assert not store.root.exists()
    write_training_sets(store, 2, SETS)
    assert read_training_sets(store, 2, NAMES, pytest.fail) == SETS
