"""The search for settings that fit: what is searched, by which figures, and what is done when the compiler disagrees."""

import dataclasses

import jax
import pytest

from mft_jax.config import FinetuningConfig, MeshConfig, ModelSource
from mft_jax.errors import UserError
from mft_jax.metrics.flops import matmul_parameters
from mft_jax.models.config import read_model_config
from mft_jax.plan import fit
from mft_jax.plan.chips import CHIPS
from mft_jax.plan.compiled import DoesNotFit
from mft_jax.plan.fit import candidates, changes, choose_mesh, fit_plan, possible_meshes
from mft_jax.plan.lengths import assumed_lengths
from mft_jax.plan.models import SHIPPED, read_model
from mft_jax.plan.rough import Rough, Shares
from mft_jax.plan.target import Target
from tests.plan.conftest import SPEEDS

LLAMA = read_model_config(SHIPPED / "meta-llama/Meta-Llama-3-8B-Instruct")


def test_meshes_divide_agents_rows_and_heads(planned_config):
    model, _ = read_model(planned_config.model)  # 3 agents, 2 rows in a batch, 4 heads
    found = {(own.agent, own.data, own.model) for own in possible_meshes(planned_config, model, 12)}
    assert found == {(3, 1, 4), (3, 2, 2)}
    assert list(possible_meshes(planned_config, model, 16)) == []


def test_the_fastest_comes_first_and_all_fit(planned_config):
    four = Target("x", jax.devices("cpu")[:4], SPEEDS, 1e9, 1.0, 0.5)
    found = candidates(planned_config, four, assumed_lengths(planned_config))
    assert [own.seconds for own in found] == sorted(own.seconds for own in found)
    assert {own.config.mesh.agent * own.config.mesh.data * own.config.mesh.model for own in found} == {4}
    assert {own.config.finetuning.remat for own in found} == {False, True}
    assert {own.config.finetuning.agents_at_once for own in found} == {1, 2, 3, None}
    assert max(own.config.sampling.rows for own in found) <= planned_config.sampling.chunk_questions
    assert found[0].config.sampling.rows > 2  # every token of few rows reads the weights as often as one of many
    small = dataclasses.replace(four, memory=3e6)
    fewer = [own.config for own in candidates(planned_config, small, assumed_lengths(planned_config))]
    assert 0 < len(fewer) < len(found)
    # All agents at once, with their activations in memory, do not fit where one device holds all rows of a batch.
    largest = [own for own in found if own.config.finetuning.agents_at_once is None and own.config.mesh.data == 1]
    assert any(own.config not in fewer for own in largest)
    assert candidates(planned_config, dataclasses.replace(four, memory=3e5), assumed_lengths(planned_config)) == []


def test_the_best_that_the_compiler_accepts(planned_config, planned, target, monkeypatch):
    """The first is refused, the second does not fit with what else a run keeps, the third does."""
    plan, tried = planned[0], []

    def make_plan(config, *given, **named):
        tried.append(config)
        if len(tried) == 1:
            raise DoesNotFit(2.0, 1.0)
        small = dataclasses.replace(plan.phases[0], available=0.0)
        return dataclasses.replace(plan, config=config, phases=plan.phases if len(tried) > 2 else (small,))

    monkeypatch.setattr(fit, "make_plan", make_plan)
    best = [own.config for own in candidates(planned_config, target, assumed_lengths(planned_config))]
    assert fit_plan(planned_config, target).config == best[2]
    assert tried == best[:3]
    monkeypatch.setattr(fit, "COMPILED", 2)
    tried.clear()
    with pytest.raises(
        UserError, match="No setting of rows, mesh, agents at once and remat fits here: use a slice with more"
    ):
        fit_plan(planned_config, target)


def test_the_changes_as_options(planned_config):
    changed = dataclasses.replace(
        planned_config,
        mesh=MeshConfig(agent=1, data=2, model=4),
        finetuning=dataclasses.replace(planned_config.finetuning, remat=True, agents_at_once=2),
        sampling=dataclasses.replace(planned_config.sampling, rows=8, prefill_rows=4),
    )
    assert changes(planned_config, changed) == [
        "--sampling.rows 8", "--sampling.prefill-rows 4", "--finetuning.agents-at-once 2", "--finetuning.remat",
        "--mesh.data 2", "--mesh.model 4",
    ]  # fmt: skip
    assert "--finetuning.no-remat" in changes(changed, planned_config)


def test_rough_figures_by_hand():
    """Llama 3 8B on v5e-8, mesh 1 x 2 x 4: each chip has a quarter of the weights and half of the rows."""
    v5e = CHIPS[0].speeds
    parameters = matmul_parameters(LLAMA)
    shares = Shares(weights=4.0e9, adapter=168e6, lane=84e6, row=2 * 2 * 2 * 32 * 128, agent=1, data=2, model=4)
    rough = Rough(LLAMA, parameters, shares, v5e)
    decode = rough.decode(3, 32, 2048)
    assert decode.memory["cache"] == 3 * 16 * 2048 * 32768
    assert decode.counts.bytes == 4.0e9 + 3 * 84e6 + decode.memory["cache"]
    links = (
        2 * 32 * 6 * 1e-6
    )  # 64 all-reduces over a ring of 4 chips, too small for more than the time of their 6 steps each
    assert decode.counts.seconds == pytest.approx(decode.counts.bytes / 819e9 + links, rel=0.05)
    tuning = FinetuningConfig(batch_rows=2, row_tokens=4096, remat=True, agents_at_once=2)
    train = rough.train(6, tuning, 2048)
    tokens, head = 6 * 4096, 4 * 6 * 2048 * 4096 * 128256 / 4
    assert train.counts.flops == pytest.approx(6 * tokens * parameters / 4 + head)
    assert 3e9 < train.memory["temporaries"] < 5e9  # the compiler: 1.5 GB with 2 layers, and 0.08 GB for each more
    kept = rough.train(6, dataclasses.replace(tuning, remat=False), 2048).memory["temporaries"]
    sums = rough.train(6, dataclasses.replace(tuning, keep_sums=True), 2048).memory["temporaries"]
    assert sums - train.memory["temporaries"] == 32 * 2 * 4096 * 4096 * 2  # the compiler: 2.3e9
    assert 25e9 < kept < 35e9  # the compiler: 0.96 GB for each layer


def test_a_mesh_is_chosen_when_it_is_asked_for(planned_config):
    """Llama-3-8B on four devices, 3 agents, 4 rows and 2 in a batch: the axes (1, 2, 2) and (1, 1, 4) divide them."""
    assert choose_mesh(planned_config) == planned_config
    given = dataclasses.replace(planned_config, mesh=MeshConfig(data=2, auto=True))
    assert choose_mesh(given).mesh == MeshConfig(data=2)
    source = ModelSource(path="meta-llama/Meta-Llama-3-8B-Instruct", param_dtype="bfloat16", compute_dtype="bfloat16")
    asked = dataclasses.replace(planned_config, model=source, mesh=MeshConfig(auto=True))
    four = Target("x", jax.devices("cpu")[:4], CHIPS[0].speeds, 32e9, 1.0, 0.5)
    chosen = lambda **changes: choose_mesh(asked, dataclasses.replace(four, **changes)).mesh
    assert chosen() == MeshConfig(model=4)  # few rows: reading the weights takes longest
    slow = dataclasses.replace(CHIPS[0].speeds, link_bytes=1e6)
    assert chosen(speeds=slow) == MeshConfig(data=2, model=2)
    assert chosen(speeds=slow, memory=16e9) == MeshConfig(model=4)  # half of the weights and an optimizer do not fit
    assert chosen(devices=four.devices[:2]) in (MeshConfig(data=2), MeshConfig(model=2))
    with pytest.raises(
        UserError, match=r"^mesh\.auto: no mesh of the 4 devices that divides .* fits their memory: give"
    ):
        chosen(memory=8e9)


def test_the_mesh_of_the_present_devices(planned_config):
    """Four of a CPU; always the same one."""
    asked = dataclasses.replace(planned_config, mesh=MeshConfig(auto=True))
    assert choose_mesh(asked) == choose_mesh(asked)
    assert choose_mesh(asked).mesh.devices == 4


def test_devices_that_no_mesh_can_use_stay_idle(planned_config):
    """Three of four, because neither the agents nor the rows nor the heads can be split in four or two."""
    odd = dataclasses.replace(
        planned_config,
        mesh=MeshConfig(auto=True),
        sampling=dataclasses.replace(planned_config.sampling, rows=3, prefill_rows=3),
        finetuning=dataclasses.replace(planned_config.finetuning, batch_rows=3),
    )
    one_head = dataclasses.replace(read_model(planned_config.model)[0], heads=1, kv_heads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "read_model", lambda source: (one_head, jax.numpy.float32))
        assert choose_mesh(odd).mesh.devices == 3
