import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from mft_jax.config import LoraConfig
from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost
from mft_jax.runs.checkpoints import CheckpointInfo, Checkpoints, from_plain, to_plain

LORA = LoraConfig(rank=2, alpha=3.0, targets=("q_proj",))
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 10)))


def society(step: int) -> dict:
    """A state after `step` updates, with numbers that no rounding leaves alone."""
    draw = np.random.default_rng(step).normal
    a, b = draw(size=(4, 2, 8, 2)), draw(size=(4, 2, 2, 8))
    adapters = {"q_proj": {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.bfloat16)}}
    shapes = jax.eval_shape(OPTIMIZER.init, adapters)
    optimizer = jax.tree.map(lambda leaf: jnp.asarray(np.full(leaf.shape, step / 3 + 2), leaf.dtype), shapes)
    return {"adapters": adapters, "optimizer": optimizer}


def assert_same(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(checkpoints: Checkpoints, step: int, finished: bool = False) -> None:
    checkpoints.save(step, society(step), finished=finished, lora=LORA, cost=Cost(train_tokens=10 * step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Steps 2, 4 and 6, the last of them final."""
    directory = tmp_path_factory.mktemp("run") / "checkpoint"
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest() is None
        save(checkpoints, 2)
        save(checkpoints, 4)
        assert checkpoints.finished() is None
        save(checkpoints, 6, finished=True)
    return directory


def test_round_trip_is_bitwise_and_the_last_two_are_kept(saved):
    with Checkpoints(saved) as checkpoints:
        for step in (4, 6):
            assert_same(checkpoints.restore(step, society(0)), society(step))
        expected = CheckpointInfo(step=6, finished=True, lora=LORA, cost=Cost(train_tokens=60))
        assert checkpoints.latest() == checkpoints.finished() == expected
    assert sorted(entry.name for entry in saved.iterdir()) == ["4", "6"]


def test_adapters_alone_can_be_read(saved):
    with Checkpoints(saved, read_only=True) as checkpoints:
        state = checkpoints.restore(6, {"adapters": society(0)["adapters"]})
    assert list(state) == ["adapters"]
    assert_same(state["adapters"], society(6)["adapters"])


def test_orbax_alone_can_read_it(saved, tmp_path):
    """In a process that never imports this project, or optax."""
    script = """
import pathlib, sys, numpy as np, orbax.checkpoint as ocp
path = pathlib.Path(sys.argv[1])
adapters = ocp.StandardCheckpointer().restore(path / "adapters")
optimizer = ocp.StandardCheckpointer().restore(path / "optimizer")
np.save(sys.argv[2], np.asarray(adapters["q_proj"]["a"]))
print(sorted(optimizer["1"]["0"]), int(optimizer["1"]["0"]["count"]), "optax" in sys.modules, "mft_jax" in sys.modules)
"""
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(saved / "6"), str(tmp_path / "a.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert out.stdout == "['count', 'mu', 'nu'] 4 False False\n", out.stderr
    assert np.load(tmp_path / "a.npy").tobytes() == np.asarray(society(6)["adapters"]["q_proj"]["a"]).tobytes()
    assert "'rank': 2" in str(ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(saved / "6" / "metadata"))


def test_a_checkpoint_is_never_overwritten(saved):
    with Checkpoints(saved) as checkpoints, pytest.raises(ValueError, match="step 6 is not after the last"):
        save(checkpoints, 6)


def test_another_shape_is_refused_by_name(saved):
    wanted = society(0)["adapters"]
    wanted["q_proj"]["a"] = jnp.zeros((4, 2, 8, 3))
    with Checkpoints(saved, read_only=True) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(6, {"adapters": wanted})
    assert "6/adapters: q_proj.a has shape (4, 2, 8, 2), expected (4, 2, 8, 3)" in str(caught.value)
    more = society(0)["adapters"] | {"k_proj": jnp.zeros(3)}
    with Checkpoints(saved, read_only=True) as checkpoints, pytest.raises(UserError, match=r"has shape None, expected"):
        checkpoints.restore(6, {"adapters": more})


def test_a_spoilt_checkpoint_is_named_and_can_be_deleted(saved, tmp_path):
    directory = tmp_path / "checkpoint"
    shutil.copytree(saved, directory)
    shutil.rmtree(directory / "6" / "adapters")
    with Checkpoints(directory) as checkpoints, pytest.raises(UserError, match="checkpoint/6 cannot be read"):
        checkpoints.restore(6, society(0))
    shutil.rmtree(directory / "6")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest().step == 4
        assert_same(checkpoints.restore(4, society(0)), society(4))


def test_what_a_kill_left_half_written_or_half_deleted(saved, tmp_path):
    directory = tmp_path / "checkpoint"
    shutil.copytree(saved, directory)
    half = directory / "8.orbax-checkpoint-tmp"
    shutil.copytree(saved / "6", half)
    (half / "_CHECKPOINT_METADATA").unlink()
    shutil.copytree(saved / "4", directory / "2")
    shutil.rmtree(directory / "2" / "optimizer")
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.latest().step == 6
    assert half.exists()  # it may be another process's, at work
    with Checkpoints(directory) as checkpoints:
        assert sorted(entry.name for entry in directory.iterdir()) == ["4", "6"]
        assert checkpoints.latest().step == 6
        save(checkpoints, 8)
        assert_same(checkpoints.restore(8, society(0)), society(8))
    assert sorted(entry.name for entry in directory.iterdir()) == ["6", "8"]


def test_kill_9_while_saving(tmp_path):
    """Whatever is the latest checkpoint after a kill, it is whole."""
    script = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_checkpoints import *
with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    for step in range((checkpoints.latest_step or 0) + 1, 1000):
        print(step, flush=True)
        save(checkpoints, step)
"""
    directory = tmp_path / "checkpoint"
    command = [sys.executable, "-c", script, str(directory), str(pathlib.Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started = [int(process.stdout.readline()) for _ in range(4)][-1]
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].split()
    started = int(rest[-1]) if rest else started
    with Checkpoints(directory) as checkpoints:
        step = checkpoints.latest_step
        assert step in (started - 1, started)
        assert_same(checkpoints.restore(step, society(0)), society(step))


def test_restores_onto_the_given_shardings(tmp_path):
    """Saved from 4 devices split over agents, restored split over half of them, and onto one."""
    script = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_checkpoints import *
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = lambda n: Mesh(np.array(jax.devices()[:n]), ("agent",))
place = lambda tree, n: jax.tree.map(
    lambda leaf: jax.device_put(leaf, NamedSharding(mesh(n), PartitionSpec(*("agent",) * bool(leaf.ndim)))), tree)
with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    checkpoints.save(3, place(society(3), 4), finished=True, lora=LORA, cost=Cost())
    for n in (4, 2, 1):
        like = place(society(0), n)
        state = checkpoints.restore(3, like)
        assert_same(state, society(3))
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, like)
        assert len(state["adapters"]["q_proj"]["a"].addressable_shards) == n
with Checkpoints(pathlib.Path(sys.argv[1]), read_only=True) as checkpoints:
    print("all", len(jax.devices()), checkpoints.finished().step)
"""
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "checkpoint"), str(pathlib.Path(__file__).parent)],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
    )
    assert (out.stdout, out.returncode) == ("all 4 3\n", 0), out.stderr
    assert out.stderr == ""  # Orbax says nothing into a user's terminal


def test_plain_trees_hold_every_leaf_and_nothing_of_ours():
    tree = society(1)["optimizer"]
    plain = to_plain(tree)
    assert sorted(plain["1"]["0"]) == ["count", "mu", "nu"]
    assert "0" not in plain  # the clip has no state
    assert_same(from_plain(plain, tree), tree)
    assert to_plain(jnp.zeros(2)).keys() == {"value"}
