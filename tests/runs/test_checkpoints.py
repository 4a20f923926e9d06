import errno
import json
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
from mft_jax.runs import arrays
from mft_jax.runs.arrays import from_plain, sha256_of, to_plain
from mft_jax.runs.checkpoint_info import CheckpointInfo, latest_info
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.store import Store

LORA = LoraConfig(rank=2, alpha=3.0, targets=("q_proj",))
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 10)))
NAME = "iteration_1/checkpoint"


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
    checkpoints.save(
        step, society(step), finished=finished, lora=LORA, cost=Cost(train_tokens=10 * step), names=("x", "y"),
        plan="abc", total=6,
    )  # fmt: skip


def steps(store: Store) -> list[str]:
    return sorted(path.name for path in store.path(NAME).iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Store:
    """Steps 2, 4 and 6, the last of them final. Not to be changed."""
    store = Store(tmp_path_factory.mktemp("runs") / "run")
    checkpoints = Checkpoints(store, NAME)
    assert (checkpoints.latest(), checkpoints.newest_whole(society(0), pytest.fail)) == (None, None)
    assert not store.root.exists()
    save(checkpoints, 2)
    save(checkpoints, 4)
    assert checkpoints.finished() is None
    save(checkpoints, 6, finished=True)
    return store


@pytest.fixture
def copy(saved, tmp_path) -> Store:
    """The same, to be spoilt."""
    shutil.copytree(saved.root, tmp_path / "run")
    return Store(tmp_path / "run")


def test_round_trip_is_bitwise_and_the_last_two_are_kept(saved):
    checkpoints = Checkpoints(saved, NAME)
    for step in (4, 6):
        assert_same(checkpoints.restore(step, society(0)), society(step))
    expected = CheckpointInfo(
        step=6, finished=True, lora=LORA, cost=Cost(train_tokens=60), names=("x", "y"), plan="abc", total=6
    )
    assert checkpoints.latest() == checkpoints.finished() == latest_info(saved, NAME) == expected
    info, state = checkpoints.newest_whole(society(0), pytest.fail)
    assert info == expected
    assert_same(state, society(6))
    assert steps(saved) == ["4", "6"]


def test_adapters_alone_can_be_read(saved):
    state = Checkpoints(saved, NAME, read_only=True).restore(6, {"adapters": society(0)["adapters"]})
    assert list(state) == ["adapters"]
    assert_same(state["adapters"], society(6)["adapters"])
    with pytest.raises(UserError, match=r"6 has no part 'masks', it has adapters, optimizer"):
        Checkpoints(saved, NAME, read_only=True).restore(6, {"masks": jnp.zeros(1)})


def test_orbax_alone_can_read_it(saved, tmp_path):
    """In a process that never imports this project, or optax."""
    script = """
import pathlib, sys, numpy as np, orbax.checkpoint as ocp
path = pathlib.Path(sys.argv[1])
adapters = ocp.StandardCheckpointer().restore(path / "adapters")
optimizer = ocp.StandardCheckpointer().restore(path / "optimizer")
np.save(sys.argv[2], np.asarray(adapters["q_proj"]["a"]))
print(sorted(optimizer["1"]["0"]), int(optimizer["1"]["0"]["count"]), "optax" in sys.modules, "mft_jax" in sys.modules)
print(ocp.CheckpointManager(path.parent).all_steps())
"""
    path = saved.path(NAME) / "6"
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(path), str(tmp_path / "a.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert out.stdout == "['count', 'mu', 'nu'] 4 False False\n[4, 6]\n", out.stderr
    assert np.load(tmp_path / "a.npy").tobytes() == np.asarray(society(6)["adapters"]["q_proj"]["a"]).tobytes()
    assert "'rank': 2" in str(ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / "metadata"))


def test_what_is_known_of_a_checkpoint_is_read_without_jax(saved):
    script = """
import sys
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.store import Store
print(latest_info(Store(sys.argv[1]), sys.argv[2]).step, "jax" in sys.modules, "orbax" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", script, saved.root, NAME], capture_output=True, text=True)
    assert out.stdout == "6 False False\n", out.stderr


def test_a_checkpoint_is_never_overwritten(saved):
    with pytest.raises(ValueError, match="step 6 is not after the last"):
        save(Checkpoints(saved, NAME), 6)


def test_another_shape_or_type_is_refused_by_name_and_is_not_damage(copy):
    checkpoints, wanted = Checkpoints(copy, NAME), society(0)["adapters"]
    wanted["q_proj"]["a"] = jnp.zeros((4, 2, 8, 3))
    others = {
        "6/adapters: q_proj.a is float32[4, 2, 8, 2], expected float32[4, 2, 8, 3]: the checkpoint is of another": wanted,
        "k_proj is missing, expected float32[3]": society(0)["adapters"] | {"k_proj": jnp.zeros(3)},
        "q_proj.b is bfloat16[4, 2, 2, 8], expected no such array": {"q_proj": {"a": society(0)["adapters"]["q_proj"]["a"]}},
        "q_proj.a is float32[4, 2, 8, 2], expected bfloat16[4, 2, 8, 2]": jax.tree.map(
            lambda leaf: leaf.astype(jnp.bfloat16), society(0)["adapters"]
        ),
    }  # fmt: skip
    for message, asked in others.items():
        for read in (lambda a: checkpoints.restore(6, a), lambda a: checkpoints.newest_whole(a, pytest.fail)):
            with pytest.raises(UserError) as caught:
                read({"adapters": asked})
            assert message in str(caught.value)
    assert steps(copy) == ["4", "6"]


def spoil(path: pathlib.Path, how: str) -> None:
    """Deletes, empties or flips a bit of a file, the largest one of a directory."""
    if path.is_dir():
        path = max((entry for entry in path.rglob("*") if entry.is_file()), key=lambda entry: entry.stat().st_size)
    data = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
        return
    data[len(data) // 2] ^= 1
    path.write_bytes(b"" if how == "emptied" else bytes(data))


PIECES = ("adapters/d", "optimizer/d", "adapters/manifest.ocdbt", "metadata/metadata")


@pytest.mark.parametrize("how", ["deleted", "emptied", "flipped"])
@pytest.mark.parametrize("piece", PIECES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(copy, piece, how):
    spoil(copy.path(NAME) / "6" / piece, how)
    with pytest.raises(UserError, match=r"checkpoint/6 is damaged .*start the run again, which sets it aside"):
        Checkpoints(copy, NAME, read_only=True).newest_whole(society(0), pytest.fail)
    with pytest.raises(UserError, match="checkpoint/6 is damaged"):
        Checkpoints(copy, NAME).restore(6, society(0))
    assert steps(copy) == ["4", "6"]
    heard = []
    checkpoints = Checkpoints(copy, NAME)
    info, state = checkpoints.newest_whole(society(0), heard.append)
    assert info.step == 4
    assert_same(state, society(4))
    (sentence,) = heard
    assert sentence.startswith(f"The checkpoint {copy.path(NAME) / '6'} is damaged (")
    assert sentence.endswith(f"moved to {copy.path('damaged/' + NAME + '/6')}, and finetuning resumes from step 4.")
    assert copy.exists(f"damaged/{NAME}/6/adapters")
    save(checkpoints, 6, finished=True)
    assert_same(checkpoints.newest_whole(society(0), pytest.fail)[1], society(6))
    assert steps(copy) == ["4", "6"]


@pytest.mark.parametrize("how", ["deleted", "emptied", "flipped"])
def test_whatever_file_is_damaged_the_state_is_what_was_written(saved, tmp_path, capfd, how):
    """Every file of a checkpoint in turn; some of Orbax's do not matter. No traceback of a thread reaches the terminal."""
    directory = saved.path(NAME) / "6"
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file() and path.stat().st_size]
    taken = set()
    for number, file in enumerate(files):
        store = Store(tmp_path / str(number))
        shutil.copytree(saved.root, store.root)
        spoil(store.path(NAME) / "6" / file, how)
        info, state = Checkpoints(store, NAME).newest_whole(society(0), lambda text: None)
        assert_same(state, society(info.step))
        taken.add(info.step)
    assert (len(files) > 15, taken) == (True, {4, 6})
    assert capfd.readouterr().err == ""


def test_when_all_are_damaged_finetuning_starts_anew(copy):
    for step in ("4", "6"):
        spoil(copy.path(NAME) / step / "optimizer/d", "flipped")
    heard = []
    assert Checkpoints(copy, NAME).newest_whole(society(0), heard.append) is None
    assert [sentence.rsplit(", and ", 1)[1] for sentence in heard] == [
        "finetuning resumes from step 4.",
        "finetuning starts anew.",
    ]


def test_a_part_that_is_not_asked_for_is_not_read(copy):
    spoil(copy.path(NAME) / "6" / "optimizer/d", "deleted")
    asked = {"adapters": society(0)["adapters"]}
    assert_same(Checkpoints(copy, NAME).newest_whole(asked, pytest.fail)[1]["adapters"], society(6)["adapters"])


def test_every_changed_value_of_the_metadata_is_noticed(copy):
    path = copy.path(NAME) / "6" / "metadata" / "metadata"
    raw = json.loads(path.read_text())
    for name in raw:
        path.write_text(json.dumps(raw | {name: 5}))
        with pytest.raises(UserError, match=r"is damaged .the checksum of its metadata is wrong"):
            Checkpoints(copy, NAME, read_only=True).latest()
    for text in ("[]", "{}", "null", "{", "[" * 9000):
        path.write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            latest_info(copy, NAME)
    shutil.copytree(copy.path(NAME) / "4", copy.path(NAME) / "5")
    with pytest.raises(UserError, match="checkpoint/5 is damaged"):
        Checkpoints(copy, NAME, read_only=True).info(5)


OUT_OF_MEMORY = (
    MemoryError("Unable to allocate 9.3 GiB"),
    MemoryError(),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("where", ["host", "device"])
def test_too_little_memory_is_said_and_is_not_damage(copy, monkeypatch, error, where):
    def fail(*_, **__):
        raise error

    if where == "host":
        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    else:
        monkeypatch.setattr(jax, "device_put", fail)
    with pytest.raises(UserError, match=f"not enough memory .*{str(error)[:20]}"):
        Checkpoints(copy, NAME).newest_whole(society(0), pytest.fail)
    assert steps(copy) == ["4", "6"]


REFUSALS = (
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("UNKNOWN: Error reading local file: Input/output error [os_error_code='5']"),  # as tensorstore says it
)


@pytest.mark.parametrize("error", REFUSALS)
def test_a_refusal_of_the_system_is_said_and_is_not_damage(copy, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    with pytest.raises(UserError, match=r"6/adapters cannot be read \((Permission denied|Input/output error)\): "):
        Checkpoints(copy, NAME).newest_whole(society(0), pytest.fail)
    assert steps(copy) == ["4", "6"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_refusal_while_saving_leaves_nothing_half_written(copy, monkeypatch, number):
    """Wherever in a save the disk refuses: the same step can be saved when there is room."""
    checkpoints = Checkpoints(copy, NAME)
    real = os.mkdir
    for made in (0, 2):
        places = iter(range(made))

        def fail(*arguments, places=places, **options):
            if next(places, None) is None:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", fail)
            with pytest.raises(UserError, match=rf"checkpoint/8 cannot be written \({os.strerror(number)}\): "):
                save(checkpoints, 8)
        assert steps(copy) == ["4", "6"]
    save(checkpoints, 8)
    assert_same(checkpoints.newest_whole(society(0), pytest.fail)[1], society(8))


@pytest.mark.parametrize("arrays", [1, 20])
def test_a_disk_that_is_full_when_arrays_are_written(tmp_path, arrays):
    """The arrays are written by a library that is not Python: a limit on the size of files fails it for real.

    If its threads met a full disk, each would print a traceback, so room for all arrays is looked for before. A single
    one meets it here, as when another process fills the disk in between.
    """
    script = """
import resource, signal, sys
import mft_jax.runs.checkpoints
sys.path.insert(0, sys.argv[2])
from test_checkpoints import *
store = Store(sys.argv[1])
checkpoints = Checkpoints(store, NAME)
save(checkpoints, 2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
large = {"adapters": {f"p{n}": jax.random.normal(jax.random.key(n), (100, 100)) for n in range(int(sys.argv[3]))}}
if sys.argv[3] == "1":
    mft_jax.runs.checkpoints.check_space = lambda directory, size: None
try:
    checkpoints.save(4, large, finished=False, lora=LORA, cost=Cost(), names=())
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(steps(store))
save(checkpoints, 4)
assert_same(checkpoints.newest_whole(society(0), print)[1], society(4))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run"), str(pathlib.Path(__file__).parent), str(arrays)]
    uncached = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # whose files the limit would hit too
    out = subprocess.run(command, capture_output=True, text=True, env=uncached)
    path = tmp_path / "run" / NAME / "4"
    assert out.stdout == f"{path} cannot be written (File too large): check that disk and start again.\n['2']\n", (
        out.stderr
    )
    assert (out.stderr, out.returncode) == ("", 0)


def test_a_signal_while_saving_takes_effect_when_the_checkpoint_is_whole(copy, monkeypatch):
    real = ocp.Checkpointer.save

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(ocp.Checkpointer, "save", interrupted)
    checkpoints = Checkpoints(copy, NAME)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 8)
    assert steps(copy) == ["6", "8"]
    assert_same(checkpoints.newest_whole(society(0), pytest.fail)[1], society(8))


def test_what_a_kill_left_half_written_or_half_deleted(copy):
    directory = copy.path(NAME)
    half = directory / "8.orbax-checkpoint-tmp"
    shutil.copytree(directory / "6", half)
    (half / "_CHECKPOINT_METADATA").unlink()
    shutil.copytree(directory / "4", directory / "2")
    shutil.rmtree(directory / "2" / "optimizer")
    assert Checkpoints(copy, NAME, read_only=True).latest().step == 6
    assert half.exists()  # it may be another process's, at work
    checkpoints = Checkpoints(copy, NAME)
    assert steps(copy) == ["4", "6"]
    assert checkpoints.latest().step == 6
    save(checkpoints, 8)
    assert_same(checkpoints.restore(8, society(0)), society(8))
    assert steps(copy) == ["6", "8"]


def test_kill_9_while_saving(tmp_path):
    """Whatever is the latest checkpoint after a kill, it is whole."""
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from test_checkpoints import *
checkpoints = Checkpoints(Store(sys.argv[1]), NAME)
for step in range((checkpoints.latest_step or 0) + 1, 1000):
    print(step, flush=True)
    save(checkpoints, step)
"""
    store = Store(tmp_path / "run")
    command = [sys.executable, "-c", script, str(store.root), str(pathlib.Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started = [int(process.stdout.readline()) for _ in range(4)][-1]
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].split()
    started = int(rest[-1]) if rest else started
    info, state = Checkpoints(store, NAME).newest_whole(society(0), pytest.fail)
    assert info.step in (started - 1, started)
    assert_same(state, society(info.step))


def test_restores_onto_the_given_shardings(tmp_path):
    """Saved from 4 devices split over agents, restored split over half of them, and onto one."""
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from test_checkpoints import *
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = lambda n: Mesh(np.array(jax.devices()[:n]), ("agent",))
place = lambda tree, n: jax.tree.map(
    lambda leaf: jax.device_put(leaf, NamedSharding(mesh(n), PartitionSpec(*("agent",) * bool(leaf.ndim)))), tree)
store = Store(sys.argv[1])
checkpoints = Checkpoints(store, NAME)
checkpoints.save(3, place(society(3), 4), finished=True, lora=LORA, cost=Cost(), names=())
for n in (4, 2, 1):
    like = place(society(0), n)
    state = checkpoints.restore(3, like)
    assert_same(state, society(3))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, like)
    assert len(state["adapters"]["q_proj"]["a"].addressable_shards) == n
print("all", len(jax.devices()), Checkpoints(store, NAME, read_only=True).finished().step)
"""
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run"), str(pathlib.Path(__file__).parent)],
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
    with pytest.raises(ValueError, match="has a dot"):
        sha256_of({"model.layers": jnp.zeros(2)})


def test_the_checksum_of_arrays_sees_names_types_shapes_and_bytes():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    variants = (
        {"a": array},
        {"b": array},
        {"a": {"a": array}},
        {"a": array.reshape(3, 2)},
        {"a": array.view(np.int32)},
        {"a": array + np.float32(1e-6)},
        {"a": array, "b": np.zeros((), np.int32)},
    )
    assert len({sha256_of(variant) for variant in variants}) == len(variants)
    assert sha256_of({"a": jnp.asarray(array)}) == sha256_of({"a": np.asfortranarray(array)})


def test_the_reason_of_the_system_is_found_in_what_tensorstore_says():
    text = "RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']"
    assert arrays.refused_by_system(ValueError(text)).errno == errno.ENOSPC
    assert not arrays.is_out_of_memory(ValueError(text))
    assert arrays.refused_by_system(FileNotFoundError("no structure")) is None
