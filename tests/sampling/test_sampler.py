import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.config import MeshConfig, SamplingConfig
from mft_jax.errors import UserError
from mft_jax.parallel.mesh import adapter_shardings, make_mesh
from mft_jax.sampling import Request, Sampler, row_key, steps
from mft_jax.sampling.slots import bucket
from tests.conftest import place_base

CONFIG = SamplingConfig(max_new_tokens=16, rows=4, prefill_rows=2, steps_per_dispatch=5)
STOPS = (7, 11, 60, 90, 120, 200, 210, 220)  # enough of a small vocabulary that rows end at different times


def make_sampler(tiny, mesh, agents=3, config=CONFIG):
    return Sampler(tiny.graphdef, tiny.base, tiny.config, config, agents=agents, stop_ids=STOPS, mesh=mesh)


@pytest.fixture(scope="module")
def sampler(tiny, one_device):
    return make_sampler(tiny, one_device)


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(0)
    lengths = itertools.cycle([3, 17, 9, 30, 24])
    return [
        Request(i % 3, rng.integers(0, 300, size=length).tolist(), row_key(0, i))
        for i, length in zip(range(30), lengths, strict=False)
    ]


@pytest.fixture(scope="module")
def sampled(sampler, tiny, requests):
    return sampler.sample(requests, tiny.adapters)[0]


def continued(tiny, request, adapter, new_tokens, key=None):
    """Greedy decoding by full forward passes over the whole sequence, without a cache."""
    model = nnx.merge(tiny.graphdef, tiny.base)
    forward = jax.jit(lambda tokens: model(tokens, adapter))
    ids = list(request.prompt)
    for _ in range(new_tokens):
        padded = jnp.zeros((1, 64), int).at[0, : len(ids)].set(jnp.array(ids))
        ids.append(int(forward(padded)[0, len(ids) - 1].argmax()))
    return ids[len(request.prompt) :]


def test_prefill_and_decode_equal_the_full_forward(sampler, tiny, requests):
    greedy = dataclasses.replace(CONFIG, temperature=0.0)
    for adapters in (tiny.adapters, None):
        completions, _ = sampler.sample(requests[:5], adapters, config=greedy)
        for request, completion in zip(requests[:5], completions, strict=True):
            adapter = None if adapters is None else tiny.agent(request.agent)
            expected = continued(tiny, request, adapter, completion.new_tokens)
            assert (completion.ids + expected[-1:] if completion.stopped else completion.ids) == expected


def test_rows_end_at_a_stop_token_or_at_their_limit(sampled):
    assert {completion.stopped for completion in sampled} == {True, False}
    for completion in sampled:
        assert not set(completion.ids) & set(STOPS)
        assert completion.new_tokens == len(completion.ids) + completion.stopped
        assert completion.stopped or completion.new_tokens == CONFIG.max_new_tokens


def test_a_row_does_not_depend_on_neighbours_slot_batch_or_order(sampler, tiny, one_device, requests, sampled):
    order = np.random.default_rng(1).permutation(len(requests))[:17]
    shuffled, _ = sampler.sample([requests[i] for i in order], tiny.adapters)
    assert shuffled == [sampled[i] for i in order]
    alone, _ = sampler.sample([requests[4]], tiny.adapters)
    assert alone == [sampled[4]]
    wider = make_sampler(
        tiny, one_device, config=dataclasses.replace(CONFIG, rows=10, prefill_rows=5, steps_per_dispatch=3)
    )
    assert wider.sample(requests, tiny.adapters)[0] == sampled


def test_other_keys_give_other_texts(sampler, tiny, requests, sampled):
    rekeyed = [dataclasses.replace(request, key=row_key(1, i)) for i, request in enumerate(requests)]
    other, _ = sampler.sample(rekeyed, tiny.adapters)
    assert sum(a.ids != b.ids for a, b in zip(other, sampled, strict=True)) > 20


def test_stacked_agents_equal_separate_ones(tiny, one_device, requests, sampled):
    for agent in range(3):
        single = make_sampler(tiny, one_device, agents=1)
        own = [i for i, request in enumerate(requests) if request.agent == agent]
        adapter = jax.tree.map(lambda leaf, agent=agent: leaf[agent : agent + 1], tiny.adapters)
        completions, _ = single.sample([dataclasses.replace(requests[i], agent=0) for i in own], adapter)
        assert completions == [sampled[i] for i in own]


def test_settings_never_recompile(tiny, one_device, requests, sampled):
    sampler = make_sampler(tiny, one_device)
    sampler.sample(requests, tiny.adapters)
    once = {("prefill", 32, 48, "adapted"): 1, ("decode", 48, 16, "adapted"): 1}
    assert sampler.compiles == once
    changed = dataclasses.replace(CONFIG, temperature=0.3, top_p=0.2, max_new_tokens=11, steps_per_dispatch=2)
    sampler.stop_ids = (1, 2)
    completions, _ = sampler.sample(requests, tiny.adapters, config=changed)
    assert max(completion.new_tokens for completion in completions) == 11
    assert sampler.compiles == once
    sampler.sample(requests[:3])
    assert sampler.compiles == once | {("prefill", 24, 48, "base"): 1, ("decode", 48, 16, "base"): 1}


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 2, 2), (1, 1, 2)])
def test_meshes_sample_the_same_tokens_on_sharded_slots(tiny, one_device, requests, shape):
    mesh = make_mesh(MeshConfig(agent=shape[0], data=shape[1], model=shape[2]))
    two = [request for request in requests if request.agent < 2]
    adapters = jax.tree.map(lambda leaf: leaf[:2], tiny.adapters)
    expected, _ = make_sampler(tiny, one_device, agents=2).sample(two, adapters)
    sampler = make_sampler(dataclasses.replace(tiny, base=place_base(mesh, tiny.base)), mesh, agents=2)
    seen, decode = [], sampler._decode
    sampler._decode = lambda *arguments: seen.append(decode(*arguments)) or seen[-1]
    placed = jax.device_put(adapters, adapter_shardings(mesh, adapters))
    assert sampler.sample(two, placed)[0] == expected
    slots, view = seen[-1]
    assert slots.keys[0].sharding.shard_shape((2, 4, 2, 8, 48)) == (2 // shape[0], 4 // shape[1], 2 // shape[2], 8, 48)
    assert slots.values[1].sharding.shard_shape((2, 4, 2, 48, 8)) == (
        2 // shape[0],
        4 // shape[1],
        2 // shape[2],
        48,
        8,
    )
    assert slots.token.sharding.shard_shape((2, 4)) == (2 // shape[0], 4 // shape[1])
    assert view.output.sharding.is_fully_replicated


def test_a_prompt_longer_than_the_context_is_refused(sampler, requests):
    long = Request(0, list(range(128)), row_key(0))
    with pytest.raises(UserError, match=r"A prompt has 128 tokens, but the model's context holds 128"):
        sampler.sample([requests[0], long])


def test_an_answer_ends_where_the_context_does(sampler):
    long = Request(0, [5] * 120, row_key(0))
    (completion,), _ = sampler.sample([long], config=dataclasses.replace(CONFIG, temperature=0.0))
    assert completion.new_tokens <= 8


def test_buckets_are_at_most_two_per_octave():
    assert [bucket(n) for n in (1, 16, 17, 24, 25, 33, 49, 65, 97, 129)] == [16, 16, 24, 24, 32, 48, 64, 96, 128, 192]


@pytest.mark.parametrize("axis", [2, 3])
def test_both_ways_to_write_into_the_cache(axis):
    """What TPUs compute is what the others do, and what a loop over rows would."""
    rng = np.random.default_rng(0)
    cache, new = rng.normal(size=(4, 2, 5, 6)), rng.normal(size=(4, 2, 5, 6)).take([0], axis)
    position, expected = np.array([0, 3, 4, 1]), cache.copy()
    for row, column in enumerate(position):
        expected[row].swapaxes(0, axis - 1)[column] = new[row].swapaxes(0, axis - 1)[0]
    for put in (steps.put_in_place, steps.put_by_choice):
        np.testing.assert_array_equal(
            put(jnp.asarray(cache), jnp.asarray(new), jnp.asarray(position), axis), np.float32(expected)
        )
