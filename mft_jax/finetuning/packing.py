"""Makes batches from dialogues: encodes them, packs them into rows of T tokens, and stacks the adapters to [A, B, T].

All functions are deterministic, so a run that is resumed at step t gets the same batches.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Int

from mft_jax.config import FinetuningConfig
from mft_jax.finetuning.encoding import Part, encode_apart, encode_together
from mft_jax.finetuning.examples import Example
from mft_jax.finetuning.lesson import Lesson
from mft_jax.models.chat import Chat, Encoded
from mft_jax.programs.train import Batch, Hyper, Signals
from mft_jax.seeds import packing


@dataclasses.dataclass(frozen=True)
class AdapterPlan:
    """The packed training data of one adapter in a finetuning stage."""

    lesson: Lesson
    parts: tuple[Part, ...]
    # Number of examples left out, or of parts if these are encoded apart: longer than a row, or without targets.
    left_out: int
    rows: tuple[tuple[int, ...], ...]  # indices of the parts in each row, for all epochs in order
    steps: int  # optimizer steps; 0: no examples, the adapter is not changed

    @property
    def name(self) -> str:
        """The name of the adapter."""
        return self.lesson.adapter

    @property
    def examples(self) -> tuple[Encoded, ...]:
        """The token ids of the parts, and the masks of their targets."""
        return tuple(part.encoded for part in self.parts)

    def rows_of(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The rows of `step` (from 0), as indices of parts. Empty after the last step.

        The rows are spread evenly over the steps, so that the last step is not a small remainder.
        """
        if step >= self.steps:
            return ()
        return self.rows[step * len(self.rows) // self.steps : (step + 1) * len(self.rows) // self.steps]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batches of a finetuning stage, each made on request."""

    adapters: tuple[AdapterPlan, ...]
    iteration: int  # for error messages
    batch_rows: int  # B
    row_tokens: int  # T
    row_targets: int  # M, the same in all steps of the stage, so that one step is compiled
    sequences: int  # S, the same in all steps too; 0: the objective needs no signals

    @property
    def total(self) -> int:
        """The number of steps of the stage: that of the adapter with the most data."""
        return max((adapter.steps for adapter in self.adapters), default=0)

    @property
    def steps(self) -> Int[np.ndarray, "A"]:
        """The number of optimizer steps of each adapter."""
        return np.array([adapter.steps for adapter in self.adapters], np.int32)

    @property
    def left_out(self) -> Int[np.ndarray, "A"]:
        """The number of examples of each adapter that are not trained on: too long for a row, or without targets."""
        return np.array([adapter.left_out for adapter in self.adapters], np.int32)

    def batch(self, step: int) -> Batch:
        """The batch of `step` (from 0) for all adapters, as numpy arrays."""
        batch = _empty_batch((len(self.adapters), self.batch_rows), self.row_tokens, self.row_targets, self.sequences)
        for index, adapter in enumerate(self.adapters):
            numbers: dict[tuple[int, int], int] = {}
            for place, row in enumerate(adapter.rows_of(step)):
                parts = [adapter.parts[i] for i in row]
                arrays = jax.tree.map(lambda array, at=(index, place): array[at], batch._replace(signals=None))
                _fill_row(arrays, parts, weighted=batch.signals is None)
                if batch.signals is not None:
                    for part in parts:  # an example can be in a step twice, at the end of an epoch and in the next
                        numbers.setdefault((place, part.example), len(numbers))
                    own = jax.tree.map(lambda array, at=index: array[at], batch.signals)
                    _fill_signals(own, place, parts, [numbers[place, part.example] for part in parts])
        return batch

    def tokens(self, step: int) -> int:
        """The number of tokens in the batch of `step`, over all adapters and without padding."""
        return sum(len(own.parts[i].encoded[0]) for own in self.adapters for row in own.rows_of(step) for i in row)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the batches.

        Checkpoints store it, so that they are resumed with the same batches only.
        """
        digest = hashlib.sha256(f"{self.batch_rows} {self.row_tokens}".encode())
        for own in self.adapters:
            digest.update(f"{own.name} {own.steps} {own.rows}".encode())
            for part in own.parts:
                digest.update(part.encoded[0].tobytes() + part.encoded[1].tobytes())
                if self.sequences or part.weight != 1:
                    digest.update(f"{part.example} {part.is_counterpart} {part.weight} {part.value}".encode())
                for known in (part.reference, part.old):
                    digest.update(b"" if known is None else known.tobytes())
        return digest.hexdigest()


def make_plan(
    chat: Chat,
    lessons: Sequence[Lesson],
    examples: Mapping[str, Sequence[Example]],
    config: FinetuningConfig,
    *,
    seed: int,
    iteration: int,
    signals: bool = False,
) -> Plan:
    """Encodes and packs the examples of each adapter. The adapters of the plan are in the order of the lessons.

    `signals`: whether the objective uses signals. The parts of an example are then in the same row.

    Raises UserError if the chat template does not render an assistant turn as a continuation of its prompt.
    """
    plans = []
    for index, lesson in enumerate(lessons):
        encode = encode_together if signals else encode_apart
        units, left_out = encode(chat, examples[lesson.adapter], config.row_tokens)
        lengths = [sum(len(part.encoded[0]) for part in unit) for unit in units]
        starts = np.cumsum([0, *map(len, units)]).tolist()
        epochs = [
            pack_rows(lengths, config.row_tokens, packing(seed, iteration, index, epoch))
            for epoch in range(lesson.settings.epochs)
        ]
        rows = tuple(
            tuple(i for unit in row for i in range(starts[unit], starts[unit + 1])) for epoch in epochs for row in epoch
        )
        parts = tuple(part for unit in units for part in unit)
        plans.append(AdapterPlan(lesson, parts, left_out, rows, -(-len(rows) // config.batch_rows)))
    most = max((_sequences_of(own, step) for own in plans for step in range(own.steps)), default=0) if signals else 0
    return Plan(
        tuple(plans), iteration, config.batch_rows, config.row_tokens, _row_targets(plans, config.row_tokens),
        -(-most // 16) * 16,
    )  # fmt: skip


def hyper_of(plan: Plan, config: FinetuningConfig, lora_scale: float) -> Hyper:
    """The hyperparameters of a stage as arrays. The warm-up of each adapter is rounded up to a full step."""
    scalars = (config.weight_decay, config.beta1, config.beta2, config.eps, config.clip_norm)
    return Hyper(
        np.full(len(plan.adapters), lora_scale, np.float32),
        np.array([own.lesson.settings.learning_rate for own in plan.adapters], np.float32),
        np.array([math.ceil(round(config.warmup * own.steps, 6)) for own in plan.adapters], np.int32),
        plan.steps,
        *(np.asarray(value, np.float32) for value in scalars),
    )


def pack_rows(lengths: Sequence[int], row_tokens: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Packs examples of these lengths into rows of `row_tokens` tokens, first-fit in a random order.

    Each example goes into the first row with room for it. No length may exceed `row_tokens`. Returns the indices of the
    examples in each row.
    """
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), np.int64)  # free tokens of each row; there are at most as many rows as examples
    for example in rng.permutation(len(lengths)).tolist():
        fits = np.flatnonzero(room[: len(rows)] >= lengths[example])
        if len(fits):
            place = int(fits[0])
        else:
            place = len(rows)
            rows.append([])
            room[place] = row_tokens
        rows[place].append(example)
        room[place] -= lengths[example]
    return [tuple(row) for row in rows]


def _row_targets(plans: Sequence[AdapterPlan], row_tokens: int) -> int:
    """M: the largest number of targets in a row, rounded up to a quarter of a row.

    Because of the rounding, most iterations have the same M and need no recompilation.
    """
    counts = [[part.targets for part in plan.parts] for plan in plans]
    most = max(
        (sum(own[i] for i in row) for plan, own in zip(plans, counts, strict=True) for row in plan.rows), default=1
    )
    bucket = max(64, row_tokens // 256 * 64)
    return min(-(-most // bucket) * bucket, max(64, -(-row_tokens // 64) * 64))


def _sequences_of(own: AdapterPlan, step: int) -> int:
    """The number of sequences of an adapter in a step, that of missing counterparts included."""
    return 2 * sum(len({own.parts[i].example for i in row}) for row in own.rows_of(step))


def _empty_batch(lead: tuple[int, int], row_tokens: int, row_targets: int, sequences: int) -> Batch:
    """A batch of zeros, for `lead` (adapters, rows). Without sequences it has no signals."""
    zeros = lambda size, dtype: np.zeros((*lead, size), dtype)
    of_sequences = lambda: np.zeros((lead[0], sequences), np.float32)
    return Batch(
        tokens=zeros(row_tokens, np.int32),
        positions=zeros(row_tokens, np.int32),
        segment_ids=zeros(row_tokens, np.int32),
        target_index=zeros(row_targets, np.int32),
        target_ids=zeros(row_targets, np.int32),
        target_weight=zeros(row_targets, np.float32),
        signals=Signals(
            sequence=zeros(row_targets, np.int32),
            reference=zeros(row_targets, np.float32),
            old=zeros(row_targets, np.float32),
            value=of_sequences(),
            weight=of_sequences(),
        )
        if sequences
        else None,
    )


def _fill_row(row: Batch, parts: Sequence[Part], *, weighted: bool) -> None:
    """Writes parts into the arrays of one row in place, one segment after another.

    Targets have the weight of their part, or 1 if they are not `weighted` because the signals hold the weights.
    """
    start = count = 0
    for segment, part in enumerate(parts, start=1):
        ids, mask = part.encoded
        end = start + len(ids)
        row.tokens[start:end] = ids
        row.positions[start:end] = np.arange(len(ids))
        row.segment_ids[start:end] = segment
        before = np.flatnonzero(mask[1:])  # the token before each target, which predicts it
        row.target_index[count : count + len(before)] = start + before
        row.target_ids[count : count + len(before)] = ids[before + 1]
        row.target_weight[count : count + len(before)] = part.weight if weighted else 1
        start, count = end, count + len(before)


def _fill_signals(own: Signals, row: int, parts: Sequence[Part], numbers: Sequence[int]) -> None:
    """Writes the signals of one row of an adapter in place. `numbers`: of each part, that of its example in the step."""
    count = 0
    for part, number in zip(parts, numbers, strict=True):
        targets, sequence = slice(count, count + part.targets), 2 * number + part.is_counterpart
        own.sequence[row, targets] = sequence
        for array, known in ((own.reference, part.reference), (own.old, part.old)):
            array[row, targets] = 0 if known is None else known
        own.value[sequence], own.weight[sequence] = part.value, part.weight
        count = targets.stop
