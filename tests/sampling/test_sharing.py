"""What prompts have in common is read once, and every row gets the text that it gets alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from mft_jax.config import MeshConfig
from mft_jax.models.decoder import build
from mft_jax.models.lora import projection_shapes
from mft_jax.parallel.mesh import make_mesh
from mft_jax.programs import Programs
from mft_jax.sampling import Request, Sampler, sharing
from mft_jax.sampling.lengths import PromptLengths
from mft_jax.sampling.sharing import deal_out, is_worth_a_program, places_for, shared_prefix
from mft_jax.seeds import row_key
from tests.conftest import NAMES, place_base
from tests.sampling.test_sampler import CONFIG, make_sampler

WIDE = dataclasses.replace(CONFIG, rows=12, prefill_rows=6)


@pytest.fixture(autouse=True)
def any_saving_is_worth_a_program(request, monkeypatch):
    """The tiny model would save less than a compilation costs."""
    if "worth" not in request.node.name:
        monkeypatch.setattr(sharing, "_WORTH_ON_CPU", 0)


def test_a_program_is_worth_its_compilation_if_it_saves_more_flops(tiny):
    small = 2 * tiny.config.layers * sum(a * b for a, b in projection_shapes(tiny.config).values())
    assert not is_worth_a_program(0, tiny.config, "cpu")
    assert not is_worth_a_program(1.9e11 / small, tiny.config, "cpu")
    assert is_worth_a_program(2.1e11 / small, tiny.config, "cpu")
    assert not is_worth_a_program(2.1e11 / small, tiny.config, "tpu")
    assert is_worth_a_program(1.1e14 / small, tiny.config, "tpu")


def test_programs_that_are_not_worth_it_are_not_compiled(tiny, programs, requests):
    """The same prompts in the same batches, each read by itself."""
    _, (usage,) = make_sampler(tiny, programs, config=WIDE).sample(requests, tiny.society)
    assert usage.read_tokens == sum(len(request.prompt) for request in requests)


def test_shared_prefix():
    prompts = [(4, 4, 4, n, 7) for n in range(8)]
    assert shared_prefix(prompts) == 3
    assert shared_prefix([*prompts, (4, 4, 9)]) == 2
    assert shared_prefix([*prompts, (4, 4, 4)]) == 2  # one token of each prompt is left to be read
    assert shared_prefix(prompts * 3) == 3
    assert shared_prefix(prompts[:7] * 3) == 0  # few different ones
    assert shared_prefix([(n, 4, 4) for n in range(9)]) == 0


def test_equal_prompts_are_dealt_to_the_same_lane():
    assert deal_out("aaabbbccc", 3) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert deal_out("abcabcabc", 3) == [0, 1, 2] * 3
    assert deal_out("aaaa", 2) == [0, 0, 1, 1]  # but all lanes get equally many
    assert deal_out("abc", 1) == [0, 0, 0]
    for prompts, lanes in itertools.product(("aaaaab", "abcdefg", "aabbbbbbc"), (1, 2, 3, 4)):
        counts = np.bincount(deal_out(prompts, lanes), minlength=lanes)
        assert counts.sum() == len(prompts)
        assert counts.max() <= -(-len(prompts) // lanes)


def test_places_for_the_different_prompts_of_a_call():
    assert places_for(["abcdefghij"], 10) == 10
    assert places_for(["aaabbbcccddd"], 10) == 5  # four
    assert places_for(["aaaaaaaaabbbbbbbbb", "c"], 10) == 2
    assert places_for(["aaaaaaaaaa", ""], 10) == 1
    assert places_for(["aaabcdefg"], 6) == 6  # the last six differ


def test_accelerators_read_whole_blocks_of_a_prefix(one_device, monkeypatch):
    lengths = PromptLengths(one_device)
    assert [lengths.choose_prefix(shared) for shared in (0, 15, 41, 300)] == [0, 15, 41, 300]
    monkeypatch.setattr(lengths, "few", True)
    assert [lengths.choose_prefix(shared) for shared in (0, 41, 127, 128, 300)] == [0, 0, 0, 128, 256]


@pytest.fixture(scope="module")
def requests():
    """Nine prompts of each speaker, which begin with 20 tokens of its own and have 1 to 25 others."""
    rng = np.random.default_rng(3)
    system = {name: rng.integers(0, 300, size=20).tolist() for name in NAMES}
    ends = [rng.integers(0, 300, size=size).tolist() for size in (1, 4, 25, 9, 16, 3, 20, 11, 7)]
    asked = [(name, [*system[name], *end]) for end in ends for name in NAMES]
    return [Request(name, prompt, row_key(5, number)) for number, (name, prompt) in enumerate(asked)]


@pytest.fixture(scope="module")
def alone(tiny, programs, requests):
    """The completion of each request in a call of its own, where nothing is shared."""
    sampler = make_sampler(tiny, programs, config=WIDE)
    return [sampler.sample([request], tiny.society)[0][0] for request in requests]


def test_a_prefix_of_each_speaker_is_read_once(tiny, programs, requests, alone):
    completions, (usage,) = make_sampler(tiny, programs, config=WIDE).sample(requests, tiny.society)
    assert completions == alone
    tokens = sum(len(request.prompt) for request in requests)
    assert usage.read_tokens == tokens - 20 * 9 * 3 + 20 * 3
    assert usage.prefilled_tokens == 20 * 3 + 2 * (6 * 3) * 32  # two calls for nine prompts of each speaker
    assert usage.lengths[0] == (21, alone[0].new_tokens)  # the cost of a text does not depend on the others


@pytest.mark.parametrize(("shape", "scan"), [((1, 2, 2), False), ((1, 1, 1), True), ((1, 2, 2), True)])
def test_a_prefix_on_a_mesh_and_in_a_loop_over_layers(tiny, requests, alone, shape, scan):
    mesh = make_mesh(MeshConfig(agent=shape[0], data=shape[1], model=shape[2]))
    graphdef, _ = build(tiny.config, mesh=mesh, scan_layers=scan)
    programs = Programs(graphdef, tiny.config, mesh)
    sampler = make_sampler(dataclasses.replace(tiny, base=place_base(mesh, tiny.base)), programs, config=WIDE)
    completions, (usage,) = sampler.sample(requests, dataclasses.replace(tiny.society, mesh=mesh))
    assert completions == alone
    assert programs.compilations["read_prefix"] == 1
    assert usage.read_tokens < sum(len(request.prompt) for request in requests) / 1.5


@pytest.mark.parametrize("data", [1, 2])
def test_a_prompt_of_several_rows_is_read_once_for_all_that_start_together(tiny, programs, data):
    """Four prompts, six rows of each, in three lanes of the base model: eight rows of two prompts in each."""
    rng = np.random.default_rng(4)
    prompts = [rng.integers(0, 300, size=size).tolist() for size in (12, 28, 7, 19)]
    asked = [Request(None, prompt, row_key(6, place, n)) for n in range(6) for place, prompt in enumerate(prompts)]
    expected = [make_sampler(tiny, programs, config=WIDE).sample([request])[0][0] for request in asked]
    assert len({completion.ids for completion in expected}) > 20  # each row has its own key
    mesh = make_mesh(MeshConfig(data=data))
    meshed = Programs(tiny.graphdef, tiny.config, mesh)
    sampler = Sampler(
        meshed, place_base(mesh, tiny.base), WIDE, stop_ids=make_sampler(tiny, programs).stop_ids, lanes=3
    )
    completions, (usage,) = sampler.sample(asked)
    assert completions == expected
    # Two calls with room for six rows of each lane. One device needs two prompts of three lanes a call.
    assert usage.prefilled_tokens <= 2 * 3 * 2 * data * 32
    assert usage.read_tokens < sum(len(request.prompt) for request in asked) / 2
