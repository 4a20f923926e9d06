"""The output of `mft plan`: for people, and as JSON."""

import dataclasses
import re
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from mft_jax.config import to_dict
from mft_jax.plan.chips import AS_OF
from mft_jax.plan.plan import Plan
from mft_jax.report.table import NOT_MEASURED, percent, short_count
from mft_jax.report.text import literal


def render_plan(plan: Plan) -> RenderableType:
    """The memory of a device, the programs, the stages of a run, and its price."""
    count = len(plan.target.devices)
    mesh = plan.config.mesh
    devices = "1 device" if count == 1 else f"{count} devices"
    head = (
        f"A plan for {plan.target.name}: {devices}, mesh {mesh.agent} x {mesh.data} x {mesh.model} (agent x data x model). "
        "All times and prices are estimates."
    )
    parts: list[RenderableType] = [literal(head), _memory_table(plan)]
    parts += [literal(line) for line in memory_lines(plan)]
    parts += [_program_table(plan), literal(layers_line(plan)), _stage_table(plan)]
    return Group(*parts, literal(f"Lengths of texts: {plan.lengths.source}."), *map(literal, price_lines(plan)))


def memory_lines(plan: Plan) -> list[str]:
    """For each phase whether it fits, and if not, by how much and what to change."""
    lines = []
    for phase in plan.phases:
        left = (phase.available - phase.needed) / 1e9
        if phase.fits:
            lines.append(f"{phase.name} fits: {left:.1f} GB of {phase.available / 1e9:.1f} GB are left.")
        else:
            lines.append(f"{phase.name} DOES NOT FIT: {-left:.1f} GB too much. Change: {plan.advice[phase.name]}.")
    over = (plan.extreme.needed - plan.extreme.available) / 1e9
    if plan.phases[0].fits and over > 0:
        lines.append(
            f"If every text reached sampling.max_new_tokens, sampling would need {over:.1f} GB more than there are."
        )
    return lines


def layers_line(plan: Plan) -> str:
    if len(plan.layers) == 1:
        return f"Compiled with all {plan.layers[0]} layers."
    few, more = plan.layers
    what = "decode compiled" if plan.scans_layers else "Compiled"
    rest = " The other programs are compiled with all layers." if plan.scans_layers else ""
    return f"{what} with {few} and {more} layers; the others are counted from the difference between these.{rest}"


def price_lines(plan: Plan) -> list[str]:
    """The hours of a run, the device-hours, and what they cost."""
    target, hours = plan.target, (plan.seconds + plan.compile_seconds) / 3600
    lines = [
        f"A run: {plan.seconds / 3600:.2f} h in compiled programs and {plan.compile_seconds / 3600:.2f} h to compile them (as "
        f"on this machine; a second start reads them from the cache), {hours:.2f} h together: {plan.device_hours:.1f} "
        "device-hours. Grading, loading and saving come on top."
    ]
    if target.on_demand:
        source, advice = (
            (f"as of {AS_OF}", "; give --price for today's in your region") if target.is_listed else ("as given", "")
        )
        lines.append(
            f"Price: {plan.device_hours * target.on_demand:,.2f} dollars on demand ({target.on_demand:.2f} for a chip and "
            f"hour, {source}), about {plan.device_hours * target.spot:,.2f} as spot (assumed at {target.spot:.2f}){advice}."
        )
    return lines


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, for other programs. Sizes are in bytes, times in seconds, prices in dollars."""
    target = plan.target
    return {
        "topology": target.name,
        "devices": len(target.devices),
        "prices_as_of": AS_OF if target.is_listed else None,
        "dollars_per_device_hour": {"on_demand": target.on_demand, "spot": target.spot},
        "config": to_dict(plan.config),
        "compiled_layers": list(plan.layers),
        "lengths": dataclasses.asdict(plan.lengths),
        "fits": plan.fits,
        "memory": {
            own.name: {"kinds": dict(own.kinds), "needed": own.needed, "available": own.available, "fits": own.fits}
            for own in plan.phases
        },
        "most_needed_in_sampling": plan.extreme.needed,
        "advice": plan.advice,
        "programs": {own.name: _program_as_dict(own, len(target.devices)) for own in plan.programs},
        "stages": [dataclasses.asdict(stage) for stage in plan.stages],
        "estimate": {
            "seconds": plan.seconds,
            "compile_seconds": plan.compile_seconds,
            "device_hours": plan.device_hours,
            "dollars_on_demand": plan.device_hours * target.on_demand,
            "dollars_spot": plan.device_hours * target.spot,
        },
    }


def _program_as_dict(own: Any, devices: int) -> dict[str, Any]:
    counts = own.figures.counts
    return {
        "case": own.case,
        "tokens": own.tokens,
        "seconds": own.seconds,
        "tokens_per_second_and_device": own.tokens_per_second(devices),
        "bound": own.bound,
        "compile_seconds": own.figures.compile_seconds,
        "memory": dict(own.figures.memory),
        **dataclasses.asdict(counts),
    }


def _memory_table(plan: Plan) -> Table:
    """One row for each kind of memory, one column for each phase."""
    table = _table("GB of a device's memory")
    for phase in plan.phases:
        table.add_column(phase.name, justify="right", no_wrap=True)
    kinds = list(dict.fromkeys(kind for phase in plan.phases for kind in phase.kinds))
    size = lambda bytes_: f"{bytes_ / 1e9:.2f}" if bytes_ else NOT_MEASURED
    for kind in kinds:
        table.add_row(kind, *(size(phase.kinds.get(kind, 0)) for phase in plan.phases))
    table.add_row("needed", *(size(phase.needed) for phase in plan.phases))
    table.add_row("available", *(size(phase.available) for phase in plan.phases))
    return table


def _program_table(plan: Plan) -> Table:
    table = _table("program")
    for name in ("ms", "tokens/s\n/device", "bound", "FLOPs", "HBM\nbytes", "sent\nbytes", "share\nof peak"):
        table.add_column(name, justify="right", no_wrap=True)
    speeds = plan.target.speeds
    for own in plan.programs:
        counts = own.figures.counts
        cells = [f"{1e3 * own.seconds:.3g}", f"{own.tokens_per_second(len(plan.target.devices)):,.0f}", own.bound]
        cells += [short_count(counts.flops), short_count(counts.bytes), short_count(sum(counts.sent.values()))]
        cells.append(percent(counts.flops / speeds.flops / own.seconds))
        table.add_row(literal(own.name), *cells)
    return table


def _stage_table(plan: Plan) -> Table:
    """One row for each stage; the iterations, which are all alike, are added up."""
    table = _table("stage")
    for name in ("prompt\ntokens", "new\ntokens", "trained\ntokens", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    sums: dict[str, list[float]] = {}
    for stage in plan.stages:
        name = re.sub(r"^iteration \d+: (.*)", rf"{plan.config.iterations} x \1", stage.name)
        own = (stage.prompt_tokens, stage.new_tokens, stage.train_tokens, stage.seconds)
        sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * 4), own, strict=True)]
    for name, (*tokens, seconds) in sums.items():
        counts = (short_count(round(count)) if count else NOT_MEASURED for count in tokens)
        table.add_row(literal(name), *counts, f"{seconds / 3600:.2f}")
    return table


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    return table
