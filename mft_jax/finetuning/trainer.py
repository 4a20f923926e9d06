"""The loop of a training stage: batches in, steps out; checkpoints and metrics are the caller's, through callbacks."""

import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mft_jax.errors import UserError
from mft_jax.finetuning.packing import Plan
from mft_jax.parallel.mesh import sharding
from mft_jax.programs.program import Program
from mft_jax.programs.train import Batch, Hyper, Metrics, TrainState


class NonFiniteLoss(UserError):
    """An adapter's loss, gradient or new weights were not finite numbers; its state is still the one before that step."""


class Busy:
    """Adds up the seconds in which the devices had a dispatched program to finish; compilation is not among them."""

    def __init__(self, program: Program):
        self.seconds = 0.0
        self._program = program
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Before a dispatch; nothing happens while another one is under way."""
        if self._since is None:
            self._since = time.perf_counter(), self._program.compile_seconds

    def stop(self) -> None:
        """When all that was dispatched has been waited for."""
        if self._since is not None:
            started, compiled = self._since
            self.seconds += time.perf_counter() - started - (self._program.compile_seconds - compiled)
            self._since = None


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
    """Runs the steps start, start + 1, .. of a plan and returns the last state. The given state is donated.

    `on_step(done, metrics)` hears of each step, in order, when the next one is already under way: fetching metrics
    never holds up the device. `on_save(done, state, busy)` is called after every `save_every` steps (0: never) and
    after the last one, with `done` steps behind it, all known to be finite, and the seconds in which the devices were
    busy since the start; it must not keep the state, whose buffers the next step takes. A run that is resumed from
    there with `start=done` repeats the same bytes.
    Raises NonFiniteLoss; no state with a non-finite step is ever handed out.
    """
    pending, busy = None, Busy(step)
    for index in range(start, plan.total):
        batch = place_batch(plan.batch(index), mesh)
        busy.start()
        state, metrics = step(base, state, batch, np.asarray(index, np.int32), hyper)
        if pending is not None:
            _report_step(*pending, plan, on_step)
        pending = (index, metrics)
        if index + 1 == plan.total or (save_every and (index + 1) % save_every == 0):
            _report_step(*pending, plan, on_step)
            pending = None
            busy.stop()
            on_save(index + 1, state, busy.seconds)
    return state


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """A batch on its devices: adapters and rows split as the mesh says."""
    return jax.tree.map(lambda x: jax.device_put(x, sharding(mesh, "agent", "batch", None, shape=x.shape)), batch)


def _report_step(index: int, metrics: Metrics, plan: Plan, on_step: Callable[[int, Metrics], None]) -> None:
    """Waits for a step's metrics, checks them and passes them on."""
    metrics = jax.device_get(metrics)
    broken = np.flatnonzero(metrics.active & ~metrics.finite)
    if len(broken):
        own, place = plan.adapters[broken[0]], broken[0]
        raise NonFiniteLoss(
            f"The loss of {own.name}, its gradient or what it makes of the weights is not finite (loss "
            f"{metrics.loss[place]:.4g}, gradient norm {metrics.grad_norm[place]:.4g}) at step {index + 1} of iteration "
            f"{plan.iteration}; its weights were not changed by it. Lower {own.lesson.field}.learning_rate (now "
            f"{own.lesson.settings.learning_rate:g}) and start again, which resumes from the last checkpoint; to finetune "
            f"from the beginning, where those weights are too large already, delete iteration_{plan.iteration}/checkpoint too."
        )
    on_step(index + 1, metrics)
