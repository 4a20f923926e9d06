"""The training step, compared with simple implementations: one agent at a time, one dialogue at a time, and optax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mft_jax.config import MeshConfig
from mft_jax.finetuning.losses import likelihood
from mft_jax.finetuning.packing import hyper_of
from mft_jax.finetuning.trainer import place_batch
from mft_jax.models.attention import attend, causal_attention, transposed
from mft_jax.models.decoder import build
from mft_jax.models.layers import runs_in_parts
from mft_jax.models.lora import Adapter
from mft_jax.parallel.mesh import make_mesh, society_shardings
from mft_jax.programs import Programs
from mft_jax.programs import train as steps
from mft_jax.programs.train import Targets
from tests.conftest import place_base
from tests.finetuning.conftest import CONFIG, LESSONS


@pytest.fixture(scope="module", params=[1, 3], ids=["one at a time", "all at once"])
def train_step(programs, tiny, request):
    return programs.train(likelihood, steps.init_state(tiny.weights), request.param, False)


@pytest.fixture(scope="module")
def hyper(plan, tiny):
    return hyper_of(plan, CONFIG, tiny.lora.scale)


@pytest.fixture(scope="module")
def smooth(hyper):
    """Adam divides by a root of squares plus this. A smaller number magnifies how gradients near 0 are rounded."""
    return hyper._replace(eps=np.float32(1e-3))


@pytest.fixture
def state(tiny):
    """New buffers for every test, because a step donates the buffers of its state."""
    return steps.init_state(jax.tree.map(jnp.array, tiny.weights))


def agent_of(tree, agent):
    """The part of one agent in a stacked tree, with a leading axis of size 1."""
    return jax.tree.map(lambda leaf: leaf[agent : agent + 1] if np.ndim(leaf) else leaf, tree)


def three_steps(train_step, tiny, state, plan, hyper, part=lambda tree: tree):
    losses = []
    for index in range(3):
        state, metrics = train_step(tiny.base, state, part(plan.batch(index)), np.int32(index), hyper)
        losses.append(np.asarray(metrics.loss))
    return state, np.stack(losses)


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.fixture(scope="module")
def unpacked(tiny):
    """(loss, gradient) of an adapter without packing: one forward pass per dialogue, with all logits."""

    @jax.jit
    @jax.value_and_grad
    def summed(weights, ids, mask):
        adapter = Adapter(weights, jnp.float32(tiny.lora.scale))
        scores = jax.nn.log_softmax(nnx.merge(tiny.graphdef, tiny.base)(ids[None], adapter)[0])
        return -jnp.sum(jnp.take_along_axis(scores[:-1], ids[1:, None], axis=1)[:, 0] * mask[1:])

    def mean(adapter, dialogues):
        # Padding on the right does not change earlier tokens, and avoids one compilation per length.
        padded = lambda x: np.pad(x, (0, CONFIG.row_tokens - len(x)))
        parts = [summed(adapter, padded(ids), padded(mask)) for ids, mask in dialogues]
        count = sum(mask[1:].sum() for _, mask in dialogues)
        return jax.tree.map(lambda *leaves: sum(leaves) / count, *parts)

    return mean


def dialogues_of(plan, agent, index):
    own = plan.adapters[agent]
    return [own.examples[i] for row in own.rows_of(index) for i in row]


def test_stacked_equals_separate(train_step, programs, tiny, state, plan, hyper):
    together, losses = three_steps(train_step, tiny, state, plan, hyper)
    for agent in range(3):
        part = lambda tree, agent=agent: agent_of(tree, agent)
        begin = part(steps.init_state(tiny.weights))
        single = programs.train(likelihood, begin, None, False)
        alone, own = three_steps(single, tiny, begin, plan, part(hyper), part)
        assert_close(agent_of(together, agent), alone)
        assert_close(losses[:, agent], own[:, 0])
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(axis=(1, 2, 3)), together.adapters, tiny.weights)
    assert all((leaf > 1e-3).all() for leaf in jax.tree.leaves(change))


def test_packed_equals_unpacked(tiny, plan, unpacked):
    """Loss and gradient of rows with several segments equal those without packing, for one and several logit chunks."""
    assert any(len(row) > 1 for row in plan.adapters[0].rows_of(0))
    weights, rows = tiny.agent(0).weights, jax.tree.map(lambda x: x[0], plan.batch(0))
    expected = unpacked(weights, dialogues_of(plan, 0, 0))
    for chunks, remat in ((1, False), (4, True)):

        def loss(weights, chunks=chunks, remat=remat):
            adapter, model = Adapter(weights, jnp.float32(tiny.lora.scale)), nnx.merge(tiny.graphdef, tiny.base)
            log_probs, _ = steps.target_scores(model, adapter, rows, chunks, remat)
            return likelihood(Targets(log_probs, rows.target_weight))

        assert_close(jax.jit(jax.value_and_grad(loss))(weights), expected)


def test_a_step_equals_optax(train_step, tiny, state, plan, hyper, unpacked):
    """Clipping, schedule and AdamW: three steps of agent 0 equal those of an optax chain on unpacked dialogues."""
    rates = [hyper.peak[0] * expected_share(t, int(hyper.warmup_steps[0]), plan.steps[0]) for t in range(3)]
    chain = optax.chain(
        optax.clip_by_global_norm(CONFIG.clip_norm),
        optax.adamw(lambda t: jnp.asarray(rates)[t], weight_decay=CONFIG.weight_decay, eps=CONFIG.eps),
    )
    adapter, norms = tiny.agent(0).weights, []
    optimizer, update_of = chain.init(adapter), jax.jit(chain.update)
    for index in range(3):
        dialogues = dialogues_of(plan, 0, index)
        loss, gradient = unpacked(adapter, dialogues)
        norms.append(float(optax.tree.norm(gradient)))
        update, optimizer = update_of(gradient, optimizer, adapter)
        adapter = optax.apply_updates(adapter, update)
        state, metrics = train_step(tiny.base, state, plan.batch(index), np.int32(index), hyper)
        np.testing.assert_allclose(metrics.loss[0], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics.grad_norm[0], norms[-1], rtol=1e-4)
        np.testing.assert_allclose(metrics.targets[0], sum(mask[1:].sum() for _, mask in dialogues))
    assert max(norms) > CONFIG.clip_norm  # otherwise clipping would not be tested
    assert_close(jax.tree.map(lambda leaf: leaf[0], state.adapters), adapter)


@pytest.mark.parametrize("only", range(3))
def test_agents_without_data_keep_their_state(train_step, tiny, state, plan, hyper, only):
    """Adapter and optimizer state stay bitwise identical, even with momentum from an earlier step and weight decay."""
    state, _ = train_step(tiny.base, state, plan.batch(0), np.int32(0), hyper)
    before = jax.device_get(state)
    assert all(np.abs(leaf).reshape(3, -1).max(axis=1).all() for leaf in jax.tree.leaves(before.optimizer))
    batch = jax.tree.map(np.copy, plan.batch(0))
    for agent in {0, 1, 2} - {only}:
        batch.target_weight[agent] = 0
    state, metrics = train_step(tiny.base, state, batch, np.int32(1), hyper)
    assert metrics.active.tolist() == [agent == only for agent in range(3)]
    for new, old in zip(jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(before), strict=True):
        for agent in range(3):
            assert (new[agent].tobytes() == old[agent].tobytes()) == (agent != only)


def test_a_non_finite_agent_keeps_its_state(train_step, tiny, state, plan, hyper):
    """The other agents are trained as without it."""
    adapters = jax.tree.map(jnp.array, tiny.weights)
    adapters["q_proj"]["a"] = adapters["q_proj"]["a"].at[1].set(jnp.inf)
    broken, metrics = train_step(tiny.base, steps.init_state(adapters), plan.batch(0), np.int32(0), hyper)
    expected, _ = train_step(tiny.base, state, plan.batch(0), np.int32(0), hyper)
    assert metrics.finite.tolist() == [True, False, True]
    assert broken.optimizer.count.tolist() == [1, 0, 1]
    assert np.array_equal(broken.adapters["k_proj"]["b"][1], tiny.weights["k_proj"]["b"][1])
    assert_close(agent_of(broken, 0), agent_of(expected, 0))


def test_a_step_whose_result_is_not_finite_changes_nothing(train_step, tiny, state, plan, hyper):
    """Loss and gradient are finite, but with this learning rate the weights of one adapter overflow float32."""
    diverging = hyper._replace(peak=np.float32([1e-2, 3e38, 5e-3]), weight_decay=np.float32(1e3))
    before = jax.device_get(state)
    after, metrics = train_step(tiny.base, state, plan.batch(0), np.int32(0), diverging)
    assert np.isfinite(metrics.loss).all()
    assert np.isfinite(metrics.grad_norm).all()
    assert metrics.finite.tolist() == [True, False, True]
    for new, old in zip(jax.tree.leaves(jax.device_get(after)), jax.tree.leaves(before), strict=True):
        assert [(new[i].tobytes() == old[i].tobytes()) for i in range(3)] == [False, True, False]


def test_groups_without_data_are_skipped(programs, tiny, plan, hyper):
    """The gradient of an adapter without data is 0, although its weights are NaN: its group was skipped."""
    adapters, batch = jax.tree.map(jnp.array, tiny.weights), plan.batch(0)
    adapters["q_proj"]["a"] = adapters["q_proj"]["a"].at[1].set(jnp.nan)
    batch.target_weight[1] = 0
    start = steps.init_state(adapters)
    step = programs.train(likelihood, start, 1, False)
    _, metrics = step(tiny.base, start, batch, np.int32(0), hyper)
    assert metrics.grad_norm[1] == 0
    assert metrics.loss[1] == 0
    assert metrics.finite.tolist() == [True, False, True]  # its weights have been NaN before the step


def expected_share(step, warmup, total):
    """A second implementation of the schedule."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize(("warmup", "total"), [(3, 10), (0, 4), (1, 1), (4, 5)])
def test_schedule(warmup, total):
    """It rises to the peak and falls to almost 0. No step has a rate of 0."""
    rate = lambda step: float(steps.learning_rate(step, np.float32([2]), np.int32([warmup]), np.int32([total]))[0])
    rates = [rate(step) for step in range(total)]
    np.testing.assert_allclose(rates, [2 * expected_share(t, warmup, total) for t in range(total)], atol=1e-6)
    assert max(rates) == 2
    assert min(rates) > 0
    assert warmup == total or rate(total) == pytest.approx(0, abs=1e-6)


def test_the_likelihood_is_the_mean_over_targets():
    log_probs, weight = np.float32([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]]), np.float32([[1, 1, 0], [1, 0, 0]])
    assert likelihood(Targets(log_probs, weight)) == 2
    assert likelihood(Targets(log_probs, 0 * weight)) == 0


def test_hyperparameters_as_arrays(plan, hyper, tiny):
    assert hyper.lora_scale.tolist() == [tiny.lora.scale] * 3
    assert [lesson.settings.learning_rate for lesson in LESSONS] == pytest.approx(hyper.peak.tolist())


def test_warmup_follows_each_agents_own_steps(plan, hyper):
    assert hyper.total_steps.tolist() == plan.steps.tolist()
    assert hyper.warmup_steps.tolist() == [int(np.ceil(0.3 * steps)) for steps in plan.steps]
    assert hyper.peak.tolist() == pytest.approx([1e-2, 5e-3, 5e-3])


def test_changed_hyperparameters_need_no_recompilation(train_step, tiny, state, plan, hyper):
    state, first = train_step(tiny.base, state, plan.batch(0), np.int32(0), hyper)
    compiled = train_step.compilations
    other = dataclasses.replace(CONFIG, weight_decay=0.0, beta1=0.8, clip_norm=2.0, warmup=0.0)
    changed = hyper_of(plan, other, 0.5)._replace(peak=np.float32([1.0, 2.0, 3.0]))
    _, second = train_step(tiny.base, state, plan.batch(1), np.int32(0), changed)
    assert train_step.compilations == compiled
    assert first.learning_rate.tolist() == pytest.approx(
        [0.005, 0.005, 0.005]
    )  # half of the warm-up of the first agent
    assert second.learning_rate.tolist() == [1, 2, 3]


@pytest.mark.parametrize("chunk", [7, 24])
def test_attention_in_chunks_equals_all_at_once(chunk):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 24, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    segment_ids = jnp.asarray([[1] * 5 + [2] * 11 + [3] * 8, [1] * 20 + [0] * 4])
    mask = (segment_ids[:, :, None] == segment_ids[:, None]) & jnp.tril(jnp.ones((24, 24), bool))
    dense = lambda q, k, v: attend(q, *transposed(k, v), mask)
    chunked = lambda q, k, v: causal_attention(q, *transposed(k, v), segment_ids, chunk=chunk)
    probe = jnp.asarray(rng.normal(size=(2, 24, 4, 8)), jnp.float32)
    for function in (dense, chunked):
        scored = lambda *args, function=function: (jnp.sum(function(*args) * probe), function(*args))
        gradients, value = jax.jit(jax.grad(scored, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        expected = (gradients, value) if function is dense else expected
    assert_close((gradients, value), expected)


@pytest.mark.parametrize(
    ("targets", "vocab", "expected"), [((6, 4, 448), 512, 1), ((6, 4, 1024), 2**17, 64), ((1, 1, 64), 2**30, 64)]
)
def test_logit_chunks(targets, vocab, expected):
    """One part if the logits fit, otherwise the fewest equal parts, at most one per target."""
    assert steps.logit_chunks(targets, vocab) == expected


@pytest.mark.parametrize(
    ("agents", "devices", "configured", "expected"),
    [
        (6, (1, 1, 1), None, (1, 1)),
        (6, (1, 1, 1), 4, (1, 3)),
        (1, (2, 1, 1), None, (1, 1)),
        (6, (2, 1, 1), None, (2, 1)),
        (6, (2, 1, 1), 9, (2, 3)),
        (6, (4, 1, 1), 2, (2, 1)),
    ],
)
def test_how_many_agents_are_computed_together(agents, devices, configured, expected):
    """On CPUs one per device by default. A configured number is lowered to a divisor of the agents of a device."""
    mesh = make_mesh(MeshConfig(agent=devices[0], data=devices[1], model=devices[2]))
    assert steps.grouping(mesh, configured, agents) == expected


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 2, 2), (1, 1, 1)])
def test_a_mesh_gives_the_same_adapters(train_step, tiny, state, plan, smooth, shape):
    """A mesh gives the same adapters as one device, sharded over agents."""
    expected, _ = three_steps(train_step, tiny, state, plan, smooth)
    mesh = make_mesh(MeshConfig(agent=shape[0], data=shape[1], model=shape[2]))
    base, start = place_base(mesh, tiny.base), steps.init_state(jax.tree.map(jnp.array, tiny.weights))
    start = jax.device_put(start, society_shardings(mesh, start))
    meshed = Programs(tiny.graphdef, tiny.config, mesh).train(likelihood, start, None, False)
    for index in range(3):
        batch = place_batch(plan.batch(index), mesh)
        start, metrics = meshed(base, start, batch, np.int32(index), smooth)
    assert_close(jax.device_get(start), jax.device_get(expected))
    local = lambda layer, factor: start.optimizer.mu[layer][factor].addressable_shards[0].data.shape
    whole = lambda layer, factor: start.optimizer.mu[layer][factor].shape
    for layer, (over_input, over_output) in {"q_proj": (1, shape[2]), "down_proj": (shape[2], 1)}.items():
        agents, layers, size_in, rank = whole(layer, "a")
        assert local(layer, "a") == (agents // shape[0], layers, size_in // over_input, rank)
        agents, layers, rank, size_out = whole(layer, "b")
        assert local(layer, "b") == (agents // shape[0], layers, rank, size_out // over_output)
    assert metrics.loss.sharding.is_fully_replicated
    assert meshed.compilations == 1


@pytest.mark.parametrize(
    ("shape", "remat"),
    [((1, 2, 2), True), ((1, 1, 2), False), ((3, 1, 1), True), ((2, 1, 2), "all but sums"), ((1, 4, 1), True)],
)
def test_layers_in_parts_give_the_same_adapters(train_step, tiny, state, plan, smooth, shape, remat):
    """As on TPUs, where each device computes its own part of every layer.

    Two devices do not divide three agents, nor four two rows.
    """
    expected, losses = three_steps(train_step, tiny, state, plan, smooth)
    mesh = make_mesh(MeshConfig(agent=shape[0], data=shape[1], model=shape[2]))
    assert runs_in_parts(tiny.config, mesh)
    graphdef, _ = build(tiny.config, mesh=mesh, scan_layers=True)
    base, start = place_base(mesh, tiny.base), steps.init_state(jax.tree.map(jnp.array, tiny.weights))
    start = jax.device_put(start, society_shardings(mesh, start))
    in_parts = Programs(graphdef, tiny.config, mesh).train(likelihood, start, None, remat)
    for index in range(3):
        batch = place_batch(plan.batch(index), mesh)
        start, metrics = in_parts(base, start, batch, np.int32(index), smooth)
        np.testing.assert_allclose(metrics.loss, losses[index], rtol=1e-5)
    assert_close(jax.device_get(start), jax.device_get(expected))
