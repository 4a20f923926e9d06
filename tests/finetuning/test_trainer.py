import dataclasses
import signal

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
from mft_jax.signals import Terminated, raising
from tests.finetuning.conftest import CONFIG, LESSONS, example, plan_of


@pytest.fixture(scope="module")
def long_plan(chat, examples):
    """Seven steps for agent 0, one for agent 2, none for agent 1."""
    longer = dataclasses.replace(LESSONS[0], settings=dataclasses.replace(CONFIG.generator, epochs=6))
    return plan_of(chat, [examples[0], [], examples[2]], (longer, *LESSONS[1:]))


@pytest.fixture(scope="module")
def run(train_step, tiny, long_plan, one_device):
    """A function that trains from a state, and returns the result, the reported steps, and copies of saved states."""
    hyper = hyper_of(long_plan, CONFIG, tiny.lora.scale)

    def run(state, start=0):
        reported, saved = [], {}
        result = train(
            train_step, tiny.base, jax.tree.map(jnp.array, state), long_plan, hyper, start=start, save_every=3,
            on_step=lambda done, metrics: reported.append((done, metrics)), mesh=one_device,
            on_save=lambda done, state, busy: saved.update({done: (jax.device_get(state), busy)}),
        )  # fmt: skip
        return jax.device_get(result), reported, saved

    return run


@pytest.fixture(scope="module")
def complete_run(run, tiny):
    return run(init_state(tiny.weights))


class Scripted(Program):
    """A program that calls a Python function instead of a compiled step."""

    def __init__(self, function):
        super().__init__("train", function)
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


def same_bytes(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_callbacks(complete_run, long_plan):
    """Every step is reported once and in order; states are saved after every third step and the last one."""
    result, reported, saved = complete_run
    assert long_plan.steps.tolist()[1:] == [0, 1]
    assert [done for done, _ in reported] == list(range(1, long_plan.total + 1))
    assert list(saved) == sorted({*range(3, long_plan.total, 3), long_plan.total}) != []
    assert same_bytes(saved[long_plan.total][0], result)
    busy = [seconds for _, seconds in saved.values()]
    assert 0 < busy[0] < busy[-1] == max(busy)
    assert reported[0][1].active.tolist() == [True, False, True]
    assert reported[-1][1].active.tolist() == [True, False, False]
    assert isinstance(reported[0][1].loss, np.ndarray)
    assert result.optimizer.count.tolist() == [long_plan.total, 0, 1]


def test_it_learns(complete_run):
    losses = [metrics.loss[0] for _, metrics in complete_run[1]]
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])


def test_an_agent_without_examples_keeps_its_weights(complete_run, tiny):
    assert same_bytes(*(jax.tree.map(lambda x: np.asarray(x)[1], t) for t in (complete_run[0].adapters, tiny.weights)))


def test_resuming_from_a_saved_state_reproduces_the_same_bytes(run, complete_run):
    result, reported, saved = complete_run
    again, reported_again, _ = run(saved[3][0], start=3)
    assert same_bytes(again, result)
    assert same_bytes([metrics for _, metrics in reported_again], [metrics for _, metrics in reported[3:]])


@pytest.mark.parametrize(("arrives_at", "saves"), [(0, []), (4, [3, 5]), (5, [3, 6])])
def test_sigterm_saves_the_step_in_progress(
    train_step, tiny, long_plan, one_device, run, complete_run, arrives_at, saves
):
    """Except in the first step, which changes nothing yet. Steps are counted from 0, saves by the steps done."""

    def interrupted(base, state, batch, index, hyper):
        if index == arrives_at:
            signal.raise_signal(signal.SIGTERM)
        return train_step(base, state, batch, index, hyper)

    reported, saved = [], {}
    with raising(), pytest.raises(Terminated):
        train(
            Scripted(interrupted), tiny.base, init_state(jax.tree.map(jnp.array, tiny.weights)), long_plan,
            hyper_of(long_plan, CONFIG, tiny.lora.scale), save_every=3, mesh=one_device,
            on_step=lambda done, _: reported.append(done),
            on_save=lambda done, state, busy: saved.update({done: jax.device_get(state)}),
        )  # fmt: skip
    assert list(saved) == saves
    assert reported == list(range(1, max(saves, default=0) + 1))
    if saves:
        assert same_bytes(run(saved[saves[-1]], start=saves[-1])[0], complete_run[0])


def test_no_steps_left(run, complete_run, long_plan):
    result, reported, _ = run(complete_run[0], start=long_plan.total)
    assert reported == []
    assert same_bytes(result, complete_run[0])


def test_a_non_finite_loss_stops_training_before_a_save(train_step, tiny, long_plan, one_device):
    """The error names agent, iteration, step and remedy. Step 3 is not finite, and would be the first to be saved."""

    def nan_at_the_third(base, state, batch, index, hyper):
        if index == 2:
            adapters = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), state.adapters)
            state = TrainState(adapters, state.optimizer)
        return train_step(base, state, batch, index, hyper)

    reported = []
    with pytest.raises(
        NonFiniteLoss, match=r"updated weights of ann .* step 3 of iteration 2.*finetuning\.generator\.learning_rate"
    ):
        train(
            Scripted(nan_at_the_third), tiny.base, init_state(jax.tree.map(jnp.array, tiny.weights)), long_plan,
            hyper_of(long_plan, CONFIG, tiny.lora.scale), save_every=3, mesh=one_device,
            on_step=lambda done, _: reported.append(done), on_save=lambda *_: pytest.fail("a bad step was saved"),
        )  # fmt: skip
    assert reported == [1, 2]


def test_metrics_are_fetched_one_step_later(long_plan, one_device):
    """A step is reported after the next one has been dispatched."""
    order = []

    def step(base, state, batch, index, hyper):
        order.append(f"start {index + 1}")
        value = jnp.ones(3)
        return state, Metrics(value, value, value, value, value > 0, value > 0)

    report = lambda done, _: order.append(f"reported {done}")
    train(Scripted(step), None, None, long_plan, None, on_step=report, mesh=one_device)
    assert order[:4] == ["start 1", "start 2", "reported 1", "start 3"]
    assert order[-1] == f"reported {long_plan.total}"


def test_batches_are_sharded_by_the_rules(chat, tiny):
    """Batches are sharded over agents and rows before they are passed to the step."""
    mesh, seen = make_mesh(MeshConfig(agent=2, data=2)), []
    dialogues = [[example("q", "1+1", "2")]] * 2
    plan = plan_of(chat, dialogues, LESSONS[:2])

    def step(base, state, batch, index, hyper):
        seen.append(batch)
        value = jnp.ones(2)
        return state, Metrics(value, value, value, value, value > 0, value > 0)

    train(Scripted(step), None, None, plan, None, mesh=mesh)
    assert {shard.data.shape[:2] for array in jax.tree.leaves(seen[0]) for shard in array.addressable_shards} == {
        (1, 1)
    }
