"""What `mft plan` does with its options."""

import json
from collections.abc import Callable

from rich.console import Group, RenderableType

from mft_jax.config import ExperimentConfig
from mft_jax.parallel.mesh import split_cpu
from mft_jax.plan.against import as_dict, compare, render_differences
from mft_jax.plan.fit import changes, choose_mesh, fit_plan
from mft_jax.plan.lengths import measured_lengths
from mft_jax.plan.plan import make_plan
from mft_jax.plan.table import plan_as_dict, render_plan
from mft_jax.plan.target import find_target
from mft_jax.plan.topology import HERE
from mft_jax.report.text import literal
from mft_jax.runs.directory import RunDirectory


def run_plan(
    config: ExperimentConfig,
    topology: str,
    *,
    fit: bool,
    against: str | None,
    lengths_from: str | None,
    price: float | None,
    few_layers: tuple[int, int],
    say: Callable[[str], None],
) -> tuple[str, RenderableType]:
    """Makes the plan. Returns it as JSON, and as what a person reads. The arguments are the options of the command.

    With `against`, the configuration is that of the run there. Raises UserError as `make_plan` and `fit_plan` do.
    """
    directory = None if against is None else RunDirectory(against)
    config = config if directory is None else directory.config()
    lengths = measured_lengths(lengths_from) if lengths_from else None
    if topology == HERE:
        split_cpu(config.mesh)
    target = find_target(topology, price)
    config = choose_mesh(config, target)
    make = fit_plan if fit else make_plan
    made = make(config, target, lengths=lengths, few_layers=few_layers, say=say)
    values, parts = plan_as_dict(made), [render_plan(made)]
    if fit:
        values["options"] = found = changes(config, made.config)
        fastest = f"The fastest settings that fit: {' '.join(found)}"
        parts.append(literal(fastest if found else "The given settings are the fastest that fit."))
    if directory is not None:
        differences = compare(made, directory)
        values["against"] = [as_dict(own) for own in differences]
        parts.append(render_differences(differences))
    return json.dumps(values, indent=2), Group(*parts)
