"""The loop of a training stage: batches in, steps out, checkpoints and metrics through the caller's hands."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mft_jax.errors import UserError
from mft_jax.finetuning.packing import Batch, Plan
from mft_jax.finetuning.step import Hyper, Metrics, Step, TrainState
from mft_jax.parallel.mesh import sharding


class NonFiniteLoss(UserError):
    """An agent's loss or gradient was not a finite number; its state is still the one before that step."""


def train(
    step: Step,
    base: nnx.State,
    state: TrainState,
    plan: Plan,
    hyper: Hyper,
    *,
    start: int = 0,
    save_every: int = 0,
    on_step: Callable[[int, Metrics], None] = lambda done, metrics: None,
    on_save: Callable[[int, TrainState], None] = lambda done, state: None,
    mesh: Mesh | None = None,
) -> TrainState:
    """Runs the steps start, start + 1, .. of a plan and returns the last state. The given state is donated.

    `on_step(done, metrics)` hears of each step, in order, when the next one is already under way: fetching metrics
    never holds up the device. `on_save(done, state)` is called after every `save_every` steps (0: never) with `done`
    steps behind it, all known to be finite; it must not keep the state, whose buffers the next step takes. A run that
    goes on from there with `start=done` repeats the same bytes.
    Raises NonFiniteLoss; no state with a non-finite step is ever handed out.
    """
    pending = None
    for index in range(start, plan.total):
        batch = place_batch(plan.batch(index), mesh)
        state, metrics = step(base, state, batch, np.asarray(index, np.int32), hyper)
        if pending is not None:
            _settle(*pending, plan, on_step)
        pending = (index, metrics)
        if save_every and (index + 1) % save_every == 0 and index + 1 < plan.total:
            _settle(*pending, plan, on_step)
            pending = None
            on_save(index + 1, state)
    if pending is not None:
        _settle(*pending, plan, on_step)
    return state


def place_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """A batch on its devices: agents and rows split as the mesh says."""
    if mesh is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda x: jax.device_put(x, sharding(mesh, "agent", "batch", None, shape=x.shape)), batch)


def _settle(index: int, metrics: Metrics, plan: Plan, on_step: Callable[[int, Metrics], None]) -> None:
    """Waits for a step's metrics, checks them and passes them on."""
    metrics = jax.device_get(metrics)
    broken = np.flatnonzero(metrics.active & ~metrics.finite)
    if len(broken):
        agent = plan.agents[broken[0]]
        role = agent.name.rsplit("_", 1)[0]
        raise NonFiniteLoss(
            f"The loss of {agent.name} is not finite (loss {metrics.loss[broken[0]]:.4g}, gradient norm "
            f"{metrics.grad_norm[broken[0]]:.4g}) at step {index + 1} of iteration {plan.iteration}; its weights were not "
            f"changed by it. Lower finetuning.{role}.learning_rate (now {agent.role.learning_rate:g}) and start again."
        )
    on_step(index + 1, metrics)
