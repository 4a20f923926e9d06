"""What the page shows of one run, apart from its debates: results, costs, curves, configuration and versions."""

import pathlib
import shlex
from typing import Any

from mft_jax.config import to_yaml
from mft_jax.errors import UserError
from mft_jax.report.page.debates import Debates
from mft_jax.report.page.feedback import feedback_data
from mft_jax.report.page.sources import list_sources
from mft_jax.report.page.work import MessageCost, stage_costs, training_curves
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.results import Result
from mft_jax.runs.status import read_status
from mft_jax.tasks.answers import equivalent

Json = dict[str, Any]


def read_run(path: str | pathlib.Path, name: str, debates: Debates) -> Json:
    """Reads a run, in whatever state it is, and adds its debates to `debates`. `name` is what the page calls it.

    What is damaged is left out and described under "problems". Raises UserError if there is no run.
    """
    status = read_status(path)
    directory = RunDirectory(path)
    config = directory.config()
    problems = list(status.problems)
    cost = MessageCost.of(config)
    sources = list_sources(directory, config)
    stages = [debates.add(source, config, equivalent, cost, problems.append) for source in sources]
    feedback = feedback_data(directory.store, config.task.name, problems.append)
    is_done = bool(status.stages) and all(stage.is_done for stage in status.stages)
    return {
        "name": name,
        "path": str(path),
        "state": "finished" if is_done and status.state == "running" else status.state,  # it is writing this report
        "left": [stage.name for stage in status.stages if not stage.is_done],
        "error": status.error,
        "problems": list(dict.fromkeys(problems)),
        "started": status.started,
        "finished": status.finished,
        "task": config.task.name,
        "model": config.model.path or "the base model of the package",
        "method": config.method,
        "results": [result_row(result) for result in status.results],
        "work": stage_costs(status.stages, config.mesh.devices),
        "feedback": feedback,
        "curves": training_curves(directory.store),
        "stages": [stage for stage in stages if stage is not None],
        "config": to_yaml(config),
        "command": _command(directory),
        **_environment(directory),
    }


def result_row(result: Result) -> Json:
    """A result with "cumulative", the cost of all training up to it and of its evaluation; None without a ledger."""
    return result.to_dict() | {"cumulative": None if result.ledger is None else result.ledger.cumulative.to_dict()}


def _command(directory: RunDirectory) -> str:
    """The command that repeats the run in another directory."""
    again = directory.path.with_name(f"{directory.path.name}-again")
    return shlex.join(["mft", "run", str(directory.config_file), "--run-dir", str(again)])


def _environment(directory: RunDirectory) -> Json:
    """Versions, devices and changed settings, from run.json."""
    try:
        manifest = directory.manifest()
    except UserError:  # `read_status` reports it
        return {"starts": [], "changes": []}
    return {"starts": manifest["starts"], "changes": manifest["changes"]}
