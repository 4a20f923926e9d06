"""A grid of runs: methods x models x tasks x overrides x seeds over shared settings, read from a YAML file.

    run_dir: runs/agents          # the directory of the grid; each cell is a run in a directory below it
    sampling: {max_new_tokens: 96}
    grid:
      methods: [debate, multiagent_ft]
      tasks: [arithmetic, addition]             # or {name: {settings}}
      models: {small: {}, large: {model: {path: DIR}, mesh: {data: 2}}}
      overrides: {plain: {}, agents_5: {methods: [multiagent_ft], debate: {agents: 5}}}
      seeds: [0, 1, 2]

`methods` must be given. The `baselines`, none by default, are evaluated in the cells of all finetuned methods. A cell
has the shared settings, replaced by those of its model, its task and its override, in this order. An override may be
limited to some methods.
"""

import dataclasses
import difflib
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from mft_jax.config.build import check_fields, from_dict, to_dict
from mft_jax.config.fields import ExperimentConfig
from mft_jax.config.yaml_file import GRID, read_yaml
from mft_jax.errors import UserError

AXES = ("methods", "models", "tasks", "overrides", "seeds")
_SET_BY_AXIS = {"method": "methods", "seed": "seeds"}
_SEEDS = 2**32  # seeds that are equal modulo this number give the same new adapters
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


@dataclasses.dataclass(frozen=True)
class Variation:
    """One value of an axis, with the settings that it sets. Its label is "" if the grid does not have the axis."""

    label: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    methods: tuple[str, ...] | None = None  # the methods that an override is limited to; None: all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a grid."""

    name: str  # of its directory
    method: str
    # The labels of its model, task and override; "" if the grid does not have the axis.
    model: str
    task: str
    override: str
    config: ExperimentConfig

    @property
    def setting(self) -> str:
        """The labels without the seed: equal for cells that differ only in their seed."""
        return "-".join(label for label in (self.method, self.model, self.task, self.override) if label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The axes of a grid, and the settings that its cells share."""

    source: str  # the file, for error messages
    shared: ExperimentConfig  # its run_dir is the directory of the grid
    methods: tuple[str, ...]
    models: tuple[Variation, ...] = (Variation(),)
    tasks: tuple[Variation, ...] = (Variation(),)
    overrides: tuple[Variation, ...] = (Variation(),)
    seeds: tuple[int, ...] | None = None  # None: the shared seed

    def with_shared(self, shared: ExperimentConfig) -> "Grid":
        """The grid with other shared settings. Raises UserError if one is given that the axes determine."""
        for name in ["method"] + ["seed"] * (self.seeds is not None):
            if getattr(shared, name) != getattr(ExperimentConfig(), name):
                raise UserError(
                    f"{self.source} is a grid, whose grid.{_SET_BY_AXIS[name]} determine {name}: leave {name} out."
                )
        return dataclasses.replace(self, shared=shared)

    def cells(self) -> tuple[Cell, ...]:
        """All cells, in the order in which they are run: those of one model together, then those of one task.

        Raises UserError for a cell whose settings are invalid together, and for two cells with equal names or settings.
        """
        cells = tuple(self._make_cells())
        names: dict[str, Cell] = {}
        settings: dict[ExperimentConfig, Cell] = {}
        for cell in cells:
            if cell.name in names:
                raise UserError(f"{self.source}: two cells are named {cell.name}: change a label.")
            names[cell.name] = cell
            bare = dataclasses.replace(cell.config, run_dir="")
            if bare in settings:
                raise UserError(
                    f"{self.source}: the cells {settings[bare].name} and {cell.name} have equal settings: remove one of "
                    "the two."
                )
            settings[bare] = cell
        return cells

    def _make_cells(self) -> Iterator[Cell]:
        seeds = (self.shared.seed,) if self.seeds is None else self.seeds
        product = itertools.product(self.models, self.tasks, self.overrides, seeds, self.methods)
        for model, task, override, seed, method in product:
            if override.methods is not None and method not in override.methods:
                continue
            labels = [method.replace(":", "."), model.label, task.label, override.label]
            labels += [f"seed_{seed}"] if self.seeds is not None else []
            name = "-".join(label for label in labels if label)
            settings = to_dict(self.shared)
            for variation in (model, task, override):
                settings = _merge(settings, variation.settings)
            settings |= {"method": method, "seed": seed}
            settings["run_dir"] = _join(self.shared.run_dir, name)
            config = from_dict(settings, f"{self.source}, cell {name}")
            yield Cell(
                name=name, method=method, model=model.label, task=task.label, override=override.label, config=config
            )


def _join(run_dir: str, name: str) -> str:
    """The directory of a cell. pathlib would make one slash of the two in a URL."""
    return f"{run_dir.rstrip('/')}/{name}" if "://" in run_dir else str(pathlib.Path(run_dir) / name)


def load_grid(path: str | pathlib.Path) -> Grid | None:
    """Reads the grid in a YAML file; None if the file has no field `grid`, and so is the configuration of one run.

    Raises UserError, which names the file and the axis or field, if the file cannot be read or its grid is invalid.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict) or GRID not in raw:
        return None
    source, shared, axes = str(path), {k: v for k, v in raw.items() if k != GRID}, raw[GRID]
    if not isinstance(axes, dict):
        _refuse(source, "grid", axes, f"a mapping with {', '.join(AXES)}")
    for name in axes:
        if name not in AXES:
            near = difflib.get_close_matches(str(name), AXES, n=1, cutoff=0.0)[0]
            raise UserError(f"{source}: there is no grid.{name}; did you mean grid.{near}?")
    methods = tuple(_names(axes.get("methods", []), source, "grid.methods", "method"))
    grid = Grid(
        source=source,
        shared=from_dict({"baselines": []} | shared, source),
        methods=methods,
        models=_variations(axes, "models", source, lambda name: {"model": {"path": name}}),
        tasks=_variations(axes, "tasks", source, lambda name: {"task": {"name": name}}),
        overrides=_overrides(axes, source, methods),
        seeds=_seeds(axes["seeds"], source) if "seeds" in axes else None,
    )
    return grid.with_shared(grid.shared)


def _variations(axes: Mapping[str, Any], axis: str, source: str, shorthand: Any) -> tuple[Variation, ...]:
    """The values of an axis: a mapping {label: settings}, or a list of names.

    `shorthand(name)` are the settings that a name stands for. A label in a mapping of tasks stands for that task too,
    unless its settings name another one.
    """
    if axis not in axes:
        return (Variation(),)
    value, where = axes[axis], f"grid.{axis}"
    if isinstance(value, dict):
        found = [(label, _settings(settings, source, f"{where}.{label}")) for label, settings in value.items()]
        if axis == "tasks":
            found = [(label, _merge(shorthand(label), settings)) for label, settings in found]
    else:
        names = _names(value, source, where, axis[:-1])
        found = [(name.rstrip("/").rsplit("/", 1)[-1], shorthand(name)) for name in names]
    if not found:
        _refuse(source, where, value, f"at least one {axis[:-1]}")
    for label, settings in found:
        _check_variation(label, settings, source, where)
    if len({label for label, _ in found}) < len(found):
        labels = [label for label, _ in found]
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(f"{source}: {where} has two values with the label {twice!r}: give {{label: settings}}.")
    return tuple(Variation(label, settings) for label, settings in found)


def _overrides(axes: Mapping[str, Any], source: str, methods: Sequence[str]) -> tuple[Variation, ...]:
    if "overrides" not in axes:
        return (Variation(),)
    value = axes["overrides"]
    if not isinstance(value, dict) or not value:
        _refuse(source, "grid.overrides", value, "a mapping {label: settings} with at least one label")
    found = []
    for label, given in value.items():
        where = f"grid.overrides.{label}"
        settings = _settings(given, source, where)
        only = settings.pop("methods", None)
        if only is not None:
            only = tuple(_names(only, source, f"{where}.methods", "method"))
            for name in only:
                if name not in methods:
                    near = difflib.get_close_matches(name, methods, n=1, cutoff=0.0)[0]
                    raise UserError(f"{source}: {where}.methods has {name!r}; did you mean {near!r} of grid.methods?")
        _check_variation(label, settings, source, "grid.overrides")
        found.append(Variation(label, settings, only))
    return tuple(found)


def _settings(value: Any, source: str, where: str) -> dict[str, Any]:
    """The settings of a label. YAML reads a label without a value as None: it has no settings."""
    if value is None:
        return {}
    return dict(value) if isinstance(value, dict) else _refuse(source, where, value, "a mapping of settings")


def _check_variation(label: Any, settings: Mapping[str, Any], source: str, where: str) -> None:
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        _refuse(source, f"a label in {where}", label, "letters, digits and any of _ . @ + -, as in a file name")
    for name in ("run_dir", *_SET_BY_AXIS):
        if name in settings:
            remedy = f"use grid.{_SET_BY_AXIS[name]}" if name in _SET_BY_AXIS else "give it once, outside of grid"
            raise UserError(f"{source}: {where}.{label} sets {name}: {remedy}.")
    check_fields(dict(settings), f"{source}: {where}.{label}")


def _seeds(value: Any, source: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        _refuse(source, "grid.seeds", value, "a list of at least one integer")
    for seed in value:
        check_fields({"seed": seed}, f"{source}: grid.seeds")
    for first, second in itertools.combinations(value, 2):
        if (first - second) % _SEEDS == 0:
            reason = "twice" if first == second else f"and {second}, which give the same new adapters (modulo 2**32)"
            raise UserError(f"{source}: grid.seeds has {first} {reason}: replace one of the two.")
    return tuple(value)


def _names(value: Any, source: str, where: str, thing: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        _refuse(source, where, value, f"a list of at least one {thing}")
    for name in value:
        if value.count(name) > 1:
            raise UserError(f"{source}: {where} has {name!r} twice: remove one of the two.")
    return value


def _merge(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with the values of `over` in their place; sections are merged."""
    merged = dict(settings)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _refuse(source: str, where: str, got: Any, expected: str) -> NoReturn:
    raise UserError(f"{source}: {where} is {str(got)[:80]!r}, expected {expected}.")
