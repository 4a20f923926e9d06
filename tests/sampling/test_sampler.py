import dataclasses
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.config import MeshConfig, SamplingConfig
from mft_jax.models.decoder import build
from mft_jax.models.lora import Adapter
from mft_jax.models.society import Society
from mft_jax.parallel.mesh import make_mesh
from mft_jax.programs import Programs
from mft_jax.programs.program import Program
from mft_jax.programs.slots import bucket
from mft_jax.sampling import NonFiniteLogits, Request, Sampler, Text, score_texts
from mft_jax.seeds import row_key
from tests.conftest import NAMES, place_base

CONFIG = SamplingConfig(max_new_tokens=16, rows=4, prefill_rows=2, steps_per_dispatch=5)
STOPS = (7, 11, 60, 90, 120, 200, 210, 220)  # so many of a small vocabulary that rows stop at different times


def make_sampler(tiny, programs, lanes=3, config=CONFIG):
    return Sampler(programs, tiny.base, config, stop_ids=STOPS, lanes=lanes)


@pytest.fixture(scope="module")
def sampler(tiny, programs):
    return make_sampler(tiny, programs)


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(0)
    lengths = itertools.cycle([3, 17, 9, 30, 24])
    return [
        Request(NAMES[i % 3], rng.integers(0, 300, size=length).tolist(), row_key(0, i))
        for i, length in zip(range(30), lengths, strict=False)
    ]


@pytest.fixture(scope="module")
def sampled(sampler, tiny, requests):
    return sampler.sample(requests, tiny.society)[0]


@pytest.fixture(scope="module")
def forward(tiny):
    """A full forward pass of tokens [1, T] with an adapter, or with None: logits."""
    return jax.jit(lambda tokens, adapter: nnx.merge(tiny.graphdef, tiny.base)(tokens, adapter))


def greedy_continuation(forward, request, adapter, new_tokens):
    """Greedy decoding with full forward passes, without a cache."""
    ids = list(request.prompt)
    for _ in range(new_tokens):
        padded = np.zeros((1, 64), int)
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(forward(padded, adapter)[0, len(ids) - 1])))
    return ids[len(request.prompt) :]


def test_prefill_and_decode_equal_full_forward_passes(sampler, tiny, forward, requests):
    greedy = dataclasses.replace(CONFIG, temperature=0.0)
    for speakers in (NAMES, (None,) * 3):
        asked = [dataclasses.replace(r, speaker=speakers[NAMES.index(r.speaker)]) for r in requests[:5]]
        completions, _ = sampler.sample(asked, tiny.society, config=greedy)
        for request, completion in zip(asked, completions, strict=True):
            adapter = None if request.speaker is None else tiny.agent(NAMES.index(request.speaker))
            expected = greedy_continuation(forward, request, adapter, completion.new_tokens)
            assert [*completion.ids, *expected[-1:] * completion.complete] == expected


def test_new_tokens_are_told_as_they_are_sampled(sampler, tiny, requests, sampled):
    """Each token once and in order, without an effect on what is sampled."""
    told = {}
    completions, _ = sampler.sample(
        requests, tiny.society, on_tokens=lambda index, ids: told.setdefault(index, []).append(ids)
    )
    assert completions == sampled
    for index, completion in enumerate(completions):
        parts = told.get(index, [])
        assert [token for part in parts for token in part] == list(completion.ids)
        assert all(0 < len(part) <= CONFIG.steps_per_dispatch + 1 for part in parts)  # prefill samples one, too
    assert any(len(parts) > 2 for parts in told.values())


def test_adapters_and_the_base_model_in_one_call(sampler, tiny, requests, sampled):
    """Each row gets the same text as in a call with only adapters or only the base model. Their costs are separate."""
    mixed = [dataclasses.replace(r, speaker=None) if i % 2 else r for i, r in enumerate(requests)]
    completions, usages = sampler.sample(mixed, tiny.society)
    base, _ = sampler.sample([dataclasses.replace(r, speaker=None) for r in requests])
    assert completions == [base[i] if i % 2 else sampled[i] for i in range(len(requests))]
    assert [(usage.adapted, len(usage.lengths)) for usage in usages] == [(False, 15), (True, 15)]
    assert usages[1].lengths[0] == (len(requests[0].prompt), completions[0].new_tokens)
    assert all(usage.device_seconds > 0 for usage in usages)


def test_rows_end_at_a_stop_token_or_at_their_limit(sampled):
    assert {completion.reason for completion in sampled} == {"stop", "limit"}
    for completion in sampled:
        assert not set(completion.ids) & set(STOPS)
        assert completion.new_tokens == len(completion.ids) + completion.complete
        assert completion.complete or completion.new_tokens == CONFIG.max_new_tokens
        assert completion.log_probs is None


def test_log_probabilities_on_request(sampler, tiny, programs, requests, sampled):
    """They do not change the texts, and equal the log-probabilities of the score program."""
    completions, _ = sampler.sample(requests[:6], tiny.society, log_probs=True)
    assert [dataclasses.replace(c, log_probs=None) for c in completions] == sampled[:6]
    assert any(not c.complete for c in completions)  # only these can be scored: the ids have no stop token
    for request, completion in zip(requests[:6], completions, strict=True):
        assert len(completion.log_probs) == completion.new_tokens
        if not completion.complete:
            text = Text(request.speaker, [*request.prompt, *completion.ids])
            (score,) = score_texts(programs, tiny.base, [text], tiny.society)
            np.testing.assert_allclose(completion.log_probs, score.log_probs[len(request.prompt) :], atol=2e-4)


def test_a_row_does_not_depend_on_other_rows_slot_batch_or_order(sampler, tiny, programs, requests, sampled):
    order = np.random.default_rng(1).permutation(len(requests))[:17]
    shuffled, _ = sampler.sample([requests[i] for i in order], tiny.society)
    assert shuffled == [sampled[i] for i in order]
    alone, _ = sampler.sample([requests[4]], tiny.society)
    assert alone == [sampled[4]]
    wide = dataclasses.replace(CONFIG, rows=10, prefill_rows=5, steps_per_dispatch=3)
    assert make_sampler(tiny, programs, config=wide).sample(requests, tiny.society)[0] == sampled


def test_every_place_of_a_prefill_has_a_prompt(sampler, tiny, requests, sampled):
    """10 rows of each of 3 speakers, of different lengths, 2 at a time, padded to 32 tokens."""
    assert len({completion.new_tokens for completion in sampled}) > 5
    _, (usage,) = sampler.sample(requests, tiny.society)
    assert usage.prefilled_tokens == 5 * (3 * 2) * 32


def test_each_device_fills_its_places_of_a_prefill(tiny, requests):
    """30 rows in 2 + 2 slots, one on each of two devices at a time: with any empty place there would be more than 15 calls."""
    mesh = make_mesh(MeshConfig(data=2))
    meshed = Programs(tiny.graphdef, tiny.config, mesh)
    sampler = make_sampler(dataclasses.replace(tiny, base=place_base(mesh, tiny.base)), meshed, lanes=1)
    completions, (usage,) = sampler.sample([dataclasses.replace(request, speaker=None) for request in requests])
    assert len({completion.new_tokens for completion in completions}) > 5
    assert usage.prefilled_tokens == 15 * 2 * 32


def test_other_keys_give_other_texts(sampler, tiny, requests, sampled):
    rekeyed = [dataclasses.replace(request, key=row_key(1, i)) for i, request in enumerate(requests)]
    other, _ = sampler.sample(rekeyed, tiny.society)
    assert sum(a.ids != b.ids for a, b in zip(other, sampled, strict=True)) > 20


def test_stacked_speakers_equal_separate_ones(sampler, tiny, requests, sampled):
    for place, name in enumerate(NAMES):
        own = [i for i, request in enumerate(requests) if request.speaker == name]
        single = Society((name,), jax.tree.map(lambda leaf, at=place: leaf[at : at + 1], tiny.society.adapters))
        completions, _ = sampler.sample([requests[i] for i in own], single)
        assert completions == [sampled[i] for i in own]


def test_changed_settings_and_scales_need_no_recompilation(tiny, one_device, requests, sampled):
    programs = Programs(tiny.graphdef, tiny.config, one_device)
    sampler = make_sampler(tiny, programs)
    sampler.sample(requests, tiny.society)
    assert programs.compilations == {"read_prefix": 0, "prefill": 1, "decode": 1, "score": 0, "divergence": 0}
    assert programs.compile_seconds > 0
    changed = dataclasses.replace(CONFIG, temperature=0.3, top_p=0.2, max_new_tokens=11, steps_per_dispatch=2)
    sampler.stop_ids = (1, 2)
    weights, scale = tiny.society.adapters
    louder = Society(NAMES, Adapter(weights, 2 * scale))
    completions, _ = sampler.sample(requests, louder, config=changed)
    assert max(completion.new_tokens for completion in completions) == 11
    assert programs.compilations == {"read_prefix": 0, "prefill": 1, "decode": 1, "score": 0, "divergence": 0}
    sampler.sample([dataclasses.replace(request, speaker=None) for request in requests[:3]])
    assert programs.compilations == {"read_prefix": 0, "prefill": 2, "decode": 2, "score": 0, "divergence": 0}


def test_the_scale_of_each_adapter_is_applied(sampler, tiny, requests, sampled):
    """An adapter with half the weights in one factor and twice the scale gives the same texts."""
    weights, scale = tiny.society.adapters
    halved = {target: {"a": pair["a"], "b": pair["b"] / 2} for target, pair in weights.items()}
    assert sampler.sample(requests, Society(NAMES, Adapter(halved, 2 * scale)))[0] == sampled
    assert sampler.sample(requests, Society(NAMES, Adapter(halved, scale)))[0] != sampled


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 2, 2), (1, 1, 2)])
def test_meshes_sample_the_same_tokens_on_sharded_slots(tiny, programs, requests, shape, monkeypatch):
    mesh = make_mesh(MeshConfig(agent=shape[0], data=shape[1], model=shape[2]))
    two = [request for request in requests if request.speaker in NAMES[:2]]
    pair = Society(NAMES[:2], jax.tree.map(lambda leaf: leaf[:2], tiny.society.adapters), mesh)
    expected, _ = make_sampler(tiny, programs, lanes=2).sample(two, dataclasses.replace(pair, mesh=None, _stacks={}))
    meshed = Programs(tiny.graphdef, tiny.config, mesh)
    sampler = make_sampler(dataclasses.replace(tiny, base=place_base(mesh, tiny.base)), meshed, lanes=2)
    seen = []
    monkeypatch.setattr(
        Program, "__call__", lambda self, *given: seen.append((self.name, self.compile(*given)(*given))) or seen[-1][1]
    )
    assert sampler.sample(two, pair)[0] == expected
    slots, view = [result for name, result in seen if name == "decode"][-1]
    shape_of_keys, parts = (2, 4, 2, 8, 48), (2 // shape[0], 4 // shape[1], 2 // shape[2], 8, 48)
    assert slots.keys[0].sharding.shard_shape(shape_of_keys) == parts
    assert slots.values[1].sharding.shard_shape((*shape_of_keys[:3], 48, 8)) == (*parts[:3], 48, 8)
    assert slots.token.sharding.shard_shape((2, 4)) == parts[:2]
    assert view.output.sharding.is_fully_replicated


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2)])
def test_scanned_layers_sample_the_same_tokens(tiny, requests, sampled, shape):
    """As on TPUs, where prefill runs through the layers in a loop."""
    mesh = make_mesh(MeshConfig(agent=shape[0], data=shape[1], model=shape[2]))
    graphdef, _ = build(tiny.config, mesh=mesh, scan_layers=True)
    scanning = Programs(graphdef, tiny.config, mesh)
    sampler = make_sampler(dataclasses.replace(tiny, base=place_base(mesh, tiny.base)), scanning)
    placed = dataclasses.replace(tiny.society, mesh=mesh)
    assert sampler.sample(requests[:9], placed)[0] == sampled[:9]


def test_lanes_fill_the_agent_axis_of_a_mesh(tiny, requests, sampled):
    """Three speakers on two devices: the first speaker has the fourth lane too."""
    mesh = make_mesh(MeshConfig(agent=2))
    meshed = Programs(tiny.graphdef, tiny.config, mesh)
    sampler = make_sampler(dataclasses.replace(tiny, base=place_base(mesh, tiny.base)), meshed)
    placed = dataclasses.replace(tiny.society, mesh=mesh)
    assert sampler.sample(requests[:7], placed)[0] == sampled[:7]


def test_one_speaker_fills_all_lanes(sampler, tiny, requests, sampled):
    places = [place for place, request in enumerate(requests) if request.speaker == "bob"]
    completions, (usage,) = sampler.sample([requests[place] for place in places], tiny.society)
    assert completions == [sampled[place] for place in places]
    assert len(places) == 10  # all are decoded together in the 3 x 4 slots
    assert usage.slot_steps == 12 * max(completion.new_tokens for completion in completions)


def test_a_prompt_that_fills_the_context_is_unanswerable(sampler, tiny, requests, sampled):
    reported = []
    asked = [requests[0], Request(NAMES[1], [5] * 128, row_key(0)), requests[1]]
    completions, usages = sampler.sample(asked, tiny.society, on_progress=lambda *done: reported.append(done))
    assert [c.reason == "unanswerable" for c in completions] == [False, True, False]
    assert (completions[1].ids, completions[1].new_tokens) == ((), 0)
    assert [completions[0], completions[2]] == sampled[:2]
    assert sum(rows for rows, _ in reported) == 3
    assert len(usages[0].lengths) == 2


def test_an_answer_ends_at_the_end_of_the_context(sampler):
    long = Request(None, [5] * 120, row_key(0))
    sampler.stop_ids, kept = (), sampler.stop_ids
    (completion,), _ = sampler.sample([long], config=dataclasses.replace(CONFIG, temperature=0.0))
    sampler.stop_ids = kept
    assert (completion.reason, completion.new_tokens) == ("context", 8)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_speaker_with_non_finite_logits_is_named(sampler, tiny, requests, temperature):
    weights, scale = tiny.society.adapters
    broken = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), weights)
    society, config = Society(NAMES, Adapter(broken, scale)), dataclasses.replace(CONFIG, temperature=temperature)
    with pytest.raises(NonFiniteLogits, match=r"The logits of bob are NaN or infinite"):
        sampler.sample(requests, society, config=config)
    others = [request for request in requests if request.speaker != "bob"]
    assert len(sampler.sample(others, society, config=config)[0]) == 20
    with pytest.raises(KeyError, match="unknown adapter 'dan'; the adapters of this society are: ann, bob, cy"):
        sampler.sample([dataclasses.replace(requests[0], speaker="dan")], tiny.society)


def test_random_draws_do_not_depend_on_the_environment(tmp_path):
    """The same tokens and adapters are drawn if the environment selects another JAX PRNG."""
    script = """
import jax.numpy as jnp, numpy as np, jax
from mft_jax.programs.choose import choose
from mft_jax.seeds import adapter_key, pin_jax, row_key
pin_jax()
logits = jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32))
keys = np.stack([row_key(i) for i in range(40)])
token = choose(logits, keys, jnp.zeros(40, int), jnp.ones(40, bool), 1.0, 0.9).token
print(token.tolist(), jax.random.uniform(adapter_key(3), 2).tolist())
"""
    settings = {"JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_THREEFRY_PARTITIONABLE": "0", "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", script]
    plain, changed = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | extra).stdout
        for extra in ({}, settings)
    )
    assert plain == changed
    assert plain.count(",") == 40


def test_buckets_are_at_most_two_per_octave():
    assert [bucket(n) for n in (1, 16, 17, 24, 25, 33, 49, 65, 97, 129)] == [16, 16, 24, 24, 32, 48, 64, 96, 128, 192]
