import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mft_jax.config import MeshConfig
from mft_jax.finetuning.packing import hyper_of
from mft_jax.finetuning.trainer import NonFiniteLoss, train
from mft_jax.parallel.mesh import make_mesh
from mft_jax.programs.program import Program
from mft_jax.programs.train import Metrics, TrainState, init_state
from tests.finetuning.conftest import CONFIG, LESSONS, example, plan_of


@pytest.fixture(scope="module")
def long_plan(chat, examples):
    """Seven steps for agent 0, one for agent 2, none for agent 1."""
    longer = dataclasses.replace(LESSONS[0], settings=dataclasses.replace(CONFIG.generator, epochs=6))
    return plan_of(chat, [examples[0], [], examples[2]], (longer, *LESSONS[1:]))


@pytest.fixture(scope="module")
def run(train_step, tiny, long_plan, one_device):
    """Trains from a state, and keeps copies of what is saved on the way."""
    hyper = hyper_of(long_plan, CONFIG, tiny.lora.scale)

    def run(state, start=0):
        heard, saved = [], {}
        result = train(
            train_step, tiny.base, jax.tree.map(jnp.array, state), long_plan, hyper, start=start, save_every=3,
            on_step=lambda done, metrics: heard.append((done, metrics)), mesh=one_device,
            on_save=lambda done, state, busy: saved.update({done: (jax.device_get(state), busy)}),
        )  # fmt: skip
        return jax.device_get(result), heard, saved

    return run


@pytest.fixture(scope="module")
def whole(run, tiny):
    return run(init_state(tiny.weights))


class Scripted(Program):
    """A function in place of the compiled step."""

    def __init__(self, function):
        super().__init__("train", function)
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


def same_bytes(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_callbacks(whole, long_plan):
    """Every step is heard of once and in order; states are saved between steps, the last one is returned."""
    result, heard, saved = whole
    assert long_plan.steps.tolist()[1:] == [0, 1]
    assert [done for done, _ in heard] == list(range(1, long_plan.total + 1))
    assert list(saved) == sorted({*range(3, long_plan.total, 3), long_plan.total}) != []
    assert same_bytes(saved[long_plan.total][0], result)
    busy = [seconds for _, seconds in saved.values()]
    assert 0 < busy[0] < busy[-1] == max(busy)
    assert heard[0][1].active.tolist() == [True, False, True]
    assert heard[-1][1].active.tolist() == [True, False, False]
    assert isinstance(heard[0][1].loss, np.ndarray)
    assert result.optimizer.count.tolist() == [long_plan.total, 0, 1]


def test_it_learns(whole):
    losses = [metrics.loss[0] for _, metrics in whole[1]]
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])


def test_an_agent_without_examples_keeps_its_weights(whole, tiny):
    assert same_bytes(*(jax.tree.map(lambda x: np.asarray(x)[1], t) for t in (whole[0].adapters, tiny.weights)))


def test_resuming_from_a_save_repeats_the_same_bytes(run, whole):
    result, heard, saved = whole
    again, heard_again, _ = run(saved[3][0], start=3)
    assert same_bytes(again, result)
    assert same_bytes([metrics for _, metrics in heard_again], [metrics for _, metrics in heard[3:]])


def test_nothing_to_learn(run, whole, long_plan):
    result, heard, _ = run(whole[0], start=long_plan.total)
    assert heard == []
    assert same_bytes(result, whole[0])


def test_a_non_finite_loss_stops_before_anything_of_it_is_saved(train_step, tiny, long_plan, one_device):
    """One sentence that names agent, iteration, step and remedy. Step 3 is the bad one, and the first to be saved."""

    def bad_at_the_third(base, state, batch, index, hyper):
        if index == 2:
            adapters = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), state.adapters)
            state = TrainState(adapters, state.optimizer)
        return train_step(base, state, batch, index, hyper)

    heard = []
    with pytest.raises(
        NonFiniteLoss, match=r"updated weights of ann .* step 3 of iteration 2.*finetuning\.generator\.learning_rate"
    ):
        train(
            Scripted(bad_at_the_third), tiny.base, init_state(jax.tree.map(jnp.array, tiny.weights)), long_plan,
            hyper_of(long_plan, CONFIG, tiny.lora.scale), save_every=3, mesh=one_device,
            on_step=lambda done, _: heard.append(done), on_save=lambda *_: pytest.fail("a bad step was saved"),
        )  # fmt: skip
    assert heard == [1, 2]


def test_metrics_are_fetched_one_step_behind(long_plan, one_device):
    """When a step is heard of, the next one has been given to the device."""
    order = []

    def step(base, state, batch, index, hyper):
        order.append(f"start {index + 1}")
        value = jnp.ones(3)
        return state, Metrics(value, value, value, value, value > 0, value > 0)

    hear = lambda done, _: order.append(f"heard {done}")
    train(Scripted(step), None, None, long_plan, None, on_step=hear, mesh=one_device)
    assert order[:4] == ["start 1", "start 2", "heard 1", "start 3"]
    assert order[-1] == f"heard {long_plan.total}"


def test_rows_are_placed_by_the_rules(chat, tiny):
    """Agents and rows of a batch are split over the mesh before the step sees them."""
    mesh, seen = make_mesh(MeshConfig(agent=2, data=2)), []
    dialogues = [[example("q", "1+1", "2")]] * 2
    plan = plan_of(chat, dialogues, LESSONS[:2])

    def step(base, state, batch, index, hyper):
        seen.append(batch)
        value = jnp.ones(2)
        return state, Metrics(value, value, value, value, value > 0, value > 0)

    train(Scripted(step), None, None, plan, None, mesh=mesh)
    assert {shard.data.shape[:2] for array in seen[0] for shard in array.addressable_shards} == {(1, 1)}
