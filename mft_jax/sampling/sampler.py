"""The slot scheduler: a queue of prompts for each speaker, and a grid of slots that are refilled as rows finish."""

import collections
import dataclasses
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from mft_jax.config import SamplingConfig
from mft_jax.errors import UserError
from mft_jax.models.lora import Adapter
from mft_jax.models.society import Society
from mft_jax.parallel.hosts import stop_if_asked
from mft_jax.parallel.mesh import replicated, sharding
from mft_jax.parallel.placement import to_devices
from mft_jax.programs import Programs
from mft_jax.programs.program import BusyClock
from mft_jax.programs.slots import Prefix, Prompts, Settings, Slots, View, bucket, empty_slots
from mft_jax.sampling.completions import Completion, OnTokens, Progress, Request, Usage
from mft_jax.sampling.lengths import PromptLengths
from mft_jax.sampling.sharing import deal_out, is_worth_a_program, places_for, shared_prefix


@dataclasses.dataclass(frozen=True)
class _Row:
    """A request being sampled: the tokens to prefill, and the part of the answer that has been sampled before."""

    index: int  # of the request
    lane: int  # index on the grid's leading axis, that of the speakers
    tokens: tuple[int, ...]  # the prompt and the new tokens so far
    log_probs: tuple[float, ...]  # of the new tokens so far, in nats
    new: int  # how many of `tokens` are new
    limit: int  # maximum number of new tokens
    key: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Reading:
    """How the prompts of a pass are prefilled."""

    lengths: Sequence[int]  # to which the tokens after the prefix are padded, ascending
    before: int  # tokens of the prefix that all prompts of a lane share
    prefix: Prefix | None  # their keys and values
    places: int  # different prompts of each lane that one call can prefill
    long: bool  # with the frequencies of long sequences, as in `Settings`


Queue = collections.deque[int]  # indices of rows


class NonFiniteLogits(UserError):
    """A speaker's logits are NaN or infinite, so no token can be sampled."""


class Sampler:
    """Samples completions from one base model and any adapters of a society.

    The grid of slots has a leading axis of lanes with `config.rows` slots each. There are `lanes` lanes, or as many as
    there are adapters if these are more, rounded up to a multiple of the mesh's agent axis. Each lane belongs to one
    adapter. Where there are more lanes than adapters, and for the base model, a speaker has several lanes. The compiled
    programs are shared with other samplers, and so are the `lengths` to which prompts are padded, if given.
    """

    def __init__(
        self,
        programs: Programs,
        base: nnx.State,
        config: SamplingConfig,
        *,
        stop_ids: Sequence[int],
        lanes: int,
        lengths: PromptLengths | None = None,
    ):
        self.programs, self.base, self.config = programs, base, config
        self.stop_ids, self.lanes = tuple(stop_ids), lanes
        self.lengths = lengths or PromptLengths(programs.mesh)

    def sample(
        self,
        requests: Sequence[Request],
        society: Society = Society(),  # noqa: B008  (frozen)
        *,
        config: SamplingConfig | None = None,
        log_probs: bool = False,
        on_progress: Progress | None = None,
        on_tokens: OnTokens | None = None,
    ) -> tuple[list[Completion], list[Usage]]:
        """Samples a completion for every request.

        Returns the completions in the order of the requests, and the cost of each pass: one for the base model, one for
        the adapters. A prompt that fills the model's context gives a completion with the reason "unanswerable".

        `config` replaces the sampler's settings for this call. New values of temperature and top_p need no
        recompilation, nor does a max_new_tokens in the same length bucket. `log_probs` requests the log-probabilities
        of new tokens. `on_progress(finished rows, their new tokens)` is called as rows finish. `on_tokens(index of the request,
        new token ids)` is called for every row with new tokens after each dispatch, of up to `steps_per_dispatch` tokens.

        Raises ValueError for an empty prompt, KeyError for a speaker that is not in the society, and NonFiniteLogits,
        which names the speaker, for logits that are NaN or infinite.
        """
        config = config or self.config
        if not all(len(request.prompt) for request in requests):
            raise ValueError("a request has an empty prompt: the model needs at least one token")
        room = self.programs.model.max_positions
        completions = {
            index: Completion((), "unanswerable", 0, () if log_probs else None)
            for index, request in enumerate(requests)
            if len(request.prompt) >= room
        }
        if completions and on_progress:
            on_progress(len(completions), 0)
        usages = []
        for adapted in (False, True):
            own = [i for i, r in enumerate(requests) if (r.speaker is not None) == adapted and i not in completions]
            if own:
                grid = _Grid(
                    self, config, society if adapted else None, requests, own, log_probs, on_progress, on_tokens
                )
                completions.update(grid.run())
                lengths = tuple((len(requests[i].prompt), completions[i].new_tokens) for i in own)
                seconds = grid.clock.seconds * self.programs.mesh.size
                read, prefilled = grid.read_tokens, grid.prefilled_tokens
                usages.append(Usage(adapted, lengths, seconds, read, prefilled, grid.slot_steps))
        return [completions[index] for index in range(len(requests))], usages


class _Grid:
    """One pass: samples all requests to the base model, or all to adapters, in a grid of slots [lanes, rows]."""

    def __init__(
        self,
        sampler: Sampler,
        config: SamplingConfig,
        society: Society | None,
        requests: Sequence[Request],
        own: Sequence[int],
        log_probs: bool,
        on_progress: Progress | None,
        on_tokens: OnTokens | None,
    ):
        self.programs, self.base, self.config = sampler.programs, sampler.base, config
        self.stop_ids, self.lengths, self.log_probs = sampler.stop_ids, sampler.lengths, log_probs
        self.on_progress, self.on_tokens = on_progress, on_tokens
        self.mesh, self.model = sampler.programs.mesh, sampler.programs.model
        self.adapters, self.speakers = self._stack_lanes(society, [requests[i] for i in own], sampler.lanes)
        self.rows = self._make_rows(requests, own)
        self.clock = BusyClock(self.programs)
        self.read_tokens = self.prefilled_tokens = self.slot_steps = 0  # as in Usage

    def run(self) -> dict[int, Completion]:
        """Samples all requests and returns their completions by the index of the request.

        Models with longrope rotate sequences of up to `long_after` tokens and longer sequences by different frequencies,
        so their cached keys differ too. A row that grows past this length is stopped, prefilled again with the other
        frequencies, and resumed. transformers does the same.
        """
        switch = self.model.long_after
        if switch is None:
            return self._sample_rows(self.rows, long=False)
        # The token that follows exactly `switch` tokens is still sampled with the frequencies of short sequences.
        short = [row for row in self.rows if len(row.tokens) <= switch]
        cut = [dataclasses.replace(row, limit=min(row.limit, switch - len(row.tokens) + 1)) for row in short]
        completions = self._sample_rows(cut, long=False)
        grown = []
        for row in short:
            so_far = completions[row.index]
            if not so_far.complete and so_far.new_tokens < row.limit:
                del completions[row.index]
                tokens = (*row.tokens, *so_far.ids)
                grown.append(
                    dataclasses.replace(row, tokens=tokens, new=so_far.new_tokens, log_probs=so_far.log_probs or ())
                )
        longer = [row for row in self.rows if len(row.tokens) > switch]
        return completions | self._sample_rows([*grown, *longer], long=True)

    def _stack_lanes(
        self, society: Society | None, requests: Sequence[Request], lanes: int
    ) -> tuple[Adapter | None, tuple[str, ...]]:
        """The stacked adapters of the lanes, and the names of the lanes' speakers.

        Raises KeyError for an unknown speaker.
        """
        multiple = self.mesh.shape["agent"]
        asked = {request.speaker for request in requests}
        speakers = () if society is None else tuple(name for name in society.names if name in asked)
        count = -(-max(lanes, len(speakers)) // multiple) * multiple
        if society is None:
            return None, ("the base model",) * count
        unknown = sorted(str(name) for name in asked.difference(speakers))
        if unknown:
            society.index(unknown[0])  # raises KeyError
        taken = tuple(itertools.islice(itertools.cycle(speakers), count))
        return society.stack(taken, self.programs.dtype), taken

    def _make_rows(self, requests: Sequence[Request], own: Sequence[int]) -> list[_Row]:
        """The rows of the requests `own`, those of each speaker spread evenly over its lanes."""
        prompts = {index: tuple(map(int, requests[index].prompt)) for index in own}
        asked: dict[str, list[int]] = {}
        for index in own:
            name = self.speakers[0] if self.adapters is None else str(requests[index].speaker)
            asked.setdefault(name, []).append(index)
        lane_of = {}
        for name, indices in asked.items():
            lanes = [lane for lane, speaker in enumerate(self.speakers) if speaker == name]
            dealt = deal_out([prompts[index] for index in indices], len(lanes))
            lane_of.update((index, lanes[turn]) for index, turn in zip(indices, dealt, strict=True))
        limit = lambda prompt: min(self.config.max_new_tokens, self.model.max_positions - len(prompt))
        return [
            _Row(index, lane_of[index], prompt, (), 0, limit(prompt), requests[index].key)
            for index, prompt in prompts.items()
        ]

    def _sample_rows(self, rows: Sequence[_Row], *, long: bool) -> dict[int, Completion]:
        """Samples rows in the grid of slots until each has stopped or reached its limit. Returns completions by index."""
        if not rows:
            return {}
        config, lanes = self.config, len(self.speakers)
        new_tokens = bucket(config.max_new_tokens)
        longest = max(len(row.tokens) - row.new + row.limit for row in rows)
        columns = self.lengths.choose_columns(max(len(row.tokens) for row in rows), longest, new_tokens)
        # The longest first, so that prompts that are prefilled together have similar lengths and need little padding. Equal
        # ones follow each other.
        order = sorted(range(len(rows)), key=lambda n: (-len(rows[n].tokens), rows[n].tokens))
        queues = [Queue(n for n in order if rows[n].lane == lane) for lane in range(lanes)]
        reading = self._plan_reading(rows, queues, columns, long)
        columns = max(columns, reading.before + reading.lengths[-1])
        slots = empty_slots(
            self.model, self.mesh, agents=lanes, rows=config.rows, columns=columns, new_tokens=new_tokens,
            dtype=self.programs.dtype, log_probs=self.log_probs,
        )  # fmt: skip
        owner = np.full((lanes, config.rows), -1)  # index of the row in each slot; -1: free
        completions: dict[int, Completion] = {}
        told = [row.new for row in rows]  # how many new tokens of each row `on_tokens` knows
        while any(queues) or (owner >= 0).any():
            while _can_prefill(owner, refill := self._needed_slots(queues)):
                slots = self._prefill_slots(slots, rows, queues, owner, reading)
            settings = self._make_settings(refill, long)
            stop_if_asked()
            self.clock.start()
            slots, view = self.programs.decode(self.base, self.adapters, slots, settings)
            view = jax.device_get(view)
            self.clock.stop()
            self.slot_steps += owner.size * int(view.steps)
            if self.on_tokens:
                self._tell_new_tokens(self.on_tokens, view, rows, owner, told)
            finished = self._collect_finished(view, rows, owner)
            completions.update((row.index, completion) for row, completion in finished)
            if self.on_progress:
                begun = sum(row.new == 0 for row, _ in finished)  # resumed rows have been counted already
                self.on_progress(begun, sum(completion.new_tokens - row.new for row, completion in finished))
        return completions

    def _plan_reading(self, rows: Sequence[_Row], queues: Sequence[Queue], columns: int, long: bool) -> _Reading:
        """How to prefill the rows, in the order of the queues of their lanes, into slots of `columns` columns."""
        asked: dict[str, list[tuple[int, ...]]] = {}
        for row in rows:
            asked.setdefault(self.speakers[row.lane], []).append(row.tokens)
        pays = lambda saved: is_worth_a_program(saved, self.model, self.mesh.devices.flat[0].platform)
        before = self.lengths.choose_prefix(min(map(shared_prefix, asked.values())))
        if not pays(before * (len(rows) - len(self.speakers))):
            before = 0
        lengths = self.lengths.choose((len(row.tokens) - before for row in rows), columns - before)
        devices, slots = self.mesh.shape["data"], self.config.prefill_rows
        places = devices * places_for([[rows[n].tokens for n in queue] for queue in queues], slots // devices)
        if not pays((1 - places / slots) * sum(len(row.tokens) - before for row in rows)):
            places = slots
        if not before:
            return _Reading(lengths, 0, None, places, long)
        tokens = np.array([asked.get(name, [rows[0].tokens])[0][:before] for name in self.speakers], np.int32)
        self.read_tokens += before * len(asked)
        self.prefilled_tokens += tokens.size
        self.clock.start()
        tokens = to_devices(tokens, sharding(self.mesh, "agent", None))
        prefix = self.programs.read_prefix(self.base, self.adapters, tokens, np.bool_(long))
        return _Reading(lengths, before, prefix, places, long)

    def _prefill_slots(
        self, slots: Slots, rows: Sequence[_Row], queues: Sequence[Queue], owner: np.ndarray, reading: _Reading
    ) -> Slots:
        """Prefills up to `prefill_rows` free slots of every lane in one call, with the next rows of its queue.

        Updates `queues` and `owner`. The prompts are padded to the first of the lengths that holds the longest.
        """
        taken = [
            (lane, *own)
            for lane, queue in enumerate(queues)
            for own in self._take(queue, rows, owner[lane], reading.places)
        ]
        longest = max(len(row.tokens) for *_, row in taken) - reading.before
        slot_count, places = (len(queues), self.config.prefill_rows), (len(queues), reading.places)
        length = next(own for own in reading.lengths if own >= longest)
        prompts = Prompts(
            tokens=np.zeros((*places, length), np.int32), lengths=np.ones(places, np.int32),
            source=np.zeros(slot_count, np.int32), into=np.full(slot_count, self.config.rows, np.int32),
            counts=np.zeros(slot_count, np.int32), limits=np.zeros(slot_count, np.int32),
            keys=np.zeros((*slot_count, 2), np.uint32),
        )  # fmt: skip
        for lane, place, slot, source, row in taken:
            tokens = row.tokens[reading.before :]
            prompts.tokens[lane, source, : len(tokens)] = tokens
            prompts.lengths[lane, source] = len(tokens)
            for array, value in zip(prompts[2:], (source, slot, row.new, row.limit, row.key), strict=True):
                array[lane, place] = value
        self.read_tokens += sum(int(prompts.lengths[own]) for own in {(lane, source) for lane, *_, source, _ in taken})
        self.prefilled_tokens += prompts.tokens.size
        prompts = to_devices(prompts, sharding(self.mesh, "agent", "batch"))
        self.clock.start()
        return self.programs.prefill(self.base, self.adapters, slots, prompts, np.bool_(reading.long), reading.prefix)

    def _take(
        self, queue: Queue, rows: Sequence[_Row], owner: np.ndarray, places: int
    ) -> list[tuple[int, int, int, _Row]]:
        """Takes the rows from the queue of a lane that one call of `prefill` can put into its free slots, and sets `owner`.

        Returns (place among the slots of `Prompts`, slot, place among its prompts, row) for each. Slots and both kinds of
        places are split evenly over the devices of the data axis. Those that go together are of the same device, so that keys
        and values do not move between devices.
        """
        devices, taken = self.mesh.shape["data"], []
        own_slots, slots, prompts = (size // devices for size in (self.config.prefill_rows, len(owner), places))
        for device in range(devices):
            free = np.flatnonzero(owner[device * slots : (device + 1) * slots] < 0)[:own_slots]
            source = -1
            for place, slot in enumerate(free[: len(queue)]):
                row = rows[queue[0]]
                if prompts == own_slots or not place or row.tokens != taken[-1][-1].tokens:
                    source += 1
                if source == prompts:
                    break
                owner[device * slots + slot] = queue.popleft()
                taken.append((device * own_slots + place, device * slots + slot, device * prompts + source, row))
        return taken

    def _needed_slots(self, queues: Sequence[Queue]) -> np.ndarray:
        """How many slots of each lane, on each device of the data axis, the next call of `prefill` can fill, [A, D]."""
        devices = self.mesh.shape["data"]
        share = self.config.prefill_rows // devices
        waiting = np.array([len(queue) for queue in queues], np.int32)
        return np.clip(waiting[:, None] - share * np.arange(devices, dtype=np.int32), 0, share)

    def _make_settings(self, refill: np.ndarray, long: bool) -> Settings:
        stop_ids = np.full(max(8, bucket(len(self.stop_ids), 8)), -1, np.int32)
        stop_ids[: len(self.stop_ids)] = self.stop_ids
        config, number = self.config, lambda value: np.asarray(value, np.int32)
        settings = Settings(
            temperature=np.asarray(config.temperature, np.float32), top_p=np.asarray(config.top_p, np.float32),
            stop_ids=stop_ids, refill=refill, steps=number(config.steps_per_dispatch), long=np.asarray(long),
        )  # fmt: skip
        return to_devices(settings, replicated(self.mesh))

    def _tell_new_tokens(
        self, tell: OnTokens, view: View, rows: Sequence[_Row], owner: np.ndarray, told: list[int]
    ) -> None:
        """Calls `tell` for the rows that have new tokens, and updates `told`, their numbers of new tokens so far."""
        for lane, slot in np.argwhere(owner >= 0):
            number = owner[lane, slot]
            ids = view.output[lane, slot, told[number] : view.count[lane, slot]].tolist()
            told[number] += len(ids)
            if shown := [token for token in ids if token not in self.stop_ids]:
                tell(rows[number].index, shown)

    def _collect_finished(self, view: View, rows: Sequence[_Row], owner: np.ndarray) -> list[tuple[_Row, Completion]]:
        """Returns the finished rows with their completions and frees their slots. Raises NonFiniteLogits."""
        broken = np.argwhere((owner >= 0) & view.failed)
        if len(broken):
            speaker = self.speakers[broken[0][0]]
            raise NonFiniteLogits(
                f"The logits of {speaker} are NaN or infinite, so no token can be sampled: its weights are damaged or too "
                "large. Start from other weights, or finetune with a lower learning rate."
            )
        finished = []
        for lane, slot in np.argwhere((owner >= 0) & ~view.active):
            row, count = rows[owner[lane, slot]], int(view.count[lane, slot])
            before = row.tokens[len(row.tokens) - row.new :] if row.new else []
            ids = [*before, *view.output[lane, slot, row.new : count].tolist()]
            chosen = (*row.log_probs, *view.log_probs[lane, slot, row.new : count].tolist())
            finished.append((row, self._make_completion(row, ids, chosen if self.log_probs else None)))
            owner[lane, slot] = -1
        return finished

    def _make_completion(self, row: _Row, ids: list[int], log_probs: tuple[float, ...] | None) -> Completion:
        if ids and ids[-1] in self.stop_ids:
            return Completion(tuple(ids[:-1]), "stop", len(ids), log_probs)
        reason = "limit" if row.limit == self.config.max_new_tokens else "context"
        return Completion(tuple(ids), reason, len(ids), log_probs)


def _can_prefill(owner: np.ndarray, needed: np.ndarray) -> bool:
    """Whether there are `needed` free slots, as in `Settings.refill`. `decode` returns by the same rule."""
    free = (owner < 0).reshape(*needed.shape, -1).sum(axis=-1)
    return bool(needed.any() and (free >= needed).all())
