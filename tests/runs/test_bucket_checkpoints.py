"""Checkpoints in a bucket: written by Orbax itself, whole or not there."""

import pytest

from mft_jax.errors import UserError
from mft_jax.runs.checkpoint_info import COMMITTED, latest_info
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.store import Store
from tests.runs.object_store import Fault
from tests.runs.test_checkpoints import NAME, assert_same, save, society

pytestmark = pytest.mark.gcs


def test_checkpoints_in_a_bucket_are_bitwise_and_whole_or_not_there(bucket, object_store):
    store = Store(bucket)
    checkpoints = Checkpoints(store, NAME)
    assert (checkpoints.latest(), checkpoints.newest_whole(society(0), pytest.fail)) == (None, None)
    object_store.faults = [Fault("", 503, 2), Fault("^(POST|PUT) /upload", 0, 1), Fault("^GET", 503, 1)]
    save(checkpoints, 2)
    save(checkpoints, 4)
    save(checkpoints, 6, finished=True)
    assert all(fault.times == 0 for fault in object_store.faults)
    assert store.names(NAME) == [f"{NAME}/4", f"{NAME}/6"]
    for step in (4, 6):
        assert_same(checkpoints.restore(step, society(0)), society(step))
    assert (checkpoints.finished().step, latest_info(store, NAME).step) == (6, 6)

    # Another process reads a checkpoint only when its last object is there, and the next holder removes what is left.
    store.delete(f"{NAME}/6/{COMMITTED}")
    reader = Checkpoints(store, NAME, read_only=True)
    assert reader.latest_step == 4
    assert store.names(NAME) == [f"{NAME}/4", f"{NAME}/6"]
    assert Checkpoints(store, NAME).latest_step == 4
    assert store.names(NAME) == [f"{NAME}/4"]
    save(checkpoints, 6)

    # One that is damaged is set aside.
    data = store.names(f"{NAME}/6/adapters/d")[0]
    store.write(data, store.read(data)[:-8] + b"\0" * 8)
    said = []
    info, state = checkpoints.newest_whole(society(0), said.append)
    assert info.step == 4
    assert_same(state, society(4))
    assert f"The checkpoint {bucket}/{NAME}/6 is damaged" in said[0]
    assert f"it was moved to {bucket}/damaged/{NAME}/6" in said[0]
    assert store.read(f"damaged/{NAME}/6/{COMMITTED}")


@pytest.mark.parametrize("part", ["_METADATA", "ocdbt"])
def test_a_checkpoint_that_may_not_be_written_or_read_names_the_permission(bucket, object_store, part):
    store = Store(bucket)
    checkpoints = Checkpoints(store, NAME)
    object_store.faults = [Fault(f"^(POST|PUT) /upload.*{part}", 403, 1_000_000)]
    with pytest.raises(
        UserError, match=rf"{bucket}/{NAME}/2 cannot be written: .*storage\.objects\.create.* bucket bucket"
    ):
        save(checkpoints, 2)
    object_store.faults = []
    assert Checkpoints(store, NAME).latest_step is None
    assert store.names(NAME) == []
    save(checkpoints, 2)
    object_store.faults = [Fault(f"^GET .*{part}", 403, 1_000_000)]
    with pytest.raises(UserError, match=rf"{bucket}/{NAME}/2/adapters cannot be read: .*storage\.objects\.get"):
        checkpoints.restore(2, society(0))
