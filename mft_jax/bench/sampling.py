"""Sampling as fast as the devices can: all rows filled, and every row samples the same number of tokens."""

import dataclasses
import itertools
import time
from collections.abc import Sequence

import numpy as np

from mft_jax.bench.device import size_of
from mft_jax.bench.measurement import Limits, Measurement, Work, measure
from mft_jax.bench.stopwatch import timed
from mft_jax.metrics.flops import context_of, forward_flops
from mft_jax.models.society import Society
from mft_jax.sampling import Request, Sampler
from mft_jax.seeds import row_key
from mft_jax.setup import Setup

NEW_TOKENS = 64  # sampled by every row, unless sampling.max_new_tokens is smaller


def measure_sampling(
    setup: Setup, society: Society, speakers: Sequence[str | None], rows: int, limits: Limits, repeats: int, case: str
) -> list[Measurement]:
    """Samples `rows` answers of every speaker, all together. Measures prefill, decode, and both with the host's work.

    The prompts are those of the task's questions in the first round, so many that no speaker is asked one twice if the task
    has them. None is the base model as a speaker.
    """
    new_tokens = min(NEW_TOKENS, setup.config.sampling.max_new_tokens)
    data = setup.session.mesh.shape["data"]
    rows = -(-rows // data) * data
    config = dataclasses.replace(
        setup.config.sampling,
        max_new_tokens=new_tokens,
        rows=rows,
        prefill_rows=min(setup.config.sampling.prefill_rows, rows),
        steps_per_dispatch=new_tokens,
    )
    questions = itertools.cycle((*setup.task.train, *setup.task.eval))
    ask = lambda: setup.session.chat.prompt([setup.task.prompts.first(next(questions).text)])
    same = len(set(speakers)) == len(speakers)  # agents are asked the same questions, lanes of the base model others
    prompts = [[ask()] * len(speakers) if same else [ask() for _ in speakers] for _ in range(rows)]
    requests = [
        Request(speaker, prompt, row_key("bench", number, place))
        for number, own in enumerate(prompts)
        for place, (speaker, prompt) in enumerate(zip(speakers, own, strict=True))
    ]
    # Without stop ids, every row samples `new_tokens` tokens.
    sampler = Sampler(setup.session.programs, setup.session.base, config, stop_ids=(), lanes=len(speakers))
    sampler.sample(requests, society)  # the warm-up: compiles, which the session's programs count
    prefill, decode, whole = [], [], []
    calls = read = 0
    for _ in range(repeats):
        sampler.programs, reads, writes = timed(setup.session.programs)
        started = time.perf_counter()
        completions, (usage,) = sampler.sample(requests, society)
        elapsed = time.perf_counter() - started
        if any(completion.new_tokens != new_tokens for completion in completions):
            raise RuntimeError("a row ended early, so the number of sampled tokens is not as planned")
        prefill.append(sum(program.seconds for program in reads))
        decode.append(writes.seconds)
        whole.append(elapsed)
        calls, read = sum(program.calls for program in reads), usage.read_tokens
    adapted = any(speaker is not None for speaker in speakers)
    lengths = [len(request.prompt) for request in requests]
    reading = prefill_work(setup, lengths, calls, adapted, read)
    writing = decode_work(setup, society, lengths, new_tokens, adapted)
    both = Work(tokens=writing.tokens, flops=reading.flops + writing.flops, bytes=reading.bytes + writing.bytes)
    return [
        measure("prefill", case, reading, limits, prefill),
        measure("decode", case, writing, limits, decode),
        measure("sample", case, both, limits, whole),
    ]


def prefill_work(setup: Setup, lengths: Sequence[int], calls: int, adapted: bool, read: int | None = None) -> Work:
    """The work of computing the KV cache of prompts in `calls` calls. The last token of each is left to `decode`.

    `read` of their tokens are computed (None: all), because prompts share some; FLOPs are in proportion to them.
    """
    model, lora = setup.session.model, setup.config.lora if adapted else None
    tokens = sum(length - 1 for length in lengths)
    context = sum(context_of(model, length - 1) for length in lengths)
    flops = forward_flops(model, lora, tokens=tokens, context=context, logits=0)
    if read is not None:
        flops = flops * read // sum(lengths)
    return Work(tokens=sum(lengths), flops=flops, bytes=calls * size_of(setup.session.base))


def decode_work(setup: Setup, society: Society, lengths: Sequence[int], new_tokens: int, adapted: bool) -> Work:
    """The work of decoding `new_tokens` tokens after each prompt, one token of every row at a time."""
    model, lora = setup.session.model, setup.config.lora if adapted else None
    tokens = len(lengths) * new_tokens
    context = sum(context_of(model, length - 1 + new_tokens, length - 1) for length in lengths)
    weights = size_of(setup.session.base) + (size_of(society.stacked.weights) if adapted else 0)
    column = 2 * model.kv_heads * model.head_dim * np.dtype(setup.session.programs.dtype).itemsize
    return Work(
        tokens=tokens,
        flops=forward_flops(model, lora, tokens=tokens, context=context, logits=tokens),
        bytes=new_tokens * weights + context * column,
    )
