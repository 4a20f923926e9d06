"""Finetuning and scoring on real dialogues, and whole debates."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from mft_jax.bench.device import size_of
from mft_jax.bench.measurement import Limits, Measurement, Work, measure, time_runs
from mft_jax.debate import Transcript
from mft_jax.finetuning import Example, hyper_of, likelihood, make_plan
from mft_jax.finetuning.lesson import Lesson
from mft_jax.finetuning.trainer import place_batch
from mft_jax.metrics.costs import finetuning_cost
from mft_jax.metrics.flops import context_of, forward_flops
from mft_jax.models.society import Society
from mft_jax.programs.train import init_state
from mft_jax.sampling import Usage
from mft_jax.sampling.scorer import Text, score_texts
from mft_jax.setup import Setup
from mft_jax.stages import place_state

SCORED_ROWS = 8  # texts of each speaker in one batch of the score program


def measure_debate(setup: Setup, society: Society, repeats: int) -> tuple[dict[str, float], list[Transcript]]:
    """Debates a chunk of training questions before finetuning. Returns its figures, each a median, and the transcripts."""
    questions = setup.task.train[: setup.config.sampling.chunk_questions] or setup.task.eval
    debate = setup.debate(society, "bench")
    transcripts, _ = debate.run(questions)  # the warm-up
    shares = []
    for _ in range(repeats):
        started = time.perf_counter()
        transcripts, usages = debate.run(questions)
        shares.append(debate_shares(usages, time.perf_counter() - started, setup.session.mesh.size))
    medians = {name: float(np.median([own[name] for own in shares])) for name in shares[0]}
    return {"questions": float(len(questions)), **medians}, transcripts


def debate_shares(usages: Sequence[Usage], seconds: float, devices: int) -> dict[str, float]:
    """The speed of a debate, and how much of its time, slots and prefilled tokens was of use."""
    prompt, new = (sum(pair[part] for usage in usages for pair in usage.lengths) for part in (0, 1))
    read, prefilled = (sum(getattr(usage, name) for usage in usages) for name in ("read_tokens", "prefilled_tokens"))
    busy = sum(usage.device_seconds for usage in usages) / devices
    return {
        "seconds": seconds,
        "new_tokens_per_second": new / seconds,
        "time_in_programs": busy / seconds,
        "live_slots": new / sum(usage.slot_steps for usage in usages),
        "prefilled_tokens_without_padding": read / prefilled,
        "prompt_tokens_read": read / prompt,
    }


def measure_finetuning(
    setup: Setup, society: Society, transcripts: Sequence[Transcript], limits: Limits, repeats: int
) -> list[Measurement]:
    """Optimizer steps on packed dialogues: of all adapters in one step, and of one adapter at a time.

    The dialogues are those of a debate before finetuning, right or wrong. No measurement if all are too long for a row.
    """
    lessons, names = setup.method.lessons, setup.method.adapters
    examples = {name: _dialogues(transcripts, place) for place, name in enumerate(names)}
    together = _time_steps(setup, lessons, society, examples, repeats)
    if together is None:
        return []
    alone = [
        _time_steps(setup, [lesson], _only(society, name), examples, repeats)
        for lesson, name in zip(lessons, names, strict=True)
    ]
    work, seconds = together
    found = [measure("finetune", f"{len(names)} adapters", work, limits, seconds)]
    if len(names) > 1 and all(own is not None for own in alone):
        parts = [own for own in alone if own is not None]
        total = Work(**{f.name: sum(getattr(own, f.name) for own, _ in parts) for f in dataclasses.fields(Work)})
        runs = [sum(times) for times in zip(*(times for _, times in parts), strict=True)]
        found.append(measure("finetune", "one at a time", total, limits, runs))
    return found


def measure_scoring(
    setup: Setup, society: Society, transcripts: Sequence[Transcript], limits: Limits, repeats: int
) -> list[Measurement]:
    """The log-probabilities of the dialogues of a debate, each under the adapter of its agent."""
    texts = []
    for transcript in transcripts:
        for agent, name in zip(transcript.agents, society.names, strict=False):
            ids, _ = setup.session.chat.example(list(agent.messages))
            texts.append(Text(name, ids[: setup.session.model.max_positions].tolist()))
    if not texts:
        return []
    model, lengths = setup.session.model, [len(text.tokens) for text in texts]
    context = sum(context_of(model, length) for length in lengths)
    flops = forward_flops(model, setup.config.lora, tokens=sum(lengths), context=context, logits=sum(lengths))
    calls = -(-len(texts) // (SCORED_ROWS * len({text.speaker for text in texts})))
    work = Work(tokens=sum(lengths), flops=flops, bytes=calls * size_of(setup.session.base))
    call = lambda: score_texts(setup.session.programs, setup.session.base, texts, society, rows=SCORED_ROWS)
    case = f"{len(texts)} dialogues"
    return [measure("score", case, work, limits, time_runs(lambda: [own.log_probs for own in call()], repeats))]


def _time_steps(
    setup: Setup,
    lessons: Sequence[Lesson],
    society: Society,
    examples: Mapping[str, Sequence[Example]],
    repeats: int,
) -> tuple[Work, list[float]] | None:
    """The work of the first optimizer step, and its seconds in each of several runs; None if there are no examples."""
    session, tuning = setup.session, setup.config.finetuning
    plan = make_plan(session.chat, lessons, examples, tuning, seed=setup.config.seed, iteration=1)
    if not plan.total:
        return None
    state = place_state(session, init_state(society.stacked.weights))
    program = session.programs.train(likelihood, state, tuning.agents_at_once, tuning.recomputed)
    hyper = hyper_of(plan, tuning, setup.config.lora.scale)
    batch = place_batch(plan.batch(0), session.mesh)
    holder = [state]

    def step() -> jax.Array:
        holder[0], metrics = program(session.base, holder[0], batch, np.asarray(0, np.int32), hyper)
        return metrics.loss

    seconds = time_runs(step, repeats)
    cost = finetuning_cost(plan, 0, 1, session.model, setup.config.lora)
    return Work(tokens=cost.train_tokens, flops=cost.flops, bytes=size_of(session.base)), seconds


def _dialogues(transcripts: Sequence[Transcript], agent: int) -> list[Example]:
    """The dialogues of one agent. A method can have more adapters than agents: the agents take turns."""
    return [
        Example(
            id=transcript.id, messages=list(transcript.agents[agent % len(transcript.agents)].messages), kind="kept"
        )
        for transcript in transcripts
    ]


def _only(society: Society, name: str) -> Society:
    """A society of one adapter."""
    return dataclasses.replace(society, names=(name,), adapters=society.stack([name]), _stacks={})
