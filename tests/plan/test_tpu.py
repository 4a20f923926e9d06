"""Plans for TPU slices by their real compiler, which needs no TPU."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mft_jax.config import MeshConfig, ModelSource, load_config, to_yaml
from mft_jax.methods import make_method
from mft_jax.models.lora import resolve_targets
from mft_jax.parallel.mesh import make_mesh, sharding
from mft_jax.plan.cases import Cases, Sizes
from mft_jax.plan.chips import CHIPS, SLICES
from mft_jax.plan.compiled import compile_program
from mft_jax.plan.counting import count
from mft_jax.plan.figures import measure
from mft_jax.plan.hlo import parse_module
from mft_jax.plan.models import read_model
from mft_jax.plan.target import find_target
from mft_jax.plan.topology import prepare_environment
from mft_jax.programs.choose_split import choose_split
from tests.plan.conftest import on_mesh

pytestmark = pytest.mark.tpu
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_the_command(planned_config, tmp_path):
    """A whole plan of a tiny model, in a process of its own. Nothing of libtpu's messages is seen."""
    (tmp_path / "config.yaml").write_text(to_yaml(on_mesh(planned_config, 1, 2, 2)))
    command = [sys.executable, "-m", "mft_jax", "plan", str(tmp_path / "config.yaml"), "--topology", "v5e-4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split("\n") == [*(f"compiling {name}, 2 layers" for name in ("decode", "prefill", "train")), ""]
    found = json.loads(done.stdout)
    assert (found["topology"], found["devices"], found["fits"]) == ("v5e-4", 4, True)
    assert found["memory"]["sampling"]["available"] == int(15.75 * 2**30)
    # In each of 2 layers one after attention and one after the MLP, which the last layer needs for no cache.
    for name, least in (("decode", 4), ("prefill", 3), ("train", 8)):
        program = found["programs"][name]
        assert program["collectives"]["all-reduce"] >= least
        assert program["flops"] > 0
        assert program["seconds"] > 0


@pytest.fixture
def llama(planned_config):
    """(cases, model, target): Llama-3-8B on v5e-8, 3 agents x 32 rows with 2,048 columns, prompts of 2,048 tokens."""
    prepare_environment("v5e-8")
    source = ModelSource(path="meta-llama/Meta-Llama-3-8B-Instruct")
    model, stored = read_model(source)
    sampling = dataclasses.replace(planned_config.sampling, max_new_tokens=1024)
    config = on_mesh(dataclasses.replace(planned_config, model=source, sampling=sampling), 1, 2, 4)
    target = find_target("v5e-8")
    sizes = Sizes(lanes=3, rows=32, prefill_rows=4, columns=2048, prompt_tokens=2048, row_targets=64)
    return (
        Cases(config, make_method("multiagent_ft", config), make_mesh(config.mesh, target.devices), stored, sizes),
        model,
        target,
    )


@pytest.mark.slow
def test_a_decode_step_of_llama_3_8b(llama):
    """All 32 layers. Each chip reads a quarter of the weights and its part of the cache, and writes little more than a column."""
    cases, model, target = llama
    found = measure(cases.decode(model), target.speeds, "v5e-8")
    weights, cache, adapters = 8_030_261_248 * 2 / 4, 2 * 32 * 48 * 2048 * 2 * 128 * 2, found.memory["adapters"]
    assert found.memory["weights"] == pytest.approx(weights, rel=0.001)
    assert found.memory["cache"] == pytest.approx(cache, rel=0.01)
    assert found.memory["temporaries"] < 0.152e9  # most of it is the adapters in another layout
    embedding = 128256 * 4096 * 2 / 4  # of which only the rows of the tokens are read
    assert found.counts.bytes_read == pytest.approx(weights - embedding + cache + adapters, rel=0.05)
    assert found.counts.bytes_written < 32 * 2e6  # with the logits, of 6 MB
    # Two in each layer, and those of the embedding, of the free slots and of the choice of a token.
    assert found.counts.collectives["all-reduce"] == pytest.approx(2 * 32 + 16)
    assert set(found.counts.collectives) == {"all-reduce", "all-gather"}
    assert found.counts.collectives["all-gather"] < 2
    assert 3 * 32 / 8 / found.counts.step_seconds(target.speeds) > 1100  # tokens per second and chip


@pytest.mark.slow
def test_prefill_of_llama_3_8b(llama):
    """Agent by agent. In each of 32 layers two all-reduces and no other collective, and no array of scores, of 270 MB."""
    cases, model, target = llama
    found = measure(cases.prefill(model), target.speeds, "v5e-8")
    assert found.counts.collectives == {"all-reduce": 3 * (2 * 32 + 1)}  # and that of the embedding, for each agent
    # Of the hidden states of an agent's tokens on this chip, in bfloat16. Together, three agents would send as many bytes.
    assert found.counts.sent["all-reduce"] == pytest.approx(
        3 * (2 * 32 + 1) * 2 * 2048 * 4096 * 2 * 2 * 3 / 4, rel=0.01
    )
    tokens, parameters = 3 * 4 * 2048 / 8, 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
    assert found.counts.flops == pytest.approx(2 * parameters * tokens, rel=0.04)  # the adapters are the rest
    assert found.memory["temporaries"] < 0.3e9  # less than the keys and values of all prompts, which have 0.4e9
    assert found.counts.step_seconds(target.speeds) < 0.5
    assert found.compile_seconds < 90  # one layer; all 32, one after the other, take minutes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "topology", "mesh", "written"),
    [
        # On v5p the results of matmuls are written too (docs/performance.md): of 96 rows, and of 36.
        ("mistral_gsm8k", "v5p-8", (1, 1, 4), 11e6),
        ("llama3_math", "v5p-16", (1, 2, 4), 4.2e6),
        ("phi3_math", "v6e-8", (1, 2, 4), 2e6),
    ],
)
def test_a_layer_of_a_decode_step(name, topology, mesh, written):
    """The difference of four and two layers, with the rows of the configurations and 2,048 columns.

    Phi-3 has fused projections, and heads that fill the lanes of a TPU only side by side.
    """
    prepare_environment(topology)
    config = on_mesh(load_config(CONFIGS / f"{name}.yaml"), *mesh)
    model, stored = read_model(config.model)
    lora = dataclasses.replace(config.lora, targets=resolve_targets(model, config.lora.targets))
    config, target = dataclasses.replace(config, lora=lora), find_target(topology)
    sizes = Sizes(lanes=3, rows=config.sampling.rows, prefill_rows=4, columns=2048, prompt_tokens=1024, row_targets=64)
    cases = Cases(config, make_method("multiagent_ft", config), make_mesh(config.mesh, target.devices), stored, sizes)
    few = lambda layers: dataclasses.replace(model, layers=layers, windows=model.windows[:layers])
    two, four = (measure(cases.decode(few(layers)), target.speeds, topology) for layers in (2, 4))
    layer = lambda figure: (figure(four) - figure(two)) / 2
    stored_bytes = sum(layer(lambda found, kind=kind: found.memory[kind]) for kind in ("weights", "cache", "adapters"))
    # As many bytes as without padding: of both keys and values, for the rows and kv heads of a chip.
    rows, kv_heads = 3 * config.sampling.rows / mesh[1], model.kv_heads / mesh[2]
    cache = 2 * rows * kv_heads * 2048 * model.head_dim * 2
    assert layer(lambda found: found.memory["cache"]) == pytest.approx(cache, rel=0.001)
    assert layer(lambda found: found.counts.bytes_read) < 1.15 * stored_bytes
    assert layer(lambda found: found.counts.bytes_written) < written
    assert layer(lambda found: found.memory["temporaries"]) < 0.03 * stored_bytes
    assert layer(lambda found: found.counts.collectives["all-reduce"]) == 2
    others = lambda found: sum(found.counts.collectives.values()) - found.counts.collectives["all-reduce"]
    assert layer(others) == pytest.approx(0)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "row_tokens", "at_once"), [(2, 4096, 2), (1, 2048, 6)])
def test_a_layer_of_a_training_step(planned_config, rows, row_tokens, at_once):
    """The difference of eight and four layers of Llama-3-8B on v5e-8, six adapters: four sums over chips, and nothing else."""
    prepare_environment("v5e-8")
    config = on_mesh(load_config(CONFIGS / "llama3_math.yaml"), 1, 2, 4)
    tuning = dataclasses.replace(
        config.finetuning, batch_rows=rows, row_tokens=row_tokens, agents_at_once=at_once, keep_sums=True
    )
    model, stored = read_model(config.model)
    lora = dataclasses.replace(config.lora, targets=resolve_targets(model, config.lora.targets))
    config, target = dataclasses.replace(config, lora=lora, finetuning=tuning), find_target("v5e-8")
    sizes = Sizes(lanes=3, rows=32, prefill_rows=4, columns=2048, prompt_tokens=1024, row_targets=row_tokens // 8)
    cases = Cases(config, make_method("multiagent_ft", config), make_mesh(config.mesh, target.devices), stored, sizes)
    few = lambda layers: dataclasses.replace(model, layers=layers, windows=model.windows[:layers])
    four, eight = (measure(cases.train(few(layers)), target.speeds, "v5e-8") for layers in (4, 8))
    layer = lambda figure: (figure(eight) - figure(four)) / 4
    for kind in set(eight.counts.collectives):
        expected = 4 * 6 // at_once if kind == "all-reduce" else 0  # for each group of adapters
        assert layer(lambda found, kind=kind: found.counts.collectives.get(kind, 0)) == pytest.approx(expected)
    # Forward, again in the backward pass, and the gradient of each activation; a row that two chips share is computed by both.
    tokens = 6 * rows * row_tokens / min(rows, 2) / 4
    parameters = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336
    assert 0.85 < layer(lambda found: found.counts.flops) / (6 * parameters * tokens) < 1.15


def test_the_choice_of_a_token():
    """Of 96 rows with the vocabulary of Llama-3 on eight chips: little more work and traffic than the most likely token."""
    prepare_environment("v5e-8")
    target = find_target("v5e-8")
    mesh, speeds = make_mesh(MeshConfig(data=2, model=4), target.devices), target.speeds
    placed = lambda shape, dtype, *axes: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, *axes))
    logits = placed((3, 32, 128256), np.float32, "agent", "batch", "vocab")
    keys, index = placed((3, 32, 2), np.uint32, "agent", "batch"), placed((3, 32), np.int32, "agent", "batch")
    number, split = jax.ShapeDtypeStruct((), np.float32), PartitionSpec("agent", "data", "model")

    def greedy(logits):
        """The index of the largest logit: each chip's own, and of these the one whose logit is the largest of all."""

        def own(part):
            largest, at = jnp.max(part, axis=2), jnp.argmax(part, axis=2)
            offset = jax.lax.axis_index("model") * part.shape[2]
            winner = largest == jax.lax.pmax(largest, "model")
            return jax.lax.pmin(jnp.where(winner, at + offset, 128256), "model")

        return jax.shard_map(own, mesh=mesh, in_specs=split, out_specs=PartitionSpec("agent", "data"))(logits)

    def compiled(function, *arguments):
        return parse_module(compile_program(jax.jit(function).lower(*arguments), "v5e-8").text)

    chosen = compiled(functools.partial(choose_split, mesh=mesh), logits, keys, index, number, number)
    choice, likeliest = count(chosen, speeds), count(compiled(greedy, logits), speeds)
    steps = [own for computation in chosen.computations.values() for own in computation.instructions.values()]
    assert len(steps) > 100
    assert not [own for own in steps if own.opcode == "while"]  # so no collective is in one
    # Of what the compiler states the cycles of; the kernels' passes over the weights are not in it.
    assert 0 < (choice.compute_seconds - likeliest.compute_seconds) * speeds.cycles < 0.3e6
    assert 0 < sum(choice.sent.values()) < 0.05e6  # bytes; the logits of a chip have 6 MB


@pytest.mark.parametrize("topology", ["v5e-8", "v5e-16", "v6e-16", "v5p-32"])
def test_the_mesh_follows_the_slice(topology):
    """The chips that share the sums of the model axis are connected, and in larger slices those of the data axis too."""
    prepare_environment(topology)
    count = SLICES[topology].count
    mesh = make_mesh(MeshConfig(data=count // 4, model=4), find_target(topology).devices)
    coords = np.array([device.coords for device in mesh.devices.flat]).reshape(count // 4, 4, 3)
    assert all(connected(group) for group in coords)
    assert count == 8 or all(connected(group) for group in coords.swapaxes(0, 1))


def connected(coords):
    """Whether each chip can be reached from the first one by links between neighbours."""
    reached, others = [coords[0]], list(coords[1:])
    while near := [place for place in others if any(np.abs(place - own).sum() == 1 for own in reached)]:
        reached += near
        others = [place for place in others if not any((place == own).all() for own in near)]
    return not others


def test_the_present_devices_are_known_by_their_kind():
    """As JAX names the chips of a slice."""
    for chip in CHIPS:
        prepare_environment("v5e-8")
        device = find_target(f"{chip.name}-8").devices[0]
        assert device.device_kind == chip.kind


def test_every_slice_can_be_planned_for():
    """The compiler knows the topology of each of them."""
    prepare_environment("v5e-8")
    for name in ("v5e-1", "v5p-8", "v5p-32", "v6e-16"):
        target = find_target(name)
        assert len(target.devices) == SLICES[name].count
        assert target.devices[0].platform == "tpu"
