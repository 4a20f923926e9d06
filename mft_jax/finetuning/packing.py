"""Makes batches from dialogues: encodes them, packs them into rows of T tokens, and stacks the adapters to [A, B, T].

All functions are deterministic, so a run that is resumed at step t gets the same batches.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from mft_jax.config import FinetuningConfig
from mft_jax.finetuning.examples import Example
from mft_jax.finetuning.lesson import Lesson
from mft_jax.models.chat import Chat, Encoded
from mft_jax.programs.train import Batch, Hyper
from mft_jax.seeds import packing


@dataclasses.dataclass(frozen=True)
class AdapterPlan:
    """The packed training data of one adapter in a finetuning stage."""

    lesson: Lesson
    examples: tuple[Encoded, ...]
    left_out: int  # number of examples left out: longer than a row, or without targets
    rows: tuple[tuple[int, ...], ...]  # indices of the examples in each row, for all epochs in order
    steps: int  # optimizer steps; 0: no examples, the adapter is not changed

    @property
    def name(self) -> str:
        """The name of the adapter."""
        return self.lesson.adapter

    def rows_of(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The rows of `step` (from 0), as indices of examples. Empty after the last step.

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
        lead = (len(self.adapters), self.batch_rows)
        sizes = [self.row_tokens] * 3 + [self.row_targets] * 3
        dtypes = [np.int32] * 5 + [np.float32]
        batch = Batch(*(np.zeros((*lead, size), dtype) for size, dtype in zip(sizes, dtypes, strict=True)))
        for index, adapter in enumerate(self.adapters):
            for place, row in enumerate(adapter.rows_of(step)):
                _fill_row(Batch(*(array[index, place] for array in batch)), [adapter.examples[i] for i in row])
        return batch

    def tokens(self, step: int) -> int:
        """The number of tokens in the batch of `step`, over all adapters and without padding."""
        return sum(len(own.examples[i][0]) for own in self.adapters for row in own.rows_of(step) for i in row)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the batches.

        Checkpoints store it, so that they are resumed with the same batches only.
        """
        digest = hashlib.sha256(f"{self.batch_rows} {self.row_tokens}".encode())
        for own in self.adapters:
            digest.update(f"{own.name} {own.steps} {own.rows}".encode())
            for ids, mask in own.examples:
                digest.update(ids.tobytes() + mask.tobytes())
        return digest.hexdigest()


def make_plan(
    chat: Chat,
    lessons: Sequence[Lesson],
    examples: Mapping[str, Sequence[Example]],
    config: FinetuningConfig,
    *,
    seed: int,
    iteration: int,
) -> Plan:
    """Encodes and packs the examples of each adapter. The adapters of the plan are in the order of the lessons.

    Raises UserError if the chat template does not render an assistant turn as a continuation of its prompt.
    """
    plans = []
    for index, lesson in enumerate(lessons):
        encoded, left_out = encode(chat, examples[lesson.adapter], config)
        lengths = [len(ids) for ids, _ in encoded]
        epochs = [
            pack_rows(lengths, config.row_tokens, packing(seed, iteration, index, epoch))
            for epoch in range(lesson.settings.epochs)
        ]
        rows = tuple(row for epoch in epochs for row in epoch)
        plans.append(AdapterPlan(lesson, encoded, left_out, rows, -(-len(rows) // config.batch_rows)))
    return Plan(tuple(plans), iteration, config.batch_rows, config.row_tokens, _row_targets(plans, config.row_tokens))


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


def encode(chat: Chat, examples: Sequence[Example], config: FinetuningConfig) -> tuple[tuple[Encoded, ...], int]:
    """Token ids and loss masks of the examples, and the number of examples left out.

    Examples longer than a row are left out, because a truncated one would lose its last answer; so are examples without
    targets.
    """
    encoded = [pair for own in examples for pair in chat.examples(own["messages"], config.final_turn_only)]
    kept = tuple((ids, mask) for ids, mask in encoded if len(ids) <= config.row_tokens and mask[1:].any())
    return kept, len(encoded) - len(kept)


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
    counts = [[int(mask[1:].sum()) for _, mask in plan.examples] for plan in plans]
    most = max(
        (sum(own[i] for i in row) for plan, own in zip(plans, counts, strict=True) for row in plan.rows), default=1
    )
    bucket = max(64, row_tokens // 256 * 64)
    return min(-(-most // bucket) * bucket, max(64, -(-row_tokens // 64) * 64))


def _fill_row(row: Batch, examples: Sequence[Encoded]) -> None:
    """Writes examples into the arrays of one row in place, one segment after another."""
    start = count = 0
    for segment, (ids, mask) in enumerate(examples, start=1):
        end = start + len(ids)
        row.tokens[start:end] = ids
        row.positions[start:end] = np.arange(len(ids))
        row.segment_ids[start:end] = segment
        before = np.flatnonzero(mask[1:])  # the token before each target, which predicts it
        row.target_index[count : count + len(before)] = start + before
        row.target_ids[count : count + len(before)] = ids[before + 1]
        row.target_weight[count : count + len(before)] = 1
        start, count = end, count + len(before)
