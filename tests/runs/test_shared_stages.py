"""A stage with recorded inputs is copied by a stage with the same inputs, and only then."""

import json

import pytest

from mft_jax.metrics.ledger import Cost
from mft_jax.runs import layout
from mft_jax.runs.shared_stages import begin_stage, read_record
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.store import Store

INPUTS = {"stage": "eval", "seed": 0, "sampling": {"temperature": 1.0}}
STAGE, OTHER = layout.evaluation("", 1), layout.evaluation("debate", 0)
LINES = [json.dumps({"id": n}) for n in range(5)]


@pytest.fixture
def stores(tmp_path):
    """Two runs that this process holds."""
    pair = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store in pair:
        store.hold()
    yield pair
    for store in pair:
        store.release()


def compute(store, stage, inputs=INPUTS, chunks=((0, 3), (3, 5))):
    """Computes a stage of five lines."""
    file = StageFile(store, stage)
    assert begin_stage(file, inputs, 5) is None
    for start, stop in chunks:
        file.commit(start, LINES[start:stop], Cost(new_tokens=stop - start, wall_seconds=1.5), {"cut": start})
    if file.done == 5:
        file.seal(5)
    return file


def test_a_stage_is_copied_with_its_costs_and_says_from_where(stores):
    one, two = stores
    original = compute(one, OTHER)
    file = StageFile(two, STAGE)
    assert begin_stage(file, INPUTS, 5, [one]) == str(one.path(OTHER))
    file.seal(5)
    for name in (lambda stage: stage, lambda stage: stage.replace(".jsonl", ".journal.jsonl")):
        assert two.read(name(STAGE)) == one.read(name(OTHER))
    assert (
        (file.cost, file.counts)
        == (original.cost, original.counts)
        == (Cost(new_tokens=5, wall_seconds=3.0), {"cut": 3})
    )
    assert read_record(two, STAGE).copied_from == f"../one/{OTHER}"
    assert read_record(one, OTHER).copied_from is None


def test_a_stage_of_the_same_run_is_copied(stores):
    store, _ = stores
    compute(store, OTHER)
    assert begin_stage(StageFile(store, layout.debate(2)), INPUTS, 5) == str(store.path(OTHER))


@pytest.mark.parametrize(
    "inputs", [INPUTS | {"seed": 1}, INPUTS | {"sampling": {"temperature": 0.5}}, INPUTS | {"more": None}]
)
def test_other_inputs_are_computed(stores, inputs):
    one, two = stores
    compute(one, STAGE)
    file = StageFile(two, STAGE)
    assert begin_stage(file, inputs, 5, [one]) is None
    assert file.done == 0
    assert read_record(two, STAGE).inputs == inputs


def test_only_finished_and_intact_stages_are_copied(stores):
    one, two = stores
    compute(one, OTHER, chunks=[(0, 3)])
    compute(one, STAGE)
    data = one.read(STAGE)
    one.write(STAGE, data.replace(b"4", b"5"))
    assert begin_stage(StageFile(two, STAGE), INPUTS, 5, [one]) is None
    one.write(STAGE, data)
    assert begin_stage(StageFile(two, STAGE), INPUTS, 6, [one]) is None  # of another number of lines
    assert begin_stage(StageFile(two, STAGE), INPUTS, 5, [one]) == str(one.path(STAGE))


def test_a_copy_that_was_killed_is_continued(stores, monkeypatch):
    """Also if the original is gone meanwhile: what is missing is then computed, and the stage is no copy any more."""
    one, two = stores
    compute(one, STAGE)
    commit = StageFile.commit

    def commit_first_chunk(self, start, *rest):
        if start:
            raise MemoryError
        commit(self, start, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StageFile, "commit", commit_first_chunk)
        with pytest.raises(MemoryError):
            begin_stage(StageFile(two, STAGE), INPUTS, 5, [one])
    started = StageFile(two, STAGE)
    assert (started.done, read_record(two, STAGE).copied_from) == (3, f"../one/{STAGE}")
    assert begin_stage(StageFile(two, STAGE), INPUTS, 5) is None
    assert read_record(two, STAGE).copied_from is None
    two.delete(layout.inputs(STAGE))
    two.write(layout.inputs(STAGE), one.read(layout.inputs(STAGE)).replace(b"null", b'"gone"'))
    file = StageFile(two, STAGE)
    assert begin_stage(file, INPUTS, 5, [one]) == str(one.path(STAGE))
    file.seal(5)
    assert two.read(STAGE) == one.read(STAGE)


def test_a_stage_begun_with_other_inputs_is_not_shared(stores):
    """Its lines come from two different sets of inputs, for example of a checkpoint that has been made again."""
    one, two = stores
    compute(one, STAGE, chunks=[(0, 3)])
    file = StageFile(one, STAGE)
    assert begin_stage(file, INPUTS | {"seed": 1}, 5) is None
    assert read_record(one, STAGE) is None
    file.commit(3, LINES[3:], Cost(), {})
    file.seal(5)
    assert begin_stage(StageFile(two, STAGE), INPUTS, 5, [one]) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"inputs": 3, "copied_from": null}', b"[" * 100_000])
def test_a_damaged_record_means_that_the_stage_is_not_shared(stores, data):
    one, two = stores
    compute(one, STAGE)
    one.write(layout.inputs(STAGE), data)
    assert begin_stage(StageFile(two, STAGE), INPUTS, 5, [one]) is None
