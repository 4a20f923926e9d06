"""A plan of a small model on this CPU: its programs are those of a run, and its numbers agree with other calculations."""

import dataclasses
import io
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console

from mft_jax.config import ModelSource
from mft_jax.errors import UserError
from mft_jax.methods import make_method
from mft_jax.metrics.flops import training_flops
from mft_jax.models.config import read_model_config
from mft_jax.plan import layers
from mft_jax.plan.chips import CHIPS, SLICES
from mft_jax.plan.compiled import DoesNotFit, _sizes_in
from mft_jax.plan.counting import Counts
from mft_jax.plan.figures import Figures
from mft_jax.plan.models import SHIPPED, read_model
from mft_jax.plan.plan import make_plan
from mft_jax.plan.table import plan_as_dict, render_plan
from mft_jax.plan.target import Target, check_mesh, find_target
from mft_jax.plan.topology import find_slice
from mft_jax.plan.workload import row_targets
from tests.plan.conftest import SPEEDS, on_mesh


def test_what_is_compiled(planned):
    plan, said = planned
    assert said == ["decode, 2 layers", "prefill, 2 layers", "train, 2 layers"]
    assert plan.layers == (2,)
    assert [(own.name, own.tokens) for own in plan.programs] == [
        ("prefill", 3 * 2 * 96), ("decode", 3 * 4), ("train", 6 * 2 * 128)
    ]  # fmt: skip


def test_the_flops_of_training_are_those_of_the_ledger(planned):
    """In every row one dialogue without padding, with as many targets as there is room for. Attention is computed in one chunk,
    so that the scores that are masked cost as much as the others."""
    plan, _ = planned
    model, _ = read_model(plan.config.model)
    rows, tokens = 6 * 2, 128
    method = make_method("multiagent_ft", plan.config)
    targets = rows * row_targets(plan.config, method, plan.lengths)
    matmuls = training_flops(model, plan.config.lora, lengths=[1] * rows * tokens, targets=targets)
    attention = 12 * model.head_dim * model.heads * rows * model.layers * (tokens * tokens)
    assert plan.programs[2].figures.counts.flops == pytest.approx(matmuls + attention, rel=0.03)


def test_the_memory_is_that_of_the_arrays(planned, planned_config):
    plan, _ = planned
    model, _ = read_model(planned_config.model)
    kinds = plan.programs[1].figures.memory
    column = 2 * model.layers * model.kv_heads * model.head_dim * 4
    rows = 3 * 4
    columns = int(plan.programs[1].case.split(", ")[1].split()[0])
    assert 0 < kinds["cache"] - rows * columns * column < 1000 + rows * 16 * 4
    adapters = plan.programs[2].figures.memory["adapters"]
    assert plan.programs[2].figures.memory["optimizer"] == pytest.approx(2 * adapters, rel=1e-3)
    sampling, finetuning = plan.phases
    assert sampling.kinds["adapters"] == pytest.approx(3 * adapters, rel=1e-3)
    assert finetuning.kinds["adapters"] == pytest.approx(4 * adapters, rel=1e-3)
    assert plan.fits
    # The longest prompt: a question of twice the mean, answers and a summary of 16 tokens, or two answers to summarize.
    assert plan.extreme.kinds["cache"] / sampling.kinds["cache"] == pytest.approx(max(1, 144 / columns))


def test_the_second_plan_compiles_nothing(planned_config, target, monkeypatch, tmp_path):
    """It reads what was kept, unless that is damaged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = dataclasses.replace(planned_config, method="debate")  # without adapters, and without finetuning
    first = make_plan(config, target)
    files = sorted((tmp_path / "mft_jax" / "plans").iterdir())
    assert len(files) == 2
    files[0].write_bytes(b"no gzip")
    assert make_plan(config, target) != first  # its program was compiled again, in another time
    compiled = []
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *given, **named: compiled.append(given))
    again = make_plan(config, target)
    assert compiled == []
    assert [own.figures.counts for own in again.programs] == [own.figures.counts for own in first.programs]
    assert [own.name for own in again.phases] == ["sampling"]


def test_the_price(planned):
    plan, _ = planned
    assert plan.seconds == pytest.approx(sum(stage.seconds for stage in plan.stages))
    hours = (plan.seconds + plan.compile_seconds) / 3600
    found = json.loads(json.dumps(plan_as_dict(plan)))
    assert found["estimate"]["device_hours"] == pytest.approx(hours)
    assert found["estimate"]["dollars_on_demand"] == pytest.approx(2 * hours)
    assert found["estimate"]["dollars_spot"] == pytest.approx(hours)
    assert found["fits"] is True
    assert found["programs"]["train"]["flops"] == plan.programs[2].figures.counts.flops
    assert [stage["name"] for stage in found["stages"]][-1] == "iteration 2: evaluation"


def rendered(plan):
    out = io.StringIO()
    Console(file=out, width=80).print(render_plan(plan))
    return out.getvalue()


def test_what_a_person_reads(planned, planned_config, target):
    plan, _ = planned
    text = rendered(plan)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "All times and prices are estimates." in " ".join(text.split())
    assert "Compiled with all 2 layers." in text
    assert "2 x finetuning" in text
    small = dataclasses.replace(target, memory=plan.phases[1].needed - 1e6)
    tight = make_plan(planned_config, small)
    said = " ".join(rendered(tight).split())
    assert "finetuning DOES NOT FIT: 0.0 GB too much. Change: finetuning.remat true" in said
    assert not tight.fits


def test_deep_models_are_counted_from_few_layers():
    model = read_model_config(SHIPPED / "meta-llama/Meta-Llama-3-8B-Instruct")
    assert layers.compiled_layers(model) == (2, 4)
    measured = lambda own: Figures(Counts(flops=100 + 7 * own.layers, sent={"all-reduce": 3.0 * own.layers}),
                                   {"weights": 50.0 + own.layers, "temporaries": 9.0 - own.layers}, 2.0 * own.layers)  # fmt: skip
    found = layers.of_all_layers(model, measured)
    assert found.counts.flops == 100 + 7 * 32
    assert found.counts.sent == {"all-reduce": 96.0}
    assert found.memory == {"weights": 82.0, "temporaries": 0.0}
    assert found.compile_seconds == 64.0


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ((None,) * 5, (2, 4)),
        ((4, None) * 13, (2, 4)),
        (((4,) * 5 + (None,)) * 4, (6, 12)),
        ((None,) * 4, (4,)),
        ((4,) * 9 + (None,), (10,)),
    ],
)
def test_the_numbers_of_layers_follow_the_windows(windows, expected):
    model = read_model_config(SHIPPED / "meta-llama/Meta-Llama-3-8B-Instruct")
    assert layers.compiled_layers(dataclasses.replace(model, layers=len(windows), windows=windows)) == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("microsoft/Phi-3-mini-128k-instruct", 3_821_079_552),
    ],
)
def test_the_models_of_the_paper_have_their_published_size(name, parameters):
    from mft_jax.models.decoder import build

    model, stored = read_model(ModelSource(path=name))
    assert stored == np.float32
    leaves = jax.tree.leaves(build(model)[1])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters


def test_a_model_that_is_nowhere():
    with pytest.raises(
        UserError, match=r"There is no config\.json of nobody/nothing, .* meta-llama/Meta-Llama-3-8B-Inst"
    ):
        read_model(ModelSource(path="nobody/nothing"))


def test_slices():
    """v5e and v6e are named by their chips, v5p by its cores, two on a chip."""
    assert {name: own.count for name, own in SLICES.items() if own.count in (4, 8)} == {
        "v5e-4": 4, "v5e-8": 8, "v5p-8": 4, "v5p-16": 8, "v6e-4": 4, "v6e-8": 8
    }  # fmt: skip
    for own in SLICES.values():
        assert math.prod(map(int, own.chip.slices[own.count].split("x"))) == own.count
    assert {chip.name: chip.on_demand for chip in CHIPS} == {"v5e": 1.20, "v5p": 4.20, "v6e": 2.70}
    with pytest.raises(UserError, match=r"There is no topology 'v5e-9'\. v5e: v5e-1, v5e-4, v5e-8.* here: the present"):
        find_slice("v5e-9")


def test_a_price_of_ones_own(planned_config):
    here = find_target("here", 3.0)
    assert (here.on_demand, here.spot, here.is_listed) == (3.0, 1.5, False)
    assert here.speeds.flops > 1e8
    assert here.memory * len(here.devices) > 5e8


def test_meshes_that_do_not_fit(planned_config, target):
    model, _ = read_model(planned_config.model)
    eight = Target("v5e-8", [None] * 8, SPEEDS, 1e9, 1.2, 0.6)
    with pytest.raises(UserError, match=r"The mesh 1x1x1 .* has 1 devices, but v5e-8 has 8 chips, .* --mesh\.model 4"):
        check_mesh(planned_config, model, eight)
    with pytest.raises(UserError, match=r"splits the weights over 8 devices, but the model has 4 attention heads"):
        check_mesh(on_mesh(planned_config, 1, 1, 8), model, eight)
    check_mesh(on_mesh(planned_config, 1, 2, 4), model, eight)
    with pytest.raises(UserError, match=r"debate\.agents is 3, expected a multiple of mesh\.agent = 2"):
        make_plan(on_mesh(planned_config, 2, 1, 4), eight)


def test_a_method_that_finetunes_nothing_is_one_stage(planned_config, target):
    plan = make_plan(dataclasses.replace(planned_config, method="debate", baselines=()), target)
    assert [stage.name for stage in plan.stages] == ["debate (untuned)"]
    assert plan.seconds > 0


def test_programs_that_the_compiler_refuses():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (400.50G) exceeds "
    )
    assert _sizes_in(message + "available HBM (15.75G).") == (400.5 * 2**30, 15.75 * 2**30)
    assert _sizes_in("RESOURCE_EXHAUSTED: Used 18.5G of 15.75G hbm. Exceeded") == (18.5 * 2**30, 15.75 * 2**30)
    assert _sizes_in("INTERNAL: something else") is None
    text = str(DoesNotFit(20e9, 16e9, "train with 4 layers"))
    assert text.startswith(
        "The compiler refuses train with 4 layers: it needs 20.0 GB of the memory of a device, 4.0 GB more"
    )
