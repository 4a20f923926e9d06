"""results.json: the results of a run, derived from its evaluation transcripts. It can be rebuilt at any time."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mft_jax.config import ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.metrics.accuracy import accuracy
from mft_jax.metrics.diversity import Equivalent, consensus_diversity
from mft_jax.metrics.ledger import Cost, total
from mft_jax.runs import layout
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.manifest import parse_manifest
from mft_jax.runs.stage_file import read_committed, read_stage
from mft_jax.runs.store import Damage, DamagedFile, Store

if TYPE_CHECKING:
    from mft_jax.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one method on the evaluation questions of one task.

    The cost is that of one iteration (debate, finetuning and evaluation), or of the evaluation of a baseline.
    """

    method: str
    iteration: int  # number of finetunings; 0: without finetuning
    task: str
    n: int  # evaluation questions
    accuracy: float | None  # 0..1, over the questions with a known answer; None if there are none
    stderr: float | None
    prompt_tokens: int
    new_tokens: int
    flops: int
    device_seconds: float
    wall_seconds: float
    diversity: dict[str, float] | None  # None for a single agent
    cut: int = 0  # answers cut off by a limit
    unanswered: int = 0  # turns whose prompt did not fit into the model's context
    grading_timeouts: int = 0  # comparisons of answers that ran out of time and count as different


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation of a run."""

    method: str
    iteration: int  # 0: without finetuning
    stage: str  # the name of the stage with its transcripts


_COSTS = ("prompt_tokens", "new_tokens", "flops", "device_seconds", "wall_seconds")
_COUNTS = ("cut", "unanswered", "grading_timeouts")


def list_evaluations(config: ExperimentConfig) -> list[Evaluation]:
    """All evaluations of a run, in order, done or not."""
    places = [(name, 0) for name in config.baselines] + [(config.method, k + 1) for k in range(config.iterations)]
    return [Evaluation(method=name, iteration=k, stage=layout.evaluation(name, k)) for name, k in places]


def collect_results(
    store: Store,
    evaluations: Sequence[Evaluation],
    *,
    task: str,
    questions: int,
    equivalent: Equivalent,
    say: Callable[[str], None],
) -> list[Result]:
    """The results of the complete evaluations, which have `questions` committed questions, in the given order.

    An evaluation with damaged files is left out, and `say` reports it. The run repairs it when it is started again.
    """
    results = []
    for evaluation in evaluations:
        try:
            lines, cost, counts = read_stage(store, evaluation.stage)
            if len(lines) == questions:
                spent = cost_before(store, evaluation.iteration) + cost
                made = {"method": evaluation.method, "iteration": evaluation.iteration, "task": task}
                results.append(make_result(lines, **made, cost=spent, counts=counts, equivalent=equivalent))
        except DamagedFile as error:
            say(f"The results of {evaluation.method}, iteration {evaluation.iteration}, are left out. {error}")
    return results


def cost_before(store: Store, iteration: int) -> Cost:
    """The cost of an iteration before its evaluation: its debate and its finetuning. Zero for iteration 0."""
    if not iteration:
        return Cost()
    info = latest_info(store, layout.checkpoint(iteration))
    debate = total(chunk.cost for chunk in read_committed(store, layout.debate(iteration)))
    return debate if info is None else debate + info.cost


def make_result(
    transcripts: Sequence[Mapping[str, Any]],
    *,
    method: str,
    iteration: int,
    task: str,
    cost: Cost,
    counts: Mapping[str, int],
    equivalent: Equivalent,
) -> Result:
    """The result of evaluation transcripts, given as parsed JSON. `equivalent` compares two answers of the task."""
    known = [line["correct"] for line in transcripts if line["correct"] is not None]
    score = accuracy(known) if known else None
    answers = [[agent["answers"][-1] for agent in line["agents"]] for line in transcripts]
    votes = [line["vote"] for line in transcripts]
    has_society = all(len(row) > 1 for row in answers)
    return Result(
        method=method,
        iteration=iteration,
        task=task,
        n=len(transcripts),
        accuracy=None if score is None else score.value,
        stderr=None if score is None else score.stderr,
        **{name: getattr(cost, name) for name in _COSTS},
        diversity=consensus_diversity(answers, votes, equivalent) if has_society else None,
        **{name: counts.get(name, 0) for name in _COUNTS},
    )


def publish_results(store: Store, config: ExperimentConfig, task: "Task", say: Callable[[str], None]) -> list[Result]:
    """Rebuilds results.json and returns it: first the run's own task, then the evaluations on other tasks."""
    own = collect_results(
        store, list_evaluations(config), task=task.name, questions=len(task.eval), equivalent=task.equivalent, say=say
    )  # fmt: skip
    results = own + read_evaluations(store, say)
    write_results(store, results)
    return results


def read_evaluations(store: Store, say: Callable[[str], None]) -> list[Result]:
    """The results in evaluations/LABEL/, with LABEL as the task. `say` reports those that cannot be read."""
    results = []
    for folder in store.names(layout.EVALUATIONS):
        inside, label = Store(store.path(folder)), folder.rsplit("/", 1)[-1]
        if not inside.exists(layout.RESULTS):
            continue  # not finished
        try:
            _verify_results(inside)
            found = read_results(inside.path(layout.RESULTS))
        except UserError as error:
            say(f"The results of the evaluation {label} are left out. {error}")
            continue
        results += [dataclasses.replace(result, task=label) for result in found]
    return results


def _verify_results(store: Store) -> None:
    """Raises DamagedFile if the results of a finished evaluation do not match the checksum in its run.json."""
    path = store.path(layout.MANIFEST)
    try:
        manifest = parse_manifest(store.read(layout.MANIFEST), str(path))
    except Damage as damage:
        raise DamagedFile(f"{path} is damaged ({damage}): start this evaluation again.") from damage
    if manifest["status"] != "finished":
        return
    if manifest.get("results_sha256") != hashlib.sha256(store.read(layout.RESULTS)).hexdigest():
        raise DamagedFile(
            f"The checksum of {store.path(layout.RESULTS)} is wrong: start this evaluation again, which rebuilds it."
        )


def write_results(store: Store, results: Sequence[Result]) -> None:
    """Writes results.json, a list of objects. Raises RuntimeError if this process does not hold the store."""
    if not store.is_mine:
        raise RuntimeError(f"{store.root} is not held by this process, so its results must not be written")
    text = json.dumps([dataclasses.asdict(result) for result in results], indent=2) + "\n"
    store.write(layout.RESULTS, text.encode())


def read_results(path: pathlib.Path) -> list[Result]:
    """The inverse of `write_results`. Raises UserError if the file is missing or is not a list of results."""
    path = pathlib.Path(path)
    try:
        raw = json.loads(path.read_bytes())
        results = [Result(**fields) for fields in raw]
        wrong = [name for result in results for name in _wrong_fields(result)]
        reason = f"{wrong[0]} has a wrong type" if wrong else "" if results else "it is empty"
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a run with results; `mft run` makes them."
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error)
    if reason:
        raise UserError(
            f"{path} is not a list of results ({reason}): start the command that made it again, which rebuilds it."
        )
    return results


def _wrong_fields(result: Result) -> Iterator[str]:
    numbers = ("iteration", "n", *_COSTS, *_COUNTS)
    optional = [name for name in ("accuracy", "stderr") if getattr(result, name) is not None]
    for name in ("method", "task"):
        if not isinstance(getattr(result, name), str):
            yield name
    for name in (*numbers, *optional):
        if not isinstance(getattr(result, name), int | float):
            yield name
    diversity = result.diversity
    if diversity is not None and not (isinstance(diversity, dict) and {"consensus", "diversity"} <= diversity.keys()):
        yield "diversity"
