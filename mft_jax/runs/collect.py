"""Derives the results of a run from its transcripts and the costs of its stages. It can be repeated at any time."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mft_jax.config import ExperimentConfig
from mft_jax.errors import UserError
from mft_jax.metrics.accuracy import accuracy
from mft_jax.metrics.answers import Speakers, VoteQuality, count_unparsed, summarize_answers, vote_quality
from mft_jax.metrics.diversity import Equivalent, consensus_diversity, mean_of_known
from mft_jax.metrics.ledger import Cost, Ledger, total
from mft_jax.metrics.monitor import watch
from mft_jax.metrics.statistics import compare_with_first
from mft_jax.metrics.vote_curve import vote_curve
from mft_jax.runs import layout
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.manifest import parse_manifest
from mft_jax.runs.results import COSTS, COUNTS, Result, read_results, write_results
from mft_jax.runs.stage_file import read_committed, read_stage
from mft_jax.runs.store import Damage, DamagedFile, Store
from mft_jax.runs.used_feedback import FeedbackUse, read_used

if TYPE_CHECKING:
    from mft_jax.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation of a run."""

    method: str
    iteration: int  # 0: without finetuning
    stage: str  # the name of the stage with its transcripts
    speakers: Speakers = ()  # [M][N]: the adapters that speak; empty if the base model speaks for all agents

    @property
    def is_independent(self) -> bool:
        """Whether all agents have the same first speaker, so that without later rounds their answers are independent."""
        return not self.speakers or len(set(self.speakers[0])) == 1


def list_evaluations(config: ExperimentConfig) -> list[Evaluation]:
    """All evaluations of a run, in order, done or not."""
    from mft_jax.methods import make_method  # imported here, so that reading a status does not load JAX

    tuned, speakers = config.method, make_method(config.method, config).evaluation.speakers
    places = [(name, 0) for name in config.baselines] + [(tuned, k + 1) for k in range(config.iterations)]
    return [
        Evaluation(method=name, iteration=k, stage=layout.evaluation(name, k), speakers=speakers if k else ())
        for name, k in places
    ]


def collect_results(
    store: Store,
    evaluations: Sequence[Evaluation],
    *,
    task: str,
    questions: int,
    equivalent: Equivalent,
    seed: int,
    say: Callable[[str], None],
    trained_in: Store | None = None,
    measures: Sequence[str] = (),
) -> list[Result]:
    """The results of the complete evaluations, which have `questions` committed questions, in the given order.

    Each is compared with the first one. An evaluation with damaged files is left out, and `say` reports it; the run
    repairs it when it is started again. `trained_in` is the store of the run that trained the agents, if it is another.
    `measures` are the measures of diversity besides consensus. `seed` is that of the bootstrap intervals.
    """
    results, correct = [], []
    costs = functools.cache(functools.partial(training_costs, trained_in or store))
    equivalent = functools.cache(equivalent)
    for evaluation in evaluations:
        try:
            lines, cost, counts = read_stage(store, evaluation.stage, _without_texts)
            if len(lines) == questions:
                ledger = make_ledger(costs, evaluation.iteration, cost)
                spent = cost if trained_in else ledger.debate + ledger.finetuning + cost
                result = make_result(lines, evaluation, task=task, cost=spent, counts=counts, equivalent=equivalent)
                votes = read_vote_quality(trained_in or store, evaluation.iteration)
                if evaluation.is_independent and all(len(line["votes"]) == 1 for line in lines):
                    result = dataclasses.replace(result, vote_curve=vote_curve(lines, equivalent, cost.flops))
                if result.diversity is not None:
                    result.diversity.update(read_diversity(store, evaluation, measures))
                use = _read_use(trained_in or store, evaluation.iteration, say)
                results.append(dataclasses.replace(result, ledger=ledger, training_vote=votes, feedback=use))
                correct.append([line["correct"] for line in lines])
        except DamagedFile as error:
            say(f"The results of {evaluation.method}, iteration {evaluation.iteration}, are left out. {error}")
    compared = zip(results, compare_with_first(correct, seed), strict=True)
    results = [dataclasses.replace(result, comparison=comparison) for result, comparison in compared]
    return results if trained_in else with_monitors(store, evaluations, results, equivalent)


def _without_texts(line: dict[str, Any]) -> dict[str, Any]:
    """A transcript as JSON without what was said, which is most of it and in no metric: hosts then need little memory."""
    for agent in line["agents"]:
        agent.pop("messages", None)
    line.pop("summaries", None)
    return line


def with_monitors(
    store: Store, evaluations: Sequence[Evaluation], results: Sequence[Result], equivalent: Equivalent
) -> list[Result]:
    """The results, with the monitor's verdict on each iteration before the first one that has no result."""
    stages = {evaluation.iteration: evaluation.stage for evaluation in evaluations}
    found = {result.iteration for result in results}
    count = next(k for k in itertools.count() if k + 1 not in found)
    if not count:
        return list(results)
    read = lambda stage: read_stage(store, stage, _without_texts)[0]
    untuned = read(layout.debate(1))
    verdicts = watch(untuned, [read(stages[k]) for k in range(1, count + 1)], equivalent) if untuned else []
    by_iteration = dict(enumerate(verdicts, start=1))
    return [dataclasses.replace(result, monitor=by_iteration.get(result.iteration)) for result in results]


def make_ledger(costs: Callable[[int], tuple[Cost, Cost]], iteration: int, evaluation: Cost) -> Ledger:
    """The ledger of an iteration whose evaluation has cost `evaluation`; iteration 0 has no training.

    `costs(k)` are the costs of the debate and of the finetuning of iteration k, from 1.
    """
    stages = [costs(k) for k in range(1, iteration + 1)]
    debate, finetuning = stages[-1] if stages else (Cost(), Cost())
    training = total(cost for stage in stages for cost in stage)
    return Ledger(debate=debate, finetuning=finetuning, evaluation=evaluation, training=training)


def training_costs(store: Store, iteration: int) -> tuple[Cost, Cost]:
    """The costs of the debate and of the finetuning of an iteration.

    A stage that was copied from another run counts with the cost that it had there, because the method needs it all the same.
    """
    debate = total(chunk.cost for chunk in read_committed(store, layout.debate(iteration)))
    info = latest_info(store, layout.checkpoint(iteration))
    return debate, Cost() if info is None else info.cost


def read_vote_quality(store: Store, iteration: int) -> VoteQuality | None:
    """The quality of the votes that an iteration was trained on; None for iteration 0, which has no training."""
    lines, _, counts = read_stage(store, layout.debate(iteration), _without_texts) if iteration else ([], Cost(), {})
    return vote_quality(lines, counts.get("cut", 0)) if lines else None


def _read_use(store: Store, iteration: int, say: Callable[[str], None]) -> FeedbackUse | None:
    """How many verdicts of people an iteration was trained with; None without any, or if the record is damaged."""
    try:
        used = read_used(store, iteration) if iteration else None
        return None if used is None else used[1]
    except DamagedFile as error:
        say(f"How many verdicts iteration {iteration} used is left out. {error}")
        return None


def read_diversity(store: Store, evaluation: Evaluation, measures: Sequence[str]) -> dict[str, Any]:
    """The means of the measures over the questions that have a value, the number of questions, and the encoder."""
    found: dict[str, Any] = {}
    for measure in measures:
        lines, _, _ = read_stage(store, layout.diversity(evaluation.method, evaluation.iteration, measure))
        for name in lines[0].keys() - {"id", "encoder"} if lines else ():
            found[name] = mean_of_known([line[name] for line in lines])
        if lines:
            found |= {name: lines[0][name] for name in lines[0] if name == "encoder"} | {"questions": len(lines)}
    return dict(sorted(found.items()))


def make_result(
    transcripts: Sequence[Mapping[str, Any]],
    evaluation: Evaluation,
    *,
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
        method=evaluation.method,
        iteration=evaluation.iteration,
        task=task,
        n=len(transcripts),
        accuracy=None if score is None else score.value,
        stderr=None if score is None else score.stderr,
        **{name: getattr(cost, name) for name in COSTS},
        diversity=consensus_diversity(answers, votes, equivalent) if has_society else None,
        **{name: counts.get(name, 0) for name in COUNTS if name != "unparsed"},
        unparsed=count_unparsed(transcripts),
        answers=summarize_answers(transcripts, equivalent, evaluation.speakers),
    )


def publish_results(
    store: Store,
    config: ExperimentConfig,
    task: "Task",
    say: Callable[[str], None],
    trained_in: Store | None = None,
) -> list[Result]:
    """Rebuilds results.json and returns it: first the run's own task, then the evaluations on other tasks.

    `trained_in` is as in `collect_results`.
    """
    own = collect_results(
        store, list_evaluations(config), task=task.name, questions=len(task.eval), equivalent=task.equivalent,
        seed=config.seed, say=say, trained_in=trained_in, measures=config.metrics.diversity,
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
