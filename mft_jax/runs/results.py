"""results.json: what a run found, built from what is journalled, so that a run that was killed reports the same."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mft_jax.errors import UserError
from mft_jax.files import atomic_write
from mft_jax.metrics.accuracy import accuracy
from mft_jax.metrics.diversity import Equivalent, consensus_diversity
from mft_jax.metrics.ledger import Cost
from mft_jax.runs.checkpoints import Checkpoints
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.journal import read_committed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One method on one task's evaluation questions. Costs are those of getting here from the result before."""

    method: str
    iteration: int  # finetunings behind it; 0 is untuned
    task: str
    n: int  # evaluation questions
    accuracy: float  # 0..1
    stderr: float
    prompt_tokens: int
    new_tokens: int
    flops: int
    device_seconds: float
    wall_seconds: float
    diversity: dict[str, float] | None  # None for a single agent


_COSTS = ("prompt_tokens", "new_tokens", "flops", "device_seconds", "wall_seconds")


def make_result(
    transcripts: Sequence[Mapping[str, Any]],
    *,
    method: str,
    iteration: int,
    task: str,
    cost: Cost,
    equivalent: Equivalent,
) -> Result:
    """The result of evaluation transcripts, parsed from their JSON lines; `equivalent` compares the task's answers."""
    score = accuracy([line["correct"] for line in transcripts])
    answers = [[agent["answers"][-1] for agent in line["agents"]] for line in transcripts]
    votes = [line["vote"] for line in transcripts]
    has_society = all(len(row) > 1 for row in answers)
    return Result(
        method=method,
        iteration=iteration,
        task=task,
        n=score.n,
        accuracy=score.value,
        stderr=score.stderr,
        **{name: getattr(cost, name) for name in _COSTS},
        diversity=consensus_diversity(answers, votes, equivalent) if has_society else None,
    )


def collect_results(
    run: RunDirectory,
    *,
    task: str,
    questions: int,
    baselines: Sequence[str],
    method: str,
    iterations: int,
    equivalent: Equivalent,
) -> list[Result]:
    """Results of every evaluation whose `questions` questions are all journalled, in the order of the run.

    A baseline costs its evaluation; iteration K of `method` its debate, its finetuning and its evaluation.
    """
    results = []
    for name in baselines:
        lines, cost = read_committed(run.baseline_file(name))
        if len(lines) == questions:
            results.append(make_result(lines, method=name, iteration=0, task=task, cost=cost, equivalent=equivalent))
    for iteration in range(1, iterations + 1):
        lines, cost = read_committed(run.evaluation_file(iteration))
        if len(lines) == questions:
            cost = read_committed(run.debate_file(iteration))[1] + finetuning_cost(run, iteration) + cost
            results.append(
                make_result(lines, method=method, iteration=iteration, task=task, cost=cost, equivalent=equivalent)
            )
    return results


def finetuning_cost(run: RunDirectory, iteration: int) -> Cost:
    """What the finetuning of an iteration has cost up to its last checkpoint."""
    if not run.checkpoint(iteration).is_dir():
        return Cost()
    with Checkpoints(run.checkpoint(iteration), read_only=True) as checkpoints:
        info = checkpoints.latest()
    return Cost() if info is None else info.cost


def write_results(path: pathlib.Path, results: Sequence[Result]) -> None:
    """Writes a list of objects, one for each (method, iteration, task)."""
    atomic_write(path, json.dumps([dataclasses.asdict(result) for result in results], indent=2) + "\n")


def read_results(path: pathlib.Path) -> list[Result]:
    """The inverse of `write_results`. Raises UserError when there is no such file, or another kind of file."""
    try:
        return [Result(**raw) for raw in json.loads(pathlib.Path(path).read_text(encoding="utf-8"))]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a run with results; `mft run` makes them."
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a list of results ({error}): run `mft run` again to rebuild it.") from error
