"""Dialogues to batches: encoded, packed into rows of T tokens, and stacked over adapters as [A, B, T].

Everything is a pure function of its inputs: a run that is resumed at step t sees the same bytes.
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
    """One adapter's part of a training stage."""

    lesson: Lesson
    examples: tuple[Encoded, ...]
    left_out: int  # examples longer than a row, or with nothing to learn
    rows: tuple[tuple[int, ...], ...]  # indices of the examples in each row, all epochs one after the other
    steps: int  # 0: nothing to learn, the adapter keeps its weights

    @property
    def name(self) -> str:
        return self.lesson.adapter

    def rows_of(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The rows of a step. They are spread evenly, so that no step learns from a single left-over row."""
        if step >= self.steps:
            return ()
        return self.rows[step * len(self.rows) // self.steps : (step + 1) * len(self.rows) // self.steps]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All batches of a training stage, made when asked for."""

    adapters: tuple[AdapterPlan, ...]
    iteration: int  # named in errors
    batch_rows: int  # B
    row_tokens: int  # T
    row_targets: int  # M, one for the whole stage: one compiled step

    @property
    def total(self) -> int:
        """Steps of the adapter with the most data."""
        return max((adapter.steps for adapter in self.adapters), default=0)

    @property
    def steps(self) -> Int[np.ndarray, "A"]:
        return np.array([adapter.steps for adapter in self.adapters], np.int32)

    @property
    def left_out(self) -> Int[np.ndarray, "A"]:
        return np.array([adapter.left_out for adapter in self.adapters], np.int32)

    def batch(self, step: int) -> Batch:
        """The rows of all adapters for one step, as numpy arrays."""
        lead = (len(self.adapters), self.batch_rows)
        sizes = [self.row_tokens] * 3 + [self.row_targets] * 3
        dtypes = [np.int32] * 5 + [np.float32]
        batch = Batch(*(np.zeros((*lead, size), dtype) for size, dtype in zip(sizes, dtypes, strict=True)))
        for index, adapter in enumerate(self.adapters):
            for place, row in enumerate(adapter.rows_of(step)):
                _fill_row(Batch(*(array[index, place] for array in batch)), [adapter.examples[i] for i in row])
        return batch

    def tokens(self, step: int) -> int:
        """Tokens of dialogue in a step, over all adapters: what a rate in tokens per second counts."""
        return sum(len(own.examples[i][0]) for own in self.adapters for row in own.rows_of(step) for i in row)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the batches are made of: a checkpoint's step means a place in this plan only."""
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
    """Encodes and packs the examples of each adapter, in the order of the lessons."""
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
    """The settings of a stage as arrays. The warm-up is rounded up to whole steps of each adapter."""
    scalars = (config.weight_decay, config.beta1, config.beta2, config.eps, config.clip_norm)
    return Hyper(
        np.full(len(plan.adapters), lora_scale, np.float32),
        np.array([own.lesson.settings.learning_rate for own in plan.adapters], np.float32),
        np.array([math.ceil(round(config.warmup * own.steps, 6)) for own in plan.adapters], np.int32),
        plan.steps,
        *(np.asarray(value, np.float32) for value in scalars),
    )


def encode(chat: Chat, examples: Sequence[Example], config: FinetuningConfig) -> tuple[tuple[Encoded, ...], int]:
    """Token ids and loss masks, and how many are left out: those longer than a row, because a cut one loses its answer."""
    encoded = [pair for own in examples for pair in chat.examples(own["messages"], config.final_turn_only)]
    kept = tuple((ids, mask) for ids, mask in encoded if len(ids) <= config.row_tokens and mask[1:].any())
    return kept, len(encoded) - len(kept)


def pack_rows(lengths: Sequence[int], row_tokens: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """First-fit in a shuffled order: each example joins the first row with room for it. No length exceeds a row."""
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), np.int64)  # of each row; at most one row per example
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
    """M: room for the targets of the fullest row, in quarters of a row: the next iteration's M is then mostly the same."""
    counts = [[int(mask[1:].sum()) for _, mask in plan.examples] for plan in plans]
    most = max(
        (sum(own[i] for i in row) for plan, own in zip(plans, counts, strict=True) for row in plan.rows), default=1
    )
    bucket = max(64, row_tokens // 256 * 64)
    return min(-(-most // bucket) * bucket, max(64, -(-row_tokens // 64) * 64))


def _fill_row(row: Batch, examples: Sequence[Encoded]) -> None:
    """Writes examples into the arrays of one row, segment after segment."""
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
