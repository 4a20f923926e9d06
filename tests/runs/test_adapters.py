import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.config import ExperimentConfig, LoraConfig
from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost
from mft_jax.models.config import parse_model_config
from mft_jax.runs import layout
from mft_jax.runs.adapters import (
    chosen_iteration,
    finished_iterations,
    read_adapters,
    with_imported,
    write_imported,
)
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.lock import InUse
from tests.runs.disk import FAULTS, fail_with

MODEL = parse_model_config(
    {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
)
LORA = LoraConfig(rank=4, alpha=6.0, targets=("q_proj", "v_proj"), dtype="bfloat16")
NAMES = ("writer", "reviewer", "judge")
CONFIG = ExperimentConfig()


def weights(seed: int = 0) -> dict:
    """Stacked weights of three adapters."""
    draw = lambda *shape: jnp.asarray(np.random.default_rng(seed).normal(size=(3, 2, *shape)), jnp.bfloat16)
    return {"q_proj": {"a": draw(32, 4), "b": draw(4, 32)}, "v_proj": {"a": draw(32, 4), "b": draw(4, 16)}}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """Iterations 1 and 2 are finished, the third is at work."""
    run = RunDirectory(tmp_path / "run")
    for k in (1, 2, 3):
        Checkpoints(run.store, layout.checkpoint(k)).save(
            5, {"adapters": weights(k)}, finished=k < 3, lora=LORA, cost=Cost(), names=NAMES
        )
    return run


def test_which_iterations_are_finished(run):
    assert finished_iterations(run, 4) == [1, 2]
    assert (chosen_iteration(run, 4, None), chosen_iteration(run, 4, 1)) == (2, 1)
    with pytest.raises(UserError, match="has no finished iteration 3: there are 1, 2"):
        chosen_iteration(run, 4, 3)
    with pytest.raises(UserError, match="has no finished iteration yet"):
        chosen_iteration(RunDirectory(run.path / "none"), 4, None)


def test_adapters_are_read_by_their_names(run):
    lora, found = read_adapters(run, 2, MODEL)
    assert lora == LORA
    assert tuple(found) == NAMES
    for index, name in enumerate(NAMES):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], weights(2))
        assert jax.tree.structure(found[name]) == jax.tree.structure(one)
        for left, right in zip(jax.tree.leaves(found[name]), jax.tree.leaves(one), strict=True):
            assert left.dtype == right.dtype
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_adapters_of_another_model_are_refused(run):
    with pytest.raises(UserError, match=r"q_proj\.a is bfloat16\[3, 2, 32, 4\], expected bfloat16\[3, 3, 32, 4\]"):
        read_adapters(run, 2, dataclasses.replace(MODEL, layers=3))


def test_a_damaged_checkpoint_is_said_and_left_alone(run):
    (run.checkpoint(2) / "5" / "metadata" / "metadata").write_text("{}")
    with pytest.raises(UserError, match="checkpoint/5 is damaged"):
        chosen_iteration(run, 4, None)
    assert run.checkpoint(2).exists()


def test_imported_adapters_are_what_a_run_begins_with(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "next")
    write_imported(run, NAMES, LORA, weights())
    assert sorted(path.name for path in run.initial.iterdir()) == ["0"]
    assert not run.store.is_held()
    config = with_imported(CONFIG, run)
    assert config.lora == LoraConfig(rank=4, alpha=6.0, targets=("q_proj", "v_proj"), dtype=CONFIG.lora.dtype)
    found = Checkpoints(run.store, layout.INITIAL, read_only=True).restore(0, {"adapters": weights(1)})["adapters"]
    assert np.array_equal(found["q_proj"]["a"], weights()["q_proj"]["a"])
    with pytest.raises(UserError, match="holds imported adapters already"):
        write_imported(run, NAMES, LORA, weights())
    assert run.take(config) == "new"
    with pytest.raises(InUse):
        write_imported(RunDirectory(run.path), NAMES, LORA, weights())


def test_imported_adapters_that_are_missing_or_damaged(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.initial.mkdir(parents=True)
    with pytest.raises(UserError, match="holds no imported adapters: delete it"):
        with_imported(CONFIG, run)
    run.initial.rmdir()
    write_imported(run, NAMES, LORA, weights())
    (run.initial / "0" / "metadata" / "metadata").write_text("{}")
    with pytest.raises(UserError, match=r"initial/0 is damaged .*: delete .*/initial and import the adapters again"):
        with_imported(CONFIG, run)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_refuses_leaves_no_directory(tmp_path, monkeypatch, fault):
    number, functions, reason, _ = FAULTS[fault]
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        fail_with(patch, number, functions)
        with pytest.raises(UserError, match=f"cannot be written .*{reason}"):
            write_imported(run, NAMES, LORA, weights())
    assert not run.path.exists()
    write_imported(run, NAMES, LORA, weights())
    assert run.has_imported
