"""The status of a grid: what each cell has done, its results, and an estimate of the time that is left."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence

from mft_jax.config import Cell, ExperimentConfig, compare, lasting
from mft_jax.debate import Protocol
from mft_jax.errors import UserError
from mft_jax.methods import BUDGET, Method, make_method
from mft_jax.metrics.ledger import Cost, total
from mft_jax.runs import layout
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.grid_directory import GridDirectory
from mft_jax.runs.results import Result
from mft_jax.runs.shared_stages import read_record
from mft_jax.runs.status import read_status
from mft_jax.runs.survey import StageStatus, list_stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellStatus:
    """The status of a cell, according to its files."""

    cell: Cell
    state: str  # left, running, interrupted, failed or finished
    error: str | None = None  # why it stopped
    results: tuple[Result, ...] = ()
    stages: tuple[StageStatus, ...] = ()
    copied: frozenset[str] = frozenset()  # names of the stages that were copied from another cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridStatus:
    """The status of a grid."""

    path: str
    cells: tuple[CellStatus, ...]
    seconds_left: float | None  # estimated from the stages that are done; None: nothing is measured yet
    is_whole: bool  # whether the estimate covers all kinds of stages that are left

    @property
    def cost(self) -> Cost:
        """What the grid has cost so far. A stage that several cells share counts once."""
        return total(stage.cost for status in self.cells for stage in status.stages if stage.name not in status.copied)


def read_grid_status(path: str | pathlib.Path) -> GridStatus:
    """The status of the grid in a directory. Raises UserError if there is none."""
    directory = GridDirectory(path)
    return grid_status(directory, *directory.read())


def grid_status(directory: GridDirectory, cells: Sequence[Cell], errors: Mapping[str, str]) -> GridStatus:
    """The status of these cells. `errors` are those of cells that have failed, by the name of the cell."""
    statuses = tuple(_read_cell(directory.run(cell), cell, errors.get(cell.name)) for cell in cells)
    seconds, is_whole = estimate_seconds_left(statuses)
    return GridStatus(path=str(directory.path), cells=statuses, seconds_left=seconds, is_whole=is_whole)


def _read_cell(directory: RunDirectory, cell: Cell, error: str | None) -> CellStatus:
    if not directory.exists:
        return CellStatus(cell=cell, state="failed" if error else "left", error=error)
    try:
        status = read_status(directory.path)
    except UserError as damage:
        return CellStatus(cell=cell, state="failed", error=str(damage))
    state = status.state
    if state == "finished" and compare(directory.config(), cell.config):
        state = "interrupted"  # the grid asks for more, such as more iterations
    if state != "finished" and error:
        state = "failed"
    names = {name: stage for name, stage, _ in _debate_stages(cell)}
    records = {name: read_record(directory.store, stage) for name, stage in names.items()}
    copied = frozenset(name for name, record in records.items() if record is not None and record.copied_from)
    return CellStatus(
        cell=cell,
        state=state,
        error=None if state == "finished" else error or status.error,
        results=tuple(status.results),
        stages=own_stages(cell, status.stages),
        copied=copied,
    )


def estimate_run(config: ExperimentConfig) -> tuple[float | None, bool]:
    """The estimate of `estimate_seconds_left` for a single run, from the files in its directory, if there are any."""
    directory = RunDirectory(config.run_dir)
    cell = Cell(name="", method=config.method, model="", task="", override="", config=config)
    stages = list_stages(directory.store, config) if directory.exists else ()
    return estimate_seconds_left([CellStatus(cell=cell, state="running", stages=own_stages(cell, stages))])


def own_stages(cell: Cell, stages: Sequence[StageStatus]) -> tuple[StageStatus, ...]:
    """The stages that a cell has; an untuned method has no iterations."""
    is_tuned = bool(make_method(cell.method, cell.config).lessons)
    return tuple(stage for stage in stages if is_tuned or not stage.name.startswith("iteration "))


def _debate_stages(cell: Cell) -> list[tuple[str, str, int]]:
    """(name in the progress display, name in the store, maximum number of texts per question) of every debate stage."""
    config = cell.config
    found = []
    for name in config.baselines:
        found.append((f"{name} (untuned)", layout.evaluation(name, 0), _baseline_rules(name, config).samples))
    method = make_method(config.method, config)
    for k in range(1, config.iterations + 1 if method.lessons else 1):
        found.append((f"iteration {k}: debate", layout.debate(k), method.protocol.samples))
        found.append((f"iteration {k}: evaluation", layout.evaluation(method.name, k), method.evaluation.samples))
    return found


def _baseline_rules(name: str, config: ExperimentConfig) -> Protocol:
    """The rules of a baseline. Those of a vote at a budget, which only the run knows, are taken as those of `majority`."""
    if re.fullmatch(BUDGET, name):
        name = "majority"
    return make_method(name, config).evaluation


# The estimate

_Kind = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Work:
    """A stage in units that take about the same time in all stages of one kind."""

    cell: Cell
    name: str
    kind: str  # "debate": a unit is one sampled text. "finetuning": a unit is one example of one epoch.
    units: float
    key: Hashable  # stages with equal keys certainly have equal inputs

    @property
    def kinds(self) -> tuple[_Kind, ...]:
        """The kinds of finished stages from whose speed that of this one is estimated, the most similar kind first."""
        model, task = self.cell.model, self.cell.task
        return (self.kind, model, task), (self.kind, model), (self.kind,)


def estimate_seconds_left(cells: Iterable[CellStatus]) -> tuple[float | None, bool]:
    """(estimated wall time in seconds of the stages that are left, whether all kinds of stages are in it).

    A stage takes as long per sampled text or training example as the finished stages of the same model and task, or,
    where there are none, of the same model, or of the whole grid. Measures of diversity, which take little time, are left
    out. None: no stage is finished.
    """
    measured: dict[_Kind, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])  # kind -> [seconds, units]
    remaining: list[tuple[_Work, float]] = []
    computed: set[Hashable] = set()
    for status in cells:
        stages = {stage.name: stage for stage in status.stages}
        for work in _list_work(status.cell):
            stage = stages.get(work.name)
            share = stage.done / stage.total if stage is not None and stage.total else 0.0
            if stage is not None and stage.is_done:
                computed.add(work.key)
                if work.name not in status.copied:
                    for kind in work.kinds:
                        measured[kind][0] += stage.cost.wall_seconds
                        measured[kind][1] += work.units
            elif status.state != "finished":
                remaining.append((work, 1 - share))
    if not measured:
        return (None, False) if remaining else (0.0, True)
    seconds, is_whole = 0.0, True
    for work, share in remaining:
        if work.key in computed:
            continue
        computed.add(work.key)
        spent, units = next((measured[kind] for kind in work.kinds if kind in measured), (0.0, 0.0))
        is_whole = is_whole and units > 0
        seconds += share * work.units * spent / units if units else 0.0
    return seconds, is_whole


def _list_work(cell: Cell) -> list[_Work]:
    config = cell.config
    method = make_method(config.method, config)
    works = []
    for name, _, samples in _debate_stages(cell):
        is_training = name.endswith(": debate")
        questions = config.task.train_questions if is_training else config.task.eval_questions
        works.append(_Work(cell, name, "debate", questions * samples, _shared_key(cell, name, method)))
    for k in range(1, config.iterations + 1 if method.lessons else 1):
        name = f"iteration {k}: finetuning"
        works.append(_Work(cell, name, "finetuning", _examples(cell, method), (cell.name, name)))
    return works


def _examples(cell: Cell, method: Method) -> float:
    """An upper bound on the number of training examples of an iteration, over all epochs."""
    epochs = sum(lesson.settings.epochs for lesson in method.lessons)
    return cell.config.task.train_questions * epochs * max(1, method.protocol.agents / len(method.lessons))


def _shared_key(cell: Cell, name: str, method: Method) -> Hashable:
    """What two untuned debates must share to have equal inputs; unique for the debates of finetuned agents."""
    config = cell.config
    if name == "iteration 1: debate":
        rules = method.protocol.with_base_for(method.adapters)
    elif name.endswith(" (untuned)"):
        rules = _baseline_rules(name.removesuffix(" (untuned)"), config)
    else:
        return cell.name, name
    sampling = tuple(lasting(config.sampling).items())
    return name == "iteration 1: debate", rules, config.model, config.task, sampling, config.seed
