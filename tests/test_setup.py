"""Preparing a run from its configuration: dtypes, session, and the number of slots."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.base_model import CHECKPOINT
from mft_jax.config import ExperimentConfig, LoraConfig, ModelSource, SamplingConfig, TaskConfig
from mft_jax.errors import UserError
from mft_jax.models.society import Society
from mft_jax.session import dtypes
from mft_jax.setup import limit_slots, prepare
from tests.small_run import MODEL

SMALL = ExperimentConfig(model=ModelSource(path=str(MODEL)), task=TaskConfig(train_questions=2, eval_questions=2))


def mesh_on(platform):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize(
    ("platform", "source", "expected"),
    [
        ("cpu", ModelSource(), (None, "float32")),
        ("tpu", ModelSource(), ("bfloat16", "bfloat16")),
        ("gpu", ModelSource(param_dtype="float32"), ("float32", "bfloat16")),
        ("cpu", ModelSource(param_dtype="bfloat16", compute_dtype="bfloat16"), ("bfloat16", "bfloat16")),
    ],
)
def test_dtypes_depend_on_the_devices_unless_they_are_configured(platform, source, expected):
    stored, compute = dtypes(source, mesh_on(platform))
    assert (None if stored is None else stored.name, compute.name) == expected


def test_dtypes_of_weights_adapters_and_computation():
    types_of = dataclasses.replace(SMALL.model, param_dtype="bfloat16", compute_dtype="float32")
    setup = prepare(dataclasses.replace(SMALL, model=types_of, lora=LoraConfig(dtype="bfloat16")))
    assert {leaf.dtype for leaf in jax.tree.leaves(setup.session.base)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(setup.fresh_society().stacked.weights)} == {jnp.dtype("bfloat16")}
    assert setup.session.programs.dtype == "float32"


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 300}))
    config = dataclasses.replace(SMALL, model=ModelSource(path=str(tmp_path / "model")))
    with pytest.raises(UserError, match="the tokenizer has 342 tokens, but the embedding only 300 rows"):
        prepare(config)


def test_a_lora_target_that_the_model_does_not_have(answering):
    config = dataclasses.replace(SMALL, lora=LoraConfig(targets=("qkv_proj",)))
    with pytest.raises(UserError, match=r"lora\.targets has qkv_proj, which this model does not have; it has q_proj"):
        prepare(config, answering)


def test_a_session_of_another_model_is_rejected(answering):
    other = dataclasses.replace(SMALL, model=ModelSource(compute_dtype="bfloat16"))
    with pytest.raises(UserError, match="open another session"):
        prepare(other, answering)


def test_a_session_is_shared_by_runs_with_different_seeds(answering):
    one, two = (prepare(dataclasses.replace(SMALL, seed=seed), answering) for seed in (0, 1))
    assert one.session is two.session is answering
    assert one.task.train != two.task.train
    a, b = (setup.fresh_society().stacked.weights["q_proj"]["a"] for setup in (one, two))
    assert (a != b).any()


@pytest.mark.parametrize(
    ("chunk", "questions", "data", "expected"),
    [
        (100, (500, 500), 4, (64, 16)),
        (20, (500, 500), 1, (20, 16)),
        (100, (0, 9), 1, (9, 9)),
        (100, (9, 2), 4, (12, 12)),
    ],
)
def test_no_more_slots_than_questions(chunk, questions, data, expected):
    task = types.SimpleNamespace(train=range(questions[0]), eval=range(questions[1]))
    most = max(len(task.train), len(task.eval))
    settings = limit_slots(SamplingConfig(chunk_questions=chunk), most, types.SimpleNamespace(shape={"data": data}))
    assert (settings.rows, settings.prefill_rows) == expected


def test_a_run_of_few_questions_has_few_slots(answering):
    setup = prepare(SMALL, answering)
    assert setup.debate(Society(), name="mine").sampler.config.rows == 2


def test_new_adapters_are_compiled_once(answering, caplog):
    """The runs of a grid start from new adapters again and again, in one process."""
    first = answering.fresh_society(("ann", "bob"), LoraConfig(rank=3), 0)
    with jax.log_compiles():
        second = answering.fresh_society(("cy", "dan"), LoraConfig(rank=3), 1)
        assert "init_society" not in caplog.text
        other = answering.fresh_society(("cy", "dan"), LoraConfig(rank=2), 1)
        assert "init_society" in caplog.text
    shapes = [society.stacked.weights["q_proj"]["a"].shape for society in (first, second, other)]
    assert shapes == [(2, 1, 32, 3), (2, 1, 32, 3), (2, 1, 32, 2)]
