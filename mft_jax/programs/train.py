"""The training step: forward, backward, gradient clipping, learning rate schedule and AdamW for all A adapters at once.

Adapters are trained independently: no reduction mixes two of them. An adapter that has no data in a step, or whose loss,
gradient or updated state is not finite, keeps its weights and its optimizer state exactly as they were.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from mft_jax.config import Remat
from mft_jax.models.decoder import Decoder
from mft_jax.models.lora import Adapter, AdapterWeights
from mft_jax.programs.arrays import AnyArray
from mft_jax.programs.over_agents import map_agents

MAX_LOGITS = 2**26  # most elements of logits [A, B, chunk, V] in memory at once: 256 MiB in float32

# start: the adapter as it is before the finetuning stage. base: the base model without an adapter.
Reference = Literal["start", "base"]


class Signals(NamedTuple):
    """What a preference or a policy gradient is computed from, besides the log-probabilities of the targets.

    A sequence is a whole training dialogue; its targets may lie in several segments. Sequences 2k and 2k + 1 of an
    adapter's batch belong together: an example has the number 2k and, if it has a counterpart, this has 2k + 1.
    """

    sequence: Int[AnyArray, "A B M"]  # of each target: the number of its sequence, 0..S-1
    reference: Float[AnyArray, "A B M"]  # of each target: its log-probability under the reference model, in nats
    old: Float[AnyArray, "A B M"]  # of each target: its log-probability under the model that sampled it, in nats
    value: Float[AnyArray, "A S"]  # of each sequence: its advantage, or +1 for a desirable one and -1 for another
    weight: Float[AnyArray, "A S"]  # of each sequence: its weight in the loss; 0 if there is no such sequence


class Targets(NamedTuple):
    """The targets of one adapter in a step: the argument of an objective."""

    log_probs: Float[Array, "B M"]  # under the adapter, in nats
    weight: Float[Array, "B M"]  # 0 for padding
    entropy: Float[Array, "B M"] | None = None  # of the distribution of each target, in nats; None if not asked for
    signals: Signals | None = None  # without the axis A; None for the likelihood


class Objective(Protocol):
    """A training loss: a hashable value, because each objective has its own compiled step."""

    @property
    def uses_entropy(self) -> bool:
        """Whether it needs `Targets.entropy`."""
        ...

    @property
    def uses_signals(self) -> bool:
        """Whether it needs `Targets.signals`."""
        ...

    @property
    def uses_old(self) -> bool:
        """Whether it needs `Signals.old`."""
        ...

    @property
    def uses_reference(self) -> bool:
        """Whether it needs `Signals.reference`."""
        ...

    @property
    def reference(self) -> Reference:
        """The model that `Signals.reference` comes from."""
        ...

    def __call__(self, targets: Targets) -> Float[Array, ""]: ...


class Batch(NamedTuple):
    """The packed rows of one optimizer step.

    Padding tokens have segment id 0 and no targets. An adapter without rows has only target weights of 0. Logits are
    computed for the targets only: the hidden state at `target_index[m]` of a row predicts its target `target_ids[m]`.
    """

    tokens: Int[AnyArray, "A B T"]
    positions: Int[AnyArray, "A B T"]  # restart at 0 in every segment
    segment_ids: Int[AnyArray, "A B T"]  # 1, 2, .. within a row
    target_index: Int[AnyArray, "A B M"]
    target_ids: Int[AnyArray, "A B M"]
    target_weight: Float[AnyArray, "A B M"]  # the weight of a target, usually 1; 0 for padding
    signals: Signals | None = None  # for objectives that use them


class TrainState(NamedTuple):
    """What a step updates and a checkpoint stores. The leading axis of every leaf is the adapter axis."""

    adapters: AdapterWeights  # in `lora.dtype`, whatever the dtype of the base
    optimizer: PyTree  # optax.ScaleByAdamState: step count and moments


class Hyper(NamedTuple):
    """Hyperparameters as arrays, so that new values need no recompilation."""

    lora_scale: Float[AnyArray, "A"]  # alpha / rank
    peak: Float[AnyArray, "A"]  # learning rate at the end of the warm-up
    warmup_steps: Int[AnyArray, "A"]
    total_steps: Int[AnyArray, "A"]
    weight_decay: Float[AnyArray, ""]
    beta1: Float[AnyArray, ""]
    beta2: Float[AnyArray, ""]
    eps: Float[AnyArray, ""]
    clip_norm: Float[AnyArray, ""]


class Metrics(NamedTuple):
    """Metrics of one step for each adapter. An adapter without data has a loss of 0 and 0 targets."""

    loss: Float[Array, "A"]  # value of the objective; for the likelihood, nats per target
    grad_norm: Float[Array, "A"]  # before clipping
    learning_rate: Float[Array, "A"]
    targets: Float[Array, "A"]  # sum of the weights of the targets: their number if all are 1
    active: Bool[Array, "A"]  # had data
    # Loss, gradient, updated weights and updated moments are all finite. If not, the step did not change the adapter.
    finite: Bool[Array, "A"]


def init_state(adapters: AdapterWeights) -> TrainState:
    """The state before the first step: the given adapters, zero moments, and a step count of 0 for each adapter."""
    return TrainState(adapters, _no_moments(adapters))


@jax.jit  # one program, not one for each shape of weights
def _no_moments(adapters: AdapterWeights) -> PyTree:
    return jax.vmap(optax.scale_by_adam().init)(adapters)


def train_step(
    graphdef: nnx.GraphDef,
    mesh: Mesh,
    objective: Objective,
    agents_at_once: int | None,
    remat: Remat,
    base: nnx.State,
    state: TrainState,
    batch: Batch,
    index: Int[Array, ""],
    hyper: Hyper,
) -> tuple[TrainState, Metrics]:
    """One optimizer step of all adapters. `index` is the step number within the finetuning stage, from 0.

    The first five arguments are constants of the compiled program. The others are arrays.
    """
    model = nnx.merge(graphdef, base)
    spread, together = grouping(mesh, agents_at_once, batch.tokens.shape[0])
    chunks = logit_chunks((spread * together, *batch.target_ids.shape[1:]), model.config.vocab_size)

    def loss_of(weights: AdapterWeights, scale: Array, rows: Batch) -> Float[Array, ""]:
        adapter = Adapter(weights, scale)
        scored = target_scores(model, adapter, rows, chunks, remat, entropy=objective.uses_entropy)
        return objective(Targets(scored[0], jnp.asarray(rows.target_weight), scored[1], rows.signals))

    loss, gradient = _map_in_groups(
        mesh, jax.value_and_grad(loss_of), spread, together, state.adapters, jnp.asarray(hyper.lora_scale), batch
    )
    norm = jax.vmap(optax.tree.norm)(gradient)
    rate = learning_rate(index, hyper.peak, hyper.warmup_steps, hyper.total_steps)
    targets = jnp.sum(batch.target_weight, axis=(1, 2))
    stepped = jax.vmap(adamw, in_axes=(0, 0, 0, 0, None))(state, gradient, norm, rate, hyper)
    active, finite = targets > 0, jnp.isfinite(loss) & jnp.isfinite(norm) & _all_finite(stepped)
    keep = active & finite
    choose = lambda new, old: jnp.where(keep.reshape(keep.shape + (1,) * (old.ndim - 1)), new, old)
    return jax.tree.map(choose, stepped, state), Metrics(loss, norm, rate, targets, active, finite)


def target_scores(
    model: Decoder, adapter: Adapter, rows: Batch, chunks: int, remat: Remat, *, entropy: bool = False
) -> tuple[Float[Array, "B M"], Float[Array, "B M"] | None]:
    """(log-probability of each target, entropy of its distribution or None), in nats, for one adapter's rows.

    The fields of `rows` are [B, T] and [B, M]. The logits are computed in `chunks` parts of M / `chunks` targets per row.
    With more than one part they are recomputed in the backward pass.
    """
    tokens, positions, segment_ids, index, ids = (jnp.asarray(x) for x in rows[:5])
    hidden = model.hidden(tokens, positions, segment_ids, adapter, remat)
    hidden = jnp.take_along_axis(hidden, index[..., None], axis=1)  # [B, M, D]

    def of_chunk(hidden: Array, ids: Array) -> tuple[Float[Array, "B C"], Float[Array, "B C"] | None]:
        logits = model.logits(hidden)
        chosen = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == ids[..., None], logits, 0), axis=-1)
        total = jax.nn.logsumexp(logits, axis=-1)
        mean = jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1) if entropy else None
        return chosen - total, None if mean is None else total - mean

    if chunks == 1:
        return of_chunk(hidden, ids)
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)
    parts = jax.lax.map(lambda part: jax.checkpoint(of_chunk)(*part), (split(hidden), split(ids)))
    return jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1).reshape(ids.shape), parts)


def learning_rate(
    step: Int[AnyArray, ""],
    peak: Float[AnyArray, "A"],
    warmup_steps: Int[AnyArray, "A"],
    total_steps: Int[AnyArray, "A"],
) -> Float[Array, "A"]:
    """The learning rate of each adapter at `step`, counted from 0: linear warm-up to `peak`, then cosine decay.

    The first warm-up step has a rate above 0. The cosine would reach 0 one step after the last step.
    """
    rising = (step + 1) / jnp.maximum(warmup_steps, 1)
    progress = (step - warmup_steps) / jnp.maximum(total_steps - warmup_steps, 1)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
    return jnp.asarray(peak) * jnp.where(step < warmup_steps, rising, falling)


def grouping(mesh: Mesh, agents_at_once: int | None, adapters: int) -> tuple[int, int]:
    """How many devices the adapters are sharded over, and how many gradients each device computes in one batch.

    The second number is at most `agents_at_once` and divides the adapters of a device. With `agents_at_once` None it is
    1 on CPUs, where one adapter's rows fill a matmul and its activations stay in the CPU caches, and otherwise all
    adapters of a device.
    """
    spread = math.gcd(mesh.shape["agent"], adapters)
    own = adapters // spread
    wanted = agents_at_once or (1 if mesh.devices.flat[0].platform == "cpu" else own)
    return spread, max(size for size in range(1, min(wanted, own) + 1) if own % size == 0)


def logit_chunks(targets: tuple[int, ...], vocab: int, most: int = MAX_LOGITS) -> int:
    """The smallest number of equal parts of M whose logits have at most `most` elements, for `targets` (A, B, M).

    M if even one target per row is too many.
    """
    adapters, rows, per_row = targets
    fits = [n for n in range(1, per_row + 1) if per_row % n == 0 and adapters * rows * (per_row // n) * vocab <= most]
    return fits[0] if fits else per_row


def adamw(state: TrainState, gradient: PyTree, norm: Array, rate: Array, hyper: Hyper) -> TrainState:
    """One adapter's AdamW step (Loshchilov and Hutter, 2019), with the gradient clipped to a norm of `clip_norm`."""
    scale = jnp.minimum(1.0, hyper.clip_norm / jnp.maximum(norm, 1e-12))
    gradient = jax.tree.map(lambda g: g * scale, gradient)
    adam = optax.scale_by_adam(hyper.beta1, hyper.beta2, hyper.eps)
    update, optimizer = adam.update(gradient, state.optimizer)
    moved = lambda p, u: (p - rate * (u + hyper.weight_decay * p)).astype(p.dtype)
    return TrainState(jax.tree.map(moved, state.adapters, update), optimizer)


def _map_in_groups(
    mesh: Mesh, gradient_of: Callable, spread: int, together: int, adapters: AdapterWeights, scale: Array, batch: Batch
) -> Any:
    """Maps `gradient_of` over the adapters, one group at a time. Groups in which no adapter has data are skipped."""
    count, size = batch.tokens.shape[0], spread * together
    mapped = map_agents(mesh, size, gradient_of)
    if size == count:
        return mapped(adapters, scale, batch)
    # Each device has a block of consecutive adapters. A group takes `together` adapters from each device's block.
    # `split` reshapes [A, ...] to [groups, size, ...]; `join` is its inverse.
    split = lambda x: jnp.moveaxis(x.reshape(spread, -1, together, *x.shape[1:]), 1, 0).reshape(-1, size, *x.shape[1:])
    join = lambda x: jnp.moveaxis(x.reshape(-1, spread, together, *x.shape[2:]), 0, 1).reshape(count, *x.shape[2:])

    def of_group(part: tuple[AdapterWeights, Array, Batch]) -> Any:
        nothing = lambda adapters, scale, rows: (jnp.zeros(size), jax.tree.map(jnp.zeros_like, adapters))
        return jax.lax.cond(jnp.any(part[2].target_weight > 0), mapped, nothing, *part)

    return jax.tree.map(join, jax.lax.map(of_group, jax.tree.map(split, (adapters, scale, batch))))


def _all_finite(state: TrainState) -> Bool[Array, "A"]:
    """For each adapter, whether all its weights and moments are finite."""
    # 0 times any other number is NaN, and so is the sum. On CPUs this takes a sixth of the time of isfinite for each number.
    zeros = lambda leaf: jnp.sum(0 * leaf.reshape(leaf.shape[0], -1), axis=1)
    return jnp.isfinite(jnp.stack([zeros(leaf) for leaf in jax.tree.leaves(state)])).all(axis=0)
