"""The output of `mft bench`."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mft_jax.bench.measurement import Measurement, Report
from mft_jax.report.table import NOT_MEASURED, percent, short_count
from mft_jax.report.text import literal


def render_bench(report: Report, before: Report | None = None) -> RenderableType:
    """The limits, a table of the measurements, ratios and shares. With `before`, also the speed relative to it."""
    limits = report.limits
    head = (
        f"Limits: a large matmul {short_rate(limits.flops_per_second)}FLOP/s, "
        f"memory {short_rate(limits.bytes_per_second)}B/s."
    )
    parts: list[RenderableType] = [literal(head), _measurements_table(report, before)]
    parts += [literal(f"{name}: {ratio:.2f}") for name, ratio in report.ratios.items()]
    return Group(*parts, *_debate_lines(report), *_other_lines(report))


def render_measurement(own: Measurement) -> Text:
    """One line, for a measurement that has just been made."""
    rate, share = short_rate(own.tokens_per_second).strip(), percent(own.share_of_roofline)
    return literal(f"  {own.name}: {rate} tokens/s, {share} of the limit")


def short_rate(rate: float) -> str:
    """Formats a rate with its prefix, for a unit to follow: 157 G, 3.70 G."""
    return short_count(rate) if rate >= 1000 else f"{rate:.3g} "


def _measurements_table(report: Report, before: Report | None) -> Table:
    """Tokens per second of every measurement, its share of the matmul peak and of the roofline."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("case")
    for name in ("tokens/s", "seconds", "of the peak", "of the limit"):
        table.add_column(name, justify="right", no_wrap=True)
    earlier = {} if before is None else {(own.name, own.case): own for own in before.measurements}
    if before is not None:
        table.add_column("speed", justify="right", no_wrap=True)
    for own in report.measurements:
        cells = [short_rate(own.tokens_per_second).strip(), f"{own.seconds:.3g}"]
        cells += [percent(own.share_of_peak), percent(own.share_of_roofline)]
        if before is not None:
            old = earlier.get((own.name, own.case))
            ratio = NOT_MEASURED if old is None else f"x {own.tokens_per_second / old.tokens_per_second:.2f}"
            cells.append(ratio)
        table.add_row(literal(own.name), literal(own.case), *cells)
    return table


def _debate_lines(report: Report) -> list[Text]:
    debate = report.debate
    return [
        literal(
            f"A debate on {debate['questions']:.0f} questions: {debate['seconds']:.3g} s, "
            f"{short_rate(debate['new_tokens_per_second']).strip()} new tokens/s; {percent(debate['time_in_programs'])} of "
            f"the time in compiled programs, {percent(debate['live_slots'])} of the slots live, "
            f"{percent(debate['prefilled_tokens_without_padding'])} of the prefilled tokens no padding, "
            f"{percent(debate['prompt_tokens_read'])} of the prompts' tokens read (what prompts share is read once)."
        )
    ]


def _other_lines(report: Report) -> list[Text]:
    programs = ", ".join(f"{count} {name}" for name, count in report.compilations.items() if count)
    return [
        literal(f"Grading: {report.grading['pairs_per_second']:.3g} pairs of formulas per second in one process."),
        literal(f"Compiled in {report.compile_seconds:.3g} s: {programs}."),
        literal(f"Peak memory: {short_rate(report.peak_memory_bytes)}B."),
    ]
