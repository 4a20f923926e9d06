"""A small model without weights, a plan of it on one CPU device, and a figure with round numbers."""

import dataclasses
import json

import jax
import pytest

from mft_jax.config import ExperimentConfig, FinetuningConfig, ModelSource, SamplingConfig, TaskConfig
from mft_jax.plan.counting import Speeds
from mft_jax.plan.plan import make_plan
from mft_jax.plan.target import Target
from tests.conftest import TINY

# Round numbers: 1 FLOP takes 1 ns, a byte of memory 10 ns, a byte over a link 100 ns.
SPEEDS = Speeds(flops=1e9, memory_bytes=1e8, link_bytes=1e7, cycles=1e6, hop_seconds=0.0)


@pytest.fixture(scope="session")
def planned_config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(TINY))
    return ExperimentConfig(
        iterations=2,
        model=ModelSource(path=str(directory)),
        task=TaskConfig(train_questions=20, eval_questions=10),
        sampling=SamplingConfig(rows=4, prefill_rows=2, max_new_tokens=16, chunk_questions=10),
        finetuning=FinetuningConfig(batch_rows=2, row_tokens=128),
    )


@pytest.fixture(scope="session")
def target():
    return Target("here", jax.devices("cpu")[:1], SPEEDS, 1e9, 2.0, 1.0)


@pytest.fixture(scope="session")
def plan_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(plan_cache, monkeypatch):
    """Programs are kept for the tests of one session only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(plan_cache))


@pytest.fixture(scope="session")
def planned(planned_config, target, plan_cache):
    """(the plan, the names of what was compiled)"""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(plan_cache))
        return make_plan(planned_config, target, say=said.append), said


def on_mesh(config, agent, data, model):
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, agent=agent, data=data, model=model))
