"""The slot scheduler: a queue of prompts for each agent, a grid of slots, and finished rows refilled at once."""

import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mft_jax.config import SamplingConfig
from mft_jax.errors import UserError
from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import Adapter
from mft_jax.parallel.compilation import compile_seconds
from mft_jax.parallel.mesh import replicated, sharding
from mft_jax.sampling import steps
from mft_jax.sampling.slots import Settings, Slots, View, bucket, empty_slots, slot_shardings, view_shardings


@dataclasses.dataclass(frozen=True)
class Request:
    """One sequence to sample: whose adapter, after which tokens, with which random key."""

    agent: int  # row of the adapters' leading axis; without adapters, any number: rows are dealt out evenly
    prompt: Sequence[int]
    key: np.ndarray  # [2] uint32, from `row_key`


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was sampled. `stopped` is false when the row ran into its token limit."""

    ids: list[int]  # without the stop token
    stopped: bool
    new_tokens: int  # the stop token included: what was paid for


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one call of `Sampler.sample` cost."""

    adapted: bool  # adapters were on, or it was the base model itself
    lengths: tuple[tuple[int, int], ...]  # (prompt tokens, new tokens) of every row
    device_seconds: float  # in compiled programs, compilation left out, summed over devices


@dataclasses.dataclass(frozen=True)
class _Row:
    """A request on its way: what the model has to read, and how far the answer is."""

    index: int  # of the request
    agent: int
    tokens: Sequence[int]  # the prompt, and new tokens so far
    new: int  # how many of `tokens` are new
    limit: int  # new tokens at most
    key: np.ndarray


Queue = collections.deque[int]  # numbers of rows


def row_key(*parts: object) -> np.ndarray:
    """The random key of a row from its (seed, iteration, stage, question, agent): [2] uint32, the same everywhere."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u4")


class Sampler:
    """Samples for a fixed number of agents with one base model. Holds the compiled programs, and no other state."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        base: nnx.State,
        model: ModelConfig,
        config: SamplingConfig,
        *,
        agents: int,
        stop_ids: Sequence[int],
        mesh: Mesh,
        dtype: str = "float32",
    ):
        self.base, self.model, self.config, self.mesh, self.dtype = base, model, config, mesh, dtype
        self.agents, self.stop_ids = agents, tuple(stop_ids)
        self.compiles: collections.Counter[tuple] = (
            collections.Counter()
        )  # (phase, bucket..., adapted or base) -> traces
        self._rows = sharding(mesh, "agent", "batch")
        slots_out = slot_shardings(mesh, model)

        def prefill(base, adapters, slots, prompts, *rest):
            self.compiles["prefill", prompts.shape[-1], slots.values[0].shape[-2], _kind(adapters)] += 1
            return steps.prefill(graphdef, base, adapters, slots, prompts, *rest)

        def decode(base, adapters, slots, settings):
            self.compiles["decode", slots.values[0].shape[-2], slots.output.shape[-1], _kind(adapters)] += 1
            return steps.decode(graphdef, base, adapters, slots, settings)

        self._prefill = jax.jit(prefill, donate_argnums=2, out_shardings=slots_out)
        self._decode = jax.jit(decode, donate_argnums=2, out_shardings=(slots_out, view_shardings(mesh)))

    def sample(
        self,
        requests: Sequence[Request],
        adapters: Adapter | None = None,
        *,
        config: SamplingConfig | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[list[Completion], Usage]:
        """Completions in the order of the requests, and their cost; `adapters` [A, ...] or None for the base model itself.

        `config` replaces the sampler's settings for this call; temperature, top_p, stop ids and max_new_tokens never
        recompile within a bucket of lengths. `on_progress(finished rows, new tokens)` is called as work is done.
        Raises UserError when a prompt does not fit the model's context.
        """
        if not requests:
            return [], Usage(adapters is not None, (), 0.0)
        config = config or self.config
        self._check(requests)
        started, compiled = time.perf_counter(), compile_seconds()
        completions = self._sample(self._rows_of(requests, adapters, config), adapters, config, on_progress)
        spent = max(0.0, time.perf_counter() - started - (compile_seconds() - compiled))
        ordered = [completions[index] for index in range(len(requests))]
        lengths = tuple((len(request.prompt), c.new_tokens) for request, c in zip(requests, ordered, strict=True))
        return ordered, Usage(adapters is not None, lengths, spent * self.mesh.size)

    def _sample(self, rows: Sequence[_Row], adapters, config: SamplingConfig, on_progress) -> dict[int, Completion]:
        """Every row to its end, by index.

        Rows of up to `long_after` tokens and longer ones are turned by other frequencies, which also changes what is in
        the cache. So a row that grows past it is stopped there, read anew, and gone on with: as transformers does.
        """
        switch = self.model.long_after
        if switch is None:
            return self._fill(rows, adapters, config, False, on_progress)
        # The token after exactly `switch` tokens is still chosen as in a short sequence.
        short = [row for row in rows if len(row.tokens) <= switch]
        cut = [dataclasses.replace(row, limit=min(row.limit, switch - len(row.tokens) + 1)) for row in short]
        completions = self._fill(cut, adapters, config, False, on_progress)
        grown = []
        for row in short:
            so_far = completions[row.index]
            if not so_far.stopped and so_far.new_tokens < row.limit:
                tokens = [*row.tokens, *completions.pop(row.index).ids]
                grown.append(dataclasses.replace(row, tokens=tokens, new=so_far.new_tokens))
        longer = [row for row in rows if len(row.tokens) > switch]
        return completions | self._fill([*grown, *longer], adapters, config, True, on_progress)

    def _fill(
        self, rows: Sequence[_Row], adapters, config: SamplingConfig, long: bool, on_progress
    ) -> dict[int, Completion]:
        """Runs rows through the grid of slots until all have stopped or reached their limits."""
        if not rows:
            return {}
        length = bucket(max(len(row.tokens) for row in rows))
        columns = bucket(max(len(row.tokens) - row.new + row.limit for row in rows))
        room = bucket(config.max_new_tokens)
        slots = empty_slots(self.model, self.mesh, self.agents, config.rows, columns, room, self.dtype)
        numbers = range(len(rows))
        queues = [collections.deque(n for n in numbers if rows[n].agent == agent) for agent in range(self.agents)]
        owner = np.full((self.agents, config.rows), -1)  # which row a slot holds
        completions: dict[int, Completion] = {}
        while any(queues) or (owner >= 0).any():
            while _refillable(owner, queues, config.prefill_rows):
                slots = self._refill(slots, adapters, rows, queues, owner, length, config, long)
            slots, view = self._decode(self.base, adapters, slots, self._settings(config, queues, long))
            finished = _harvest(jax.device_get(view), rows, owner, self.stop_ids)
            completions.update((row.index, completion) for row, completion in finished)
            if on_progress:
                begun = sum(row.new == 0 for row, _ in finished)  # a row that is gone on with was counted before
                on_progress(begun, sum(completion.new_tokens - row.new for row, completion in finished))
        return completions

    def _check(self, requests: Sequence[Request]) -> None:
        longest = max(len(request.prompt) for request in requests)
        if longest >= self.model.max_positions:
            raise UserError(
                f"A prompt has {longest} tokens, but the model's context holds {self.model.max_positions}, answer included: "
                "shorten the question, or lower sampling.max_new_tokens, debate.agents or debate.rounds."
            )
        if not all(len(request.prompt) for request in requests):
            raise ValueError("A request has an empty prompt; the model needs at least one token to go on from.")

    def _rows_of(self, requests: Sequence[Request], adapters, config: SamplingConfig) -> list[_Row]:
        agent_of = lambda index, request: request.agent if adapters is not None else index % self.agents
        limit_of = lambda request: min(config.max_new_tokens, self.model.max_positions - len(request.prompt))
        return [
            _Row(index, agent_of(index, request), request.prompt, 0, limit_of(request), request.key)
            for index, request in enumerate(requests)
        ]

    def _settings(self, config: SamplingConfig, queues: Sequence[Queue], long: bool) -> Settings:
        stop_ids = np.full(max(8, bucket(len(self.stop_ids), 8)), -1, np.int32)
        stop_ids[: len(self.stop_ids)] = self.stop_ids
        values: tuple[Any, ...] = (
            np.float32(config.temperature),
            np.float32(config.top_p),
            stop_ids,
            np.array([len(queue) for queue in queues], np.int32),
            np.int32(config.prefill_rows),
            np.int32(config.steps_per_dispatch),
            np.bool_(long),
        )
        return jax.device_put(Settings(*values), replicated(self.mesh))

    def _refill(
        self,
        slots: Slots,
        adapters,
        rows: Sequence[_Row],
        queues,
        owner,
        length: int,
        config: SamplingConfig,
        long: bool,
    ) -> Slots:
        """Fills up to `prefill_rows` free slots of every agent by one call."""
        shape = (self.agents, config.prefill_rows)
        prompts, lengths = np.zeros((*shape, length), np.int32), np.ones(shape, np.int32)
        into, counts, limits = (
            np.full(shape, config.rows, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
        )
        seeds = np.zeros((*shape, 2), np.uint32)
        for agent, queue in enumerate(queues):
            free = np.flatnonzero(owner[agent] < 0)
            for place, slot in enumerate(free[: config.prefill_rows][: len(queue)]):
                owner[agent, slot] = number = queue.popleft()
                row = rows[number]
                prompts[agent, place, : len(row.tokens)] = row.tokens
                lengths[agent, place], into[agent, place], seeds[agent, place] = len(row.tokens), slot, row.key
                counts[agent, place], limits[agent, place] = row.new, row.limit
        arrays = jax.device_put((prompts, lengths, into, counts, limits, seeds), self._rows)
        return self._prefill(self.base, adapters, slots, *arrays, np.bool_(long))


def _kind(adapters: Adapter | None) -> str:
    return "base" if adapters is None else "adapted"


def _refillable(owner: np.ndarray, queues: Sequence[Queue], rows: int) -> bool:
    """The rule by which `decode` hands back, on the host: some agent can fill a whole prefill, or all that it has left."""
    free = (owner < 0).sum(axis=1)
    return any(queue and space >= min(rows, len(queue)) for queue, space in zip(queues, free, strict=True))


def _harvest(
    view: View, rows: Sequence[_Row], owner: np.ndarray, stop_ids: Sequence[int]
) -> list[tuple[_Row, Completion]]:
    """Takes finished rows out of their slots."""
    finished = []
    for agent, slot in zip(*np.nonzero((owner >= 0) & ~view.active), strict=True):
        row, count = rows[owner[agent, slot]], int(view.count[agent, slot])
        before = row.tokens[len(row.tokens) - row.new :]
        ids = [*before, *view.output[agent, slot, row.new : count].tolist()]
        stopped = bool(ids) and ids[-1] in stop_ids
        finished.append((row, Completion(ids[:-1] if stopped else ids, stopped, len(ids))))
        owner[agent, slot] = -1
    return finished
