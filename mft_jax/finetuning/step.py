"""The compiled optimizer step: forward, backward, clip, schedule and AdamW for all A = 2N agents.

Agents never leak into each other: every reduction is within an agent, and an agent without data in a step, or with a
non-finite gradient, keeps its adapter and its optimizer state bit for bit.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from mft_jax.config import FinetuningConfig
from mft_jax.finetuning.packing import AnyArray, Batch, Plan
from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter
from mft_jax.parallel.mesh import replicated, sharding

MAX_LOGITS = 2**26  # elements of [A, B, chunk, V] that may exist at once: 256 MiB in float32


class TrainState(NamedTuple):
    """What a step changes and a checkpoint keeps. Every leaf has the agent axis first."""

    adapters: Adapter  # of `lora.dtype`, whatever the base's type
    optimizer: PyTree  # optax.ScaleByAdamState: step count and moments


class Hyper(NamedTuple):
    """Settings as arrays: changing them does not compile again."""

    peak: Float[AnyArray, "A"]  # learning rate at the end of the warm-up
    warmup_steps: Int[AnyArray, "A"]
    total_steps: Int[AnyArray, "A"]
    weight_decay: Float[AnyArray, ""]
    beta1: Float[AnyArray, ""]
    beta2: Float[AnyArray, ""]
    eps: Float[AnyArray, ""]
    clip_norm: Float[AnyArray, ""]


class Metrics(NamedTuple):
    """Of one step, for each agent; an agent that did not learn reports a loss of 0 and 0 targets."""

    loss: Float[Array, "A"]  # nats per target
    grad_norm: Float[Array, "A"]  # before the clip
    learning_rate: Float[Array, "A"]
    targets: Float[Array, "A"]
    active: Bool[Array, "A"]  # had data
    finite: Bool[Array, "A"]  # loss and gradient; where not, the agent's state was left as it was


Step = Callable[[nnx.State, TrainState, Batch, AnyArray, Hyper], tuple[TrainState, Metrics]]


def init_state(adapters: Adapter) -> TrainState:
    """Fresh moments, and a step count for each agent."""
    return TrainState(adapters, jax.vmap(optax.scale_by_adam().init)(adapters))


def hyper_of(plan: Plan, config: FinetuningConfig) -> Hyper:
    """The settings of a stage. The warm-up is rounded up to whole steps of each agent."""
    scalars = (config.weight_decay, config.beta1, config.beta2, config.eps, config.clip_norm)
    return Hyper(
        np.array([agent.role.learning_rate for agent in plan.agents], np.float32),
        np.array([math.ceil(round(config.warmup * agent.steps, 6)) for agent in plan.agents], np.int32),
        plan.steps,
        *(np.asarray(value, np.float32) for value in scalars),
    )


def learning_rate(
    step: Int[AnyArray, ""],
    peak: Float[AnyArray, "A"],
    warmup_steps: Int[AnyArray, "A"],
    total_steps: Int[AnyArray, "A"],
) -> Float[Array, "A"]:
    """Linear warm-up, whose first step already learns, then a cosine that would be 0 one step after the agent's last."""
    rising = (step + 1) / jnp.maximum(warmup_steps, 1)
    progress = (step - warmup_steps) / jnp.maximum(total_steps - warmup_steps, 1)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
    return jnp.asarray(peak) * jnp.where(step < warmup_steps, rising, falling)


def agent_loss(model: Decoder, adapter: Adapter, rows: Batch, chunks: int, remat: bool) -> Float[Array, ""]:
    """One agent's mean negative log-likelihood of its targets; `rows` are [B, T] and [B, M]. 0 without targets.

    Logits of M / `chunks` targets of each row exist at a time; more than one chunk is recomputed in the backward pass.
    """
    tokens, positions, segment_ids, index, ids, weight = (jnp.asarray(x) for x in rows)
    hidden = model.hidden(tokens, positions, segment_ids, adapter, remat)
    hidden = jnp.take_along_axis(hidden, index[..., None], axis=1)  # [B, M, D]

    def summed(hidden: Array, ids: Array, weight: Array) -> Array:
        logits = model.logits(hidden)
        chosen = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == ids[..., None], logits, 0), axis=-1)
        return jnp.sum(weight * (jax.nn.logsumexp(logits, axis=-1) - chosen))

    if chunks == 1:
        total = summed(hidden, ids, weight)
    else:
        split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)
        parts = (split(hidden), split(ids), split(weight))
        add = lambda total, part: (total + jax.checkpoint(summed)(*part), None)
        total = jax.lax.scan(add, jnp.zeros(()), parts)[0]
    return total / jnp.maximum(jnp.sum(weight), 1)


def make_train_step(
    graphdef: nnx.GraphDef, config: FinetuningConfig, mesh: Mesh | None = None, agents: int | None = None
) -> Step:
    """The jitted step(base, state, batch, step, hyper) -> (state, metrics). The state is donated.

    Of `config` only `agents_at_once` and `remat` are compiled in. With a mesh, the state stays split over agents and
    the metrics are replicated; base and batch are computed with where they lie. `agents`, A, is needed only where the
    mesh's agent axis may not divide it: the state is then whole on every device.
    """

    def step(
        base: nnx.State, state: TrainState, batch: Batch, index: Int[Array, ""], hyper: Hyper
    ) -> tuple[TrainState, Metrics]:
        model = nnx.merge(graphdef, base)
        spread, together = _grouping(config, mesh, batch.tokens.shape[0])
        chunks = logit_chunks((spread * together, *batch.target_ids.shape[1:]), model.config.vocab_size)
        loss_of = lambda adapter, rows: agent_loss(model, adapter, rows, chunks, config.remat)
        loss, gradient = _over_agents(jax.value_and_grad(loss_of), spread, together, state.adapters, batch)
        norm = jax.vmap(optax.tree.norm)(gradient)
        rate = learning_rate(index, hyper.peak, hyper.warmup_steps, hyper.total_steps)
        targets = jnp.sum(batch.target_weight, axis=(1, 2))
        active, finite = targets > 0, jnp.isfinite(loss) & jnp.isfinite(norm)
        learnt = jax.vmap(_adamw, in_axes=(0, 0, 0, 0, None))(state, gradient, norm, rate, hyper)
        state = jax.tree.map(lambda new, old: jnp.where(_like(active & finite, old), new, old), learnt, state)
        return state, Metrics(loss, norm, rate, targets, active, finite)

    if mesh is None:
        return jax.jit(step, donate_argnames="state")
    # By name, not as constraints inside: those come out in another spelling, and the second call would compile again.
    over_agents = sharding(mesh, "agent", shape=None if agents is None else (agents,))
    return jax.jit(step, donate_argnames="state", out_shardings=(over_agents, replicated(mesh)))


def _grouping(config: FinetuningConfig, mesh: Mesh | None, agents: int) -> tuple[int, int]:
    """(devices that A agents are split over, agents that each of them computes together).

    On CPUs the latter is one unless configured: its rows alone fill a matmul, and its activations stay in the caches.
    """
    devices, spread = (jax.devices(), 1) if mesh is None else (mesh.devices.flat, math.gcd(mesh.shape["agent"], agents))
    own = agents // spread
    wanted = config.agents_at_once or (1 if devices[0].platform == "cpu" else own)
    return spread, max(size for size in range(1, min(wanted, own) + 1) if own % size == 0)


def _over_agents(gradient_of: Callable, spread: int, together: int, adapters: Adapter, batch: Batch) -> Any:
    """`gradient_of` mapped over the agents, group by group; a group in which nobody has data is not computed."""
    agents, size = batch.tokens.shape[0], spread * together
    if size == agents:
        return jax.vmap(gradient_of)(adapters, batch)
    # A device holds a run of agents; a group takes `together` of each device's. [A, ...] to [groups, size, ...] and back.
    split = lambda x: jnp.moveaxis(x.reshape(spread, -1, together, *x.shape[1:]), 1, 0).reshape(-1, size, *x.shape[1:])
    join = lambda x: jnp.moveaxis(x.reshape(-1, spread, together, *x.shape[2:]), 0, 1).reshape(agents, *x.shape[2:])

    def group(part: tuple[Adapter, Batch]) -> Any:
        adapters, rows = part
        nothing = lambda adapters, rows: (jnp.zeros(size), jax.tree.map(jnp.zeros_like, adapters))
        return jax.lax.cond(jnp.any(rows.target_weight > 0), jax.vmap(gradient_of), nothing, adapters, rows)

    return jax.tree.map(join, jax.lax.map(group, jax.tree.map(split, (adapters, batch))))


def logit_chunks(targets: tuple[int, ...], vocab: int, most: int = MAX_LOGITS) -> int:
    """The fewest equal parts of M, for targets [A, B, M], that keep the logits of a part within `most` elements."""
    agents, rows, per_row = targets
    fits = [n for n in range(1, per_row + 1) if per_row % n == 0 and agents * rows * (per_row // n) * vocab <= most]
    return fits[0] if fits else per_row


def _adamw(state: TrainState, gradient: PyTree, norm: Array, rate: Array, hyper: Hyper) -> TrainState:
    """One agent's clipped AdamW step (decoupled weight decay)."""
    scale = jnp.minimum(1.0, hyper.clip_norm / jnp.maximum(norm, 1e-12))
    gradient = jax.tree.map(lambda g: g * scale, gradient)
    adam = optax.scale_by_adam(hyper.beta1, hyper.beta2, hyper.eps)
    update, optimizer = adam.update(gradient, state.optimizer)
    moved = lambda p, u: (p - rate * (u + hyper.weight_decay * p)).astype(p.dtype)
    adapters = jax.tree.map(moved, state.adapters, update)
    return TrainState(adapters, optimizer)


def _like(flags: Bool[Array, "A"], leaf: Array) -> Array:
    """Flags of agents, shaped to broadcast against a leaf."""
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - 1))
