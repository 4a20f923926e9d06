"""`mft bench`: all measurements of one configuration, on the present devices."""

import statistics
import time
from collections.abc import Callable, Sequence

from mft_jax.bench.device import measure_limits
from mft_jax.bench.dialogues import measure_debate, measure_finetuning, measure_scoring
from mft_jax.bench.measurement import Measurement, Report
from mft_jax.bench.sampling import measure_sampling
from mft_jax.config import ExperimentConfig, to_dict, validate
from mft_jax.errors import UserError
from mft_jax.methods import make_method
from mft_jax.parallel.memory import peak_memory
from mft_jax.runs.environment import environment
from mft_jax.session import Session
from mft_jax.setup import prepare
from mft_jax.tasks import grader
from mft_jax.tasks.answers import CPU_SECONDS

# Pairs of formulas, most of them different, as in the answers of competition mathematics. N becomes another number each
# time, because a grading process remembers formulas that it has read.
FORMULAS = (
    (r"\frac{3}{N}", r"\frac{N}{3}"),
    (r"2\sqrt{N}", r"3\sqrt{N}"),
    (r"x^2-Nx+1", r"x^2-Nx-1"),
    (r"(x-N)^2", r"x^2-2\cdot Nx+N^2"),
    (r"\frac{\pi}{N}", r"\frac{2\pi}{N}"),
    (r"\{1,2,N\}", r"\{N,1,4\}"),
    (r"[0,N)", r"[0,N]"),
    (r"\frac{1+\sqrt{N}}{2}", r"\frac{1-\sqrt{N}}{2}"),
    (r"x\ge N", r"x>N"),
    (r"\sin(Nx)\cos(Nx)", r"\frac{\sin(2\cdot Nx)}{2}"),
)


def run_bench(
    config: ExperimentConfig,
    *,
    repeats: int = 3,
    say: Callable[[str], None] = lambda text: None,
    show: Callable[[Measurement], None] = lambda found: None,
    session: Session | None = None,
) -> Report:
    """Measures everything and returns the report. Keeps nothing that it trains, and writes nothing.

    Times are medians of `repeats` runs after a warm-up that compiles. `say` is called with the name of what is measured,
    `show` with each measurement as soon as it is made.
    Raises UserError for a configuration that cannot be run, and for a method without adapters.
    """
    _check(config, repeats)
    setup = prepare(config, session)
    session, society = setup.session, setup.fresh_society()
    rows, agents = setup.sampling.rows, config.debate.agents
    speakers = tuple(dict.fromkeys(name for name in setup.method.protocol.speakers[0] if name is not None))
    say("the limits of the devices")
    limits = measure_limits(session.mesh, session.programs.dtype)
    measurements: list[Measurement] = []

    def keep(found: Sequence[Measurement]) -> None:
        measurements.extend(found)
        for own in found:
            show(own)

    def sample(speakers: Sequence[str | None], rows: int, case: str) -> None:
        say(f"sampling: {case}")
        keep(measure_sampling(setup, society, speakers, rows, limits, repeats, case))

    alone = f"1 adapter x {rows} rows"
    together = f"{len(speakers)} adapters x {rows} rows" if len(speakers) > 1 else alone
    base = f"base model, {agents * rows} rows"
    sample(speakers, rows, together)
    sample((None,) * agents, rows, base)
    if alone != together:
        sample(speakers[:1], rows, alone)
    say("a debate")
    debate, transcripts = measure_debate(setup, society, repeats)
    say("finetuning")
    keep(measure_finetuning(setup, society, transcripts, limits, repeats))
    say("scoring")
    keep(measure_scoring(setup, society, transcripts, limits, repeats))
    say("grading")
    return Report(
        config=to_dict(config),
        environment=environment(),
        limits=limits,
        measurements=tuple(measurements),
        ratios=ratios_of(measurements, together, base, alone),
        debate=debate,
        grading=measure_grading(repeats),
        compilations=session.programs.compilations,
        compile_seconds=session.programs.compile_seconds,
        peak_memory_bytes=peak_memory(session.mesh),
    )


def _check(config: ExperimentConfig, repeats: int) -> None:
    validate(config)
    if repeats < 1:
        raise UserError(f"repeats is {repeats}, expected at least 1.")
    if not make_method(config.method, config).lessons:
        raise UserError(
            f"The method {config.method} finetunes no adapters: choose one that does, such as multiagent_ft."
        )


def ratios_of(measurements: Sequence[Measurement], together: str, base: str, alone: str) -> dict[str, float]:
    """Ratios of tokens per second, by name."""
    rate = {(own.name, own.case): own.tokens_per_second for own in measurements}
    pairs = {
        "sampling: all adapters together to one at a time": (("sample", together), ("sample", alone)),
        "sampling: with adapters to without": (("sample", together), ("sample", base)),
    }
    finetuning = [(own.name, own.case) for own in measurements if own.name == "finetune"]
    if len(finetuning) == 2:
        pairs["finetuning: all adapters in one step to one at a time"] = (finetuning[0], finetuning[1])
    return {name: rate[above] / rate[below] for name, (above, below) in pairs.items()}


def measure_grading(repeats: int) -> dict[str, float]:
    """Pairs of formulas per second, in one process."""
    grader.same_formula("x", "x+1", CPU_SECONDS)  # starts the process
    rates = []
    for number in range(repeats):
        pairs = [[formula.replace("N", str(11 + 6 * number)) for formula in pair] for pair in FORMULAS]
        started = time.perf_counter()
        for a, b in pairs:
            grader.same_formula(a, b, CPU_SECONDS)
        rates.append(len(pairs) / (time.perf_counter() - started))
    return {"pairs_per_second": statistics.median(rates)}
