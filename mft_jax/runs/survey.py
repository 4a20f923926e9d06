"""Finds out which stages of a run are done, and which files are missing or damaged. Changes nothing."""

import dataclasses
from collections.abc import Iterator, Sequence

from mft_jax.config import ExperimentConfig
from mft_jax.metrics.ledger import Cost, total
from mft_jax.runs import layout
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.early_end import last_iteration
from mft_jax.runs.questions import count_questions
from mft_jax.runs.stage_file import read_committed
from mft_jax.runs.store import DamagedFile, Store
from mft_jax.runs.training_sets import read_training_set


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """How far a run has got with one stage."""

    name: str  # as in the progress display of the run
    done: int
    total: int | None  # None: not known yet
    unit: str  # questions or steps
    cost: Cost  # so far, over all starts of the run
    is_done: bool = False
    damage: str = ""  # which of its files is damaged, and the remedy; "" if none is


def find_damage(store: Store, config: ExperimentConfig, adapters: Sequence[str] | None = None) -> list[str]:
    """The damaged files of a run, one sentence each. The adapters of finished iterations are verified too.

    `adapters` are the names of the adapters that the method of the run finetunes. If they are given, files that are
    missing from a finished run of this method are reported too.
    """
    stages = list_stages(store, config)
    damage = [stage.damage for stage in stages if stage.damage]
    if adapters is not None:
        expected = stages if adapters else stages[: len(config.baselines)]
        missing = [stage.name for stage in expected if not stage.is_done and not stage.damage]
        damage += [f"The files of {name} are missing or incomplete." for name in missing]
    for iteration in range(1, last_iteration(store, config) + 1):
        damage += _damaged_adapters(store, iteration)
        damage += _damaged_training_sets(store, iteration, adapters or ())
    return list(dict.fromkeys(damage))


def list_stages(store: Store, config: ExperimentConfig) -> list[StageStatus]:
    """The stages in the order in which the run works on them."""
    train, evaluation = count_questions(store) or (config.task.train_questions, config.task.eval_questions)
    last = last_iteration(store, config)
    skipped = {f"majority@iteration_{k}" for k in range(last + 1, config.iterations + 1)}  # their budget is never known
    stages = [
        _read_questions(store, f"{method} (untuned)", layout.evaluation(method, 0), evaluation)
        for method in config.baselines
        if method not in skipped
    ]
    for k in range(1, last + 1):
        stages += [
            _read_questions(store, f"iteration {k}: debate", layout.debate(k), train),
            _read_steps(store, f"iteration {k}: finetuning", layout.checkpoint(k)),
            _read_questions(store, f"iteration {k}: evaluation", layout.evaluation(config.method, k), evaluation),
        ]
        stages += list(_diversity_stages(store, config, config.method, k, f"iteration {k}"))
    for method in config.baselines:  # those with one agent have none
        found = _diversity_stages(store, config, method, 0, method)
        stages += [stage for stage in found if stage.done or stage.damage]
    return stages


def _diversity_stages(
    store: Store, config: ExperimentConfig, method: str, iteration: int, title: str
) -> Iterator[StageStatus]:
    evaluated = (count_questions(store) or (0, config.task.eval_questions))[1]
    questions = min(config.metrics.diversity_questions, evaluated)
    for measure in config.metrics.diversity:
        yield _read_questions(store, f"{title}: {measure}", layout.diversity(method, iteration, measure), questions)


def _read_questions(store: Store, name: str, stage: str, questions: int) -> StageStatus:
    try:
        chunks = read_committed(store, stage)
    except DamagedFile as error:
        return StageStatus(name, 0, questions, "questions", Cost(), damage=str(error))
    done, cost = sum(chunk.lines for chunk in chunks), total(chunk.cost for chunk in chunks)
    return StageStatus(name, done, questions, "questions", cost, is_done=done >= max(questions, 1))


def _read_steps(store: Store, name: str, checkpoint: str) -> StageStatus:
    try:
        info = latest_info(store, checkpoint)
    except DamagedFile as error:
        return StageStatus(name, 0, None, "steps", Cost(), damage=str(error))
    if info is None:
        return StageStatus(name, 0, None, "steps", Cost())
    return StageStatus(name, info.step, info.total, "steps", info.cost, is_done=info.finished)


def _damaged_adapters(store: Store, iteration: int) -> Iterator[str]:
    from mft_jax.runs.checkpoints import Checkpoints  # imported here, so that reading a status does not load JAX

    checkpoints = Checkpoints(store, layout.checkpoint(iteration), read_only=True)
    try:
        info = checkpoints.finished()
        if info is not None:
            checkpoints.verify(info.step, "adapters")
    except DamagedFile as error:
        yield str(error)


def _damaged_training_sets(store: Store, iteration: int, adapters: Sequence[str]) -> Iterator[str]:
    for name in adapters:
        try:
            read_training_set(store, iteration, name)
        except DamagedFile as error:
            yield str(error)
