"""Programs lowered from shapes are identical to those that a run lowers from arrays."""

import types

import jax
import numpy as np
import pytest

from mft_jax.config import MeshConfig
from mft_jax.finetuning.losses import DirectPreference, likelihood
from mft_jax.finetuning.trainer import place_batch
from mft_jax.models.decoder import build
from mft_jax.parallel.mesh import make_mesh, society_shardings
from mft_jax.programs import Programs, abstract
from mft_jax.programs import program as program_module
from mft_jax.programs.program import BusyClock, Program
from mft_jax.programs.train import init_state
from mft_jax.sampling import Request, Sampler, Text, score_texts
from mft_jax.seeds import row_key
from tests.conftest import NAMES, place_base
from tests.sampling.test_sampler import CONFIG


def lowered(program, *arguments):
    return program.lower(*arguments).as_text()


@pytest.fixture(scope="module", params=[(1, 1, 1), (1, 2, 2)], ids=["one device", "four devices"])
def mesh(request):
    return make_mesh(MeshConfig(agent=request.param[0], data=request.param[1], model=request.param[2]))


def test_sampling_and_scoring_are_lowered_from_shapes_as_from_arrays(tiny, mesh, monkeypatch):
    programs, base, seen = Programs(tiny.graphdef, tiny.config, mesh), place_base(mesh, tiny.base), {}

    def call(self, *given):
        seen[self.name] = lowered(self, *given)
        return self.compile(*given)(*given)

    monkeypatch.setattr(Program, "__call__", call)
    society = tiny.society.__class__(NAMES, tiny.society.adapters, mesh)
    sampler = Sampler(programs, base, CONFIG, stop_ids=(7,), lanes=3)
    sampler.sample([Request(name, [1, 2, 3], row_key(0)) for name in NAMES], society)
    score_texts(programs, base, [Text(name, [1, 2, 3]) for name in NAMES], society, rows=4)
    weights = abstract.abstract_base(tiny.config, mesh, np.float32)
    adapters = abstract.abstract_adapters(tiny.config, tiny.lora, mesh, 3)
    slots = abstract.abstract_slots(tiny.config, mesh, agents=3, rows=4, columns=32, new_tokens=16, dtype="float32")
    prompts = abstract.abstract_prompts(mesh, agents=3, prompts=2, tokens=32)
    long = jax.ShapeDtypeStruct((), np.bool_)
    settings = abstract.abstract_settings(mesh, agents=3, stop_ids=8)
    texts = abstract.abstract_texts(mesh, agents=3, rows=4, tokens=16)
    assert lowered(programs.prefill, weights, adapters, slots, prompts, long) == seen["prefill"]
    assert lowered(programs.decode, weights, adapters, slots, settings) == seen["decode"]
    assert lowered(programs.score, weights, adapters, texts) == seen["score"]


def test_devices_that_share_rows_exchange_one_sum_for_each_token(tiny):
    """Each chooses the tokens of its own rows; the sum tells whether to go on."""
    mesh = make_mesh(MeshConfig(data=2))
    slots = abstract.abstract_slots(tiny.config, mesh, agents=3, rows=4, columns=32, new_tokens=16, dtype="float32")
    weights = abstract.abstract_base(tiny.config, mesh, np.float32)
    adapters = abstract.abstract_adapters(tiny.config, tiny.lora, mesh, 3)
    settings = abstract.abstract_settings(mesh, agents=3, stop_ids=8)
    graphdef, _ = build(tiny.config, mesh=mesh)
    program = Programs(graphdef, tiny.config, mesh).decode.compile(weights, adapters, slots, settings)
    lines = [line for line in program.as_text().splitlines() if "/while/" in line]
    of_kind = lambda *kinds: [line for line in lines if any(f" {kind}(" in line for kind in kinds)]
    assert len(lines) > 100
    assert len(of_kind("all-reduce")) == 1
    assert of_kind("all-gather", "all-to-all", "collective-permute") == []


@pytest.mark.parametrize(("objective", "sequences"), [(likelihood, 0), (DirectPreference(), 16)])
def test_training_is_lowered_from_shapes_as_from_arrays(tiny, mesh, objective, sequences):
    programs, base = Programs(tiny.graphdef, tiny.config, mesh), place_base(mesh, tiny.base)
    adapters = abstract.abstract_adapters(tiny.config, tiny.lora, mesh, 3)
    state, batch, index, hyper = abstract.abstract_training(
        mesh, adapters, rows=2, row_tokens=24, row_targets=16, sequences=sequences
    )
    step = programs.train(objective, state, None, False)
    zeros = lambda tree: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
    real = init_state(tiny.weights)
    real = jax.device_put(real, society_shardings(mesh, real))
    assert programs.train(objective, real, None, False) is step
    placed = place_batch(zeros(batch), mesh)
    given = (real, placed, zeros(index), zeros(hyper))
    weights = abstract.abstract_base(tiny.config, mesh, np.float32)
    assert lowered(step, weights, state, batch, index, hyper) == lowered(step, base, *given)


def test_a_program_compiles_once_for_each_set_of_shapes():
    program = Program("double", lambda x: 2 * x)
    assert program(np.float32(3)) == 6
    spent = program.compile_seconds
    assert program(np.float32(4)) == 8
    assert (program.compilations, program.compile_seconds) == (1, spent)
    assert program(np.arange(3)).tolist() == [0, 2, 4]
    assert program.compilations == 2
    assert program.compile_seconds > spent > 0


def test_the_time_of_programs_is_that_from_dispatch_to_result_without_compilation(monkeypatch):
    now, compiler = [100.0], types.SimpleNamespace(compile_seconds=7.0)
    monkeypatch.setattr(program_module.time, "perf_counter", lambda: now[0])
    clock = BusyClock(compiler)
    clock.stop()  # nothing was dispatched
    clock.start()
    now[0] += 20  # 15 of them compile
    compiler.compile_seconds += 15
    clock.start()  # a second program, dispatched while the first is running
    now[0] += 1
    clock.stop()
    assert clock.seconds == 6
    now[0] += 50  # the host works alone
    clock.start()
    now[0] += 2
    clock.stop()
    assert clock.seconds == 8
