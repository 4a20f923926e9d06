"""What of a run's stages is done, and what is damaged. Changes nothing."""

import dataclasses
from collections.abc import Callable, Iterator

from mft_jax.config import ExperimentConfig
from mft_jax.metrics.ledger import Cost, total
from mft_jax.runs import layout
from mft_jax.runs.checkpoint_info import latest_info
from mft_jax.runs.questions import count_questions
from mft_jax.runs.stages import read_committed
from mft_jax.runs.store import DamagedFile, Store


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """One stage of a run."""

    name: str  # as the run itself calls it while it works
    done: int
    total: int  # 0: not known yet
    unit: str  # questions or steps
    cost: Cost  # so far, over all starts of the run


def find_damage(store: Store, config: ExperimentConfig) -> list[str]:
    """What of a run is damaged, a sentence each. Adapters of finished iterations are read, too."""
    from mft_jax.runs.checkpoints import Checkpoints  # here, so that whoever reads a status need not wait for JAX

    damage: list[str] = []
    for _ in list_stages(store, config, damage.append):
        pass
    for k in range(1, config.iterations + 1):
        checkpoints = Checkpoints(store, layout.checkpoint(k), read_only=True)
        try:
            info = checkpoints.finished()
            if info is not None:
                checkpoints.verify(info.step, "adapters")
        except DamagedFile as error:
            damage.append(str(error))
    return sorted(set(damage))


def list_stages(store: Store, config: ExperimentConfig, tell: Callable[[str], None]) -> Iterator[StageStatus]:
    """The stages in the order in which they are worked off; `tell` hears of damaged files."""
    train, evaluation = count_questions(store) or (config.task.train_questions, config.task.eval_questions)
    for method in config.baselines:
        yield _read_questions(store, f"{method} (untuned)", layout.evaluation(method, 0), evaluation, tell)
    for k in range(1, config.iterations + 1):
        yield _read_questions(store, f"iteration {k}: debate", layout.debate(k), train, tell)
        yield _read_steps(store, f"iteration {k}: finetuning", layout.checkpoint(k), tell)
        own = layout.evaluation(config.method, k)
        yield _read_questions(store, f"iteration {k}: evaluation", own, evaluation, tell)


def _read_questions(store: Store, name: str, stage: str, questions: int, tell: Callable[[str], None]) -> StageStatus:
    try:
        chunks = read_committed(store, stage)
    except DamagedFile as error:
        tell(str(error))
        return StageStatus(name, 0, questions, "questions", Cost())
    done, cost = sum(chunk.lines for chunk in chunks), total(chunk.cost for chunk in chunks)
    return StageStatus(name, done, questions, "questions", cost)


def _read_steps(store: Store, name: str, checkpoint: str, tell: Callable[[str], None]) -> StageStatus:
    try:
        info = latest_info(store, checkpoint)
    except DamagedFile as error:
        tell(str(error))
        info = None
    if info is None:
        return StageStatus(name, 0, 0, "steps", Cost())
    return StageStatus(name, info.step, info.total, "steps", info.cost)
