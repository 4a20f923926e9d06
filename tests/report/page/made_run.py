"""Runs to report on, made by hand without a model, and how to read the data of a report."""

import base64
import dataclasses
import json
import re
import zlib

from mft_jax.config import DebateConfig, ExperimentConfig, TaskConfig
from mft_jax.debate import AgentTranscript, Transcript, Turn
from mft_jax.metrics.ledger import Cost
from mft_jax.runs import layout
from mft_jax.runs.collect import collect_results, list_evaluations
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.metrics_log import MetricsLogger
from mft_jax.runs.results import write_results
from mft_jax.runs.stage_file import StageFile
from mft_jax.runs.training_sets import write_training_sets
from mft_jax.tasks.answers import equivalent

SPENT = Cost(prompt_tokens=100, new_tokens=50, flops=10**9, device_seconds=2.0, wall_seconds=3.0)


def turn(end="stop", prompt=40, new=10):
    return Turn(end=end, prompt_tokens=prompt, new_tokens=new)


def agent(*rounds):
    """An agent from what it is shown, says and answers in each round: (shown, said, answer) or (..., end)."""
    messages, answers, turns = [], [], []
    for shown, said, answer, *end in rounds:
        messages += [{"role": "user", "content": shown}, {"role": "assistant", "content": said}]
        answers.append(answer)
        turns.append(turn(*end))
    return AgentTranscript(messages=tuple(messages), answers=tuple(answers), turns=tuple(turns))


def debate(identity, answers, votes, gold="5", question="What is 2+3?", said="It is {}.", summary="They say {}."):
    """A debate of agents with `answers`: [N][M]; None is an answer that could not be parsed."""
    agents, rounds = len(answers), len(votes)
    texts = [summary.format(f"{identity} {n}") for n in range(agents)]
    shown = lambda n, round: f"Others:\n{texts[n]}\nCheck." if round else f"{question}\nSolve it."
    return Transcript(
        id=identity,
        question=question,
        gold=gold,
        agents=tuple(
            agent(*((shown(n, k), said.format(own[k]), own[k]) for k in range(rounds))) for n, own in enumerate(answers)
        ),
        summaries=tuple(tuple(texts) for _ in range(rounds - 1)),
        summary_turns=tuple((turn(prompt=80, new=20),) * agents for _ in range(rounds - 1)),
        votes=tuple(votes),
        vote=votes[-1],
        correct=None if gold is None or votes[-1] is None else votes[-1] == gold,
    )


def small_config(path, **changes):
    """Two agents, two rounds, one iteration, and the baseline debate."""
    config = ExperimentConfig(
        run_dir=str(path), iterations=1, baselines=("debate",), debate=DebateConfig(agents=2),
        task=TaskConfig(train_questions=2, eval_questions=2),
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


EVALUATION = (
    debate("e1", [["4", "5"], ["5", "5"]], ["4", "5"]),
    debate("e2", [["7", "8"], ["8", "8"]], ["7", "8"], gold="7", question="What is 3+4?"),
)
TRAINING = (
    debate("t1", [["5", "5"], ["6", "5"]], ["5", "5"], question="What is 1+4?"),
    debate("t2", [["3", None], ["4", "4"]], ["3", "4"], gold="3", question="What is 1+2?"),
)


def commit(directory, stage, transcripts, chunk=1000):
    """Writes a whole stage."""
    file = StageFile(directory.store, stage)
    for start in range(0, len(transcripts), chunk):
        file.commit(start, [one.to_json() for one in transcripts[start : start + chunk]], SPENT, {})
    file.seal(len(transcripts))


def make_run(path, evaluation=EVALUATION, training=TRAINING, finished=True, **changes):
    """A run with these debates in all its stages. If not `finished`, it was killed before its last evaluation."""
    config = small_config(path, **changes)
    directory = RunDirectory(path)
    directory.take(config)
    directory.create(config)
    store = directory.store
    for name in config.baselines:
        commit(directory, layout.evaluation(name, 0), evaluation)
    logger = MetricsLogger(store)
    for k in range(1, config.iterations + 1):
        commit(directory, layout.debate(k), training)
        write_training_sets(store, k, lessons_of(training))
        for step in (1, 2):
            logger.log(
                k, "finetune", step, **{"loss": 0.5, "generator_0/loss": 1 / step, "critic_1/loss": float("nan")}
            )
        if finished or k < config.iterations:
            commit(directory, layout.evaluation(config.method, k), evaluation)
    logger.flush()
    places = list_evaluations(config)
    shared = {"task": config.task.name, "questions": len(evaluation), "equivalent": equivalent, "seed": 0, "say": print}
    write_results(store, collect_results(store, places, **shared))
    directory.finish() if finished else directory.release()
    return directory


def lessons_of(training):
    """What multiagent finetuning learns from `TRAINING`: the first agent's first answer, and a corrected dialogue."""
    first, corrected = training[0].agents[0], training[0].agents[1]
    return {
        "generator_0": [{"id": training[0].id, "messages": list(first.messages[:2]), "kind": "first"}],
        "generator_1": [],
        "critic_0": [],
        "critic_1": [
            {"id": training[0].id, "messages": list(corrected.messages), "kind": "corrected", "learned": [-1]}
        ],
    }


def data_of(page, name):
    """The data with this id in the text of a report."""
    (text,) = re.findall(rf'<script type="text/plain" id="{name}">([A-Za-z0-9+/=]*)</script>', page)
    return json.loads(zlib.decompress(base64.b64decode(text)))
