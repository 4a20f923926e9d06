"""The training loop of a finetuning stage. The caller saves checkpoints and logs metrics in callbacks."""

import contextlib
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mft_jax.errors import UserError
from mft_jax.finetuning.packing import Plan
from mft_jax.parallel.hosts import deferred
from mft_jax.parallel.mesh import sharding
from mft_jax.parallel.placement import to_devices
from mft_jax.programs.program import BusyClock, Program
from mft_jax.programs.train import Batch, Hyper, Metrics, TrainState


class NonFiniteLoss(UserError):
    """The loss, gradient or updated state of an adapter is not finite. The step did not change that adapter."""


def train(
    step: Program,
    base: nnx.State,
    state: TrainState,
    plan: Plan,
    hyper: Hyper,
    *,
    mesh: Mesh,
    start: int = 0,
    save_every: int = 0,
    on_step: Callable[[int, Metrics], None] = lambda done, metrics: None,
    on_save: Callable[[int, TrainState, float], None] = lambda done, state, busy: None,
) -> TrainState:
    """Runs the steps start, start + 1, ... of a plan and returns the last state. Donates the given state.

    `on_step(done, metrics)` is called for every step in order, with `done` steps finished. It is called after the next
    step has been dispatched, so that fetching metrics does not stall the devices.

    `on_save(done, state, busy)` is called after every `save_every` steps (0: never) and after the last step. `busy` is
    the time in seconds, since `start`, in which dispatched steps were running, without compilation. The callback must
    copy the state if it keeps it, because the next step reuses its buffers. A run that is resumed from this state with
    `start=done` gives the same bytes.

    After SIGINT or SIGTERM, the step in progress is finished, and saved unless `save_every` is 0, before the signal takes
    effect. During the first step, which may have to be compiled for minutes, it takes effect at once: no step would be lost.

    Raises NonFiniteLoss if the loss, the gradient or the updated state of an adapter is not finite. `on_save` gets only
    states after finite steps.
    """
    pending, busy = None, BusyClock(step)
    for index in range(start, plan.total):
        with contextlib.nullcontext([]) if index == start else deferred() as arrived:
            batch = place_batch(plan.batch(index), mesh)
            busy.start()
            state, metrics = step(base, state, batch, np.asarray(index, np.int32), hyper)
            if pending is not None:
                _report_step(*pending, plan, on_step)
            pending = (index, metrics)
            if index + 1 == plan.total or (save_every and (arrived or (index + 1) % save_every == 0)):
                _report_step(*pending, plan, on_step)
                pending = None
                busy.stop()
                on_save(index + 1, state, busy.seconds)
    return state


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Copies a batch to the devices, sharded over the mesh's agent and data axes where their sizes divide evenly."""
    # [A, B, ...], except the values and weights of sequences, which are [A, S]
    axes = lambda array: ("agent", "batch", None) if array.ndim == 3 else ("agent", None)
    put = lambda array: to_devices(array, sharding(mesh, *axes(array), shape=array.shape))
    return jax.tree.map(put, batch)


def _report_step(index: int, metrics: Metrics, plan: Plan, on_step: Callable[[int, Metrics], None]) -> None:
    """Waits for the metrics of a step and passes them to `on_step`. Raises NonFiniteLoss."""
    metrics = jax.device_get(metrics)
    broken = np.flatnonzero(metrics.active & ~metrics.finite)
    if len(broken):
        own, place = plan.adapters[broken[0]], broken[0]
        raise NonFiniteLoss(
            f"The loss, the gradient or the updated weights of {own.name} are not finite at step {index + 1} of "
            f"iteration {plan.iteration} (loss {metrics.loss[place]:.4g}, gradient norm "
            f"{metrics.grad_norm[place]:.4g}); the step did not change the weights. Lower "
            f"{own.lesson.field}.learning_rate (now {own.lesson.settings.learning_rate:g}) and run the same command "
            "again, which resumes from the last checkpoint. If its weights are too large already, also delete "
            f"iteration_{plan.iteration}/checkpoint, to restart the finetuning of this iteration."
        )
    on_step(index + 1, metrics)
