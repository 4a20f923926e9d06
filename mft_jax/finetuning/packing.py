"""Dialogues to batches: encoded, packed into rows of T tokens, and stacked over agents as [A, B, T].

Everything is a pure function of its inputs: a run that starts again at step t meets the same bytes.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from mft_jax.config import FinetuningConfig, RoleConfig
from mft_jax.finetuning.datasets import PACK, Example, random_stream
from mft_jax.models.chat import Chat, Encoded

AnyArray = Array | np.ndarray  # the host makes numpy arrays, compiled functions see JAX's


class Batch(NamedTuple):
    """The rows of one optimizer step. Padding has segment 0 and no targets; an agent without rows has no weight.

    Targets are compacted: the m-th target of a row is predicted from the hidden state at `target_index`, so that
    logits are computed where there is something to learn and nowhere else.
    """

    tokens: Int[AnyArray, "A B T"]
    positions: Int[AnyArray, "A B T"]  # restart in every segment
    segment_ids: Int[AnyArray, "A B T"]  # 1, 2, .. within a row
    target_index: Int[AnyArray, "A B M"]
    target_ids: Int[AnyArray, "A B M"]
    target_weight: Float[AnyArray, "A B M"]  # 1 for a target, 0 for padding


@dataclasses.dataclass(frozen=True)
class AgentPlan:
    """One agent's part of a training stage."""

    name: str  # generator_0, critic_2, ...
    role: RoleConfig
    examples: tuple[Encoded, ...]
    left_out: int  # examples longer than a row, or with nothing to learn
    rows: tuple[tuple[int, ...], ...]  # indices of the examples in each row, all epochs one after the other
    steps: int  # 0: nothing to learn, the agent keeps its weights

    def rows_of(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The rows of a step. They are spread evenly, so that no step learns from a lone left-over row."""
        if step >= self.steps:
            return ()
        return self.rows[step * len(self.rows) // self.steps : (step + 1) * len(self.rows) // self.steps]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All batches of a training stage, made when asked for."""

    agents: tuple[AgentPlan, ...]
    iteration: int  # named in errors
    batch_rows: int  # B
    row_tokens: int  # T
    row_targets: int  # M, one for the whole stage: one compiled step

    @property
    def total(self) -> int:
        """Steps of the agent with the most data."""
        return max((agent.steps for agent in self.agents), default=0)

    @property
    def steps(self) -> Int[np.ndarray, "A"]:
        return np.array([agent.steps for agent in self.agents], np.int32)

    @property
    def left_out(self) -> Int[np.ndarray, "A"]:
        return np.array([agent.left_out for agent in self.agents], np.int32)

    def batch(self, step: int) -> Batch:
        """The rows of all agents for one step, as numpy arrays."""
        lead = (len(self.agents), self.batch_rows)
        sizes = [self.row_tokens] * 3 + [self.row_targets] * 3
        dtypes = [np.int32] * 5 + [np.float32]
        batch = Batch(*(np.zeros((*lead, size), dtype) for size, dtype in zip(sizes, dtypes, strict=True)))
        for index, agent in enumerate(self.agents):
            for place, row in enumerate(agent.rows_of(step)):
                _write_row(Batch(*(array[index, place] for array in batch)), [agent.examples[i] for i in row])
        return batch

    def tokens(self, step: int) -> int:
        """Tokens of dialogue in a step, over all agents: what a rate in tokens per second counts."""
        return sum(len(agent.examples[i][0]) for agent in self.agents for row in agent.rows_of(step) for i in row)


def make_plan(
    chat: Chat,
    examples: Sequence[Sequence[Example]],
    names: Sequence[str],
    roles: Sequence[RoleConfig],
    config: FinetuningConfig,
    *,
    seed: int,
    iteration: int,
) -> Plan:
    """Encodes and packs the examples of each agent. `names` and `roles` as `datasets.society` gives them."""
    agents = []
    for index, (own, name, role) in enumerate(zip(examples, names, roles, strict=True)):
        encoded, left_out = encode(chat, own, config)
        epochs = [
            pack_rows(
                [len(ids) for ids, _ in encoded], config.row_tokens, random_stream(seed, iteration, index, PACK, epoch)
            )
            for epoch in range(role.epochs)
        ]
        rows = tuple(row for epoch in epochs for row in epoch)
        steps = -(-len(rows) // config.batch_rows)
        agents.append(AgentPlan(name, role, encoded, left_out, rows, steps))
    return Plan(tuple(agents), iteration, config.batch_rows, config.row_tokens, _row_targets(agents, config.row_tokens))


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


def _row_targets(agents: Sequence[AgentPlan], row_tokens: int) -> int:
    """M: room for the targets of the fullest row, in quarters of a row: the next iteration's M is then mostly the same."""
    counts = [[int(mask[1:].sum()) for _, mask in agent.examples] for agent in agents]
    most = max(
        (sum(own[i] for i in row) for agent, own in zip(agents, counts, strict=True) for row in agent.rows), default=1
    )
    bucket = max(64, row_tokens // 256 * 64)
    return min(-(-most // bucket) * bucket, max(64, -(-row_tokens // 64) * 64))


def _write_row(row: Batch, examples: Sequence[Encoded]) -> None:
    """Fills the views of one row, segment after segment."""
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
