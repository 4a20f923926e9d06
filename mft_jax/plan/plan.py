"""`mft plan`: whether a configuration fits some devices, how long a run takes on them, and what it costs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from mft_jax.config import ExperimentConfig, validate
from mft_jax.methods import Method, make_method, with_own_evaluation
from mft_jax.models.config import ModelConfig
from mft_jax.models.decoder import scans_layers
from mft_jax.models.lora import resolve_targets
from mft_jax.parallel.mesh import make_mesh
from mft_jax.plan import layers
from mft_jax.plan.cases import CACHE, Cases, Sizes
from mft_jax.plan.compiled import DoesNotFit
from mft_jax.plan.estimate import Clock, StageEstimate
from mft_jax.plan.figures import TEMPORARIES, Case, Figures, measure
from mft_jax.plan.lengths import Lengths, assumed_lengths
from mft_jax.plan.memory import Phase, advice, phases_of
from mft_jax.plan.models import read_model
from mft_jax.plan.target import Target, check_mesh
from mft_jax.plan.workload import (
    all_texts,
    baseline_rules,
    cache_columns,
    longest_prompt,
    padded_prompt,
    row_targets,
    stages_of,
)
from mft_jax.setup import limit_slots


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """One program on one device."""

    name: str
    case: str  # its shapes, in words
    tokens: int  # that one run of it (of `decode` one step) processes or samples, over all devices
    seconds: float  # estimated, of the same
    bound: str  # what takes most of the time: compute, memory or links
    figures: Figures

    def tokens_per_second(self, devices: int) -> float:
        """Tokens per second and device."""
        return self.tokens / self.seconds / devices


@dataclasses.dataclass(frozen=True)
class Plan:
    """The result of `mft plan`. All times are estimates."""

    config: ExperimentConfig
    target: Target
    layers: tuple[int, ...]  # the numbers of layers that were compiled, of programs that do not scan them
    scans_layers: bool  # whether all programs but `decode` scan the layers; they are compiled with all layers
    lengths: Lengths
    programs: tuple[ProgramPlan, ...]
    phases: tuple[Phase, ...]
    extreme: Phase  # sampling if every text reached sampling.max_new_tokens: the most that a run can need
    advice: dict[str, str]  # for each phase that does not fit: what to change
    stages: tuple[StageEstimate, ...]
    compile_seconds: float  # of all programs of a run, as on the machine that made the plan

    @property
    def fits(self) -> bool:
        return all(phase.fits for phase in self.phases)

    @property
    def seconds(self) -> float:
        """Of all stages in compiled programs."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def device_hours(self) -> float:
        return len(self.target.devices) * (self.seconds + self.compile_seconds) / 3600


def make_plan(
    config: ExperimentConfig,
    target: Target,
    *,
    lengths: Lengths | None = None,
    few_layers: tuple[int, int] = layers.FEW,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Compiles the programs of a configuration for the target, from shapes alone, and estimates a run.

    `lengths` are those of the texts (default: assumed for the task). `few_layers` are the numbers of layers that are
    compiled of a deep model, except in programs that scan them. `say` is called with the name of what is compiled. Raises
    UserError for a configuration that cannot run on the target. One that does not fit its memory gives a plan that says so,
    or raises DoesNotFit if the compiler refuses a program.
    """
    validate(config)
    config = with_own_evaluation(config)
    model, stored = read_model(config.model)
    check_mesh(config, model, target)
    config = dataclasses.replace(
        config, lora=dataclasses.replace(config.lora, targets=resolve_targets(model, config.lora.targets))
    )
    lengths, method = lengths or assumed_lengths(config), make_method(config.method, config)
    mesh = make_mesh(config.mesh, target.devices)
    sizes = sizes_of(config, method, lengths, mesh)
    cases = Cases(config, method, mesh, stored, sizes)
    scans = scans_layers(model, mesh)
    figures = functools.partial(_figures, model=model, target=target, say=say)
    few_of_others = None if scans else few_layers
    decode = figures("decode", cases.decode, few_layers=few_layers)
    prefill = figures("prefill", cases.prefill, few_layers=few_of_others)
    train = figures("train", cases.train, few_layers=few_of_others) if method.lessons else None
    stages = stages_of(config, lengths)
    clock = Clock(config, lengths, sizes, target.speeds, decode, prefill, train)
    phases = phases_of(method, decode, prefill, train, sizes.lanes, target.memory)
    return Plan(
        config=config,
        target=target,
        layers=layers.compiled_layers(model, few_layers),
        scans_layers=scans,
        lengths=lengths,
        programs=tuple(_programs(config, target, sizes, method, decode, prefill, train)),
        phases=tuple(phases),
        extreme=_extreme(phases[0], config, method, lengths, sizes.columns),
        advice={
            own.name: advice(own, config, sizes.rows, model.heads % (2 * config.mesh.model) == 0)
            for own in phases
            if not own.fits
        },
        stages=tuple(clock.stage(stage) for stage in stages),
        compile_seconds=_compile_seconds(config, lengths, decode, prefill, train),
    )


def _figures(
    name: str,
    make: Callable[[ModelConfig], Case],
    *,
    model: ModelConfig,
    target: Target,
    few_layers: tuple[int, int] | None,
    say: Callable[[str], None],
) -> Figures:
    """The figures of one program, compiled with a few layers of a deep model; `few_layers` None: with all of them."""

    def measured(model: ModelConfig) -> Figures:
        say(f"{name}, {model.layers} layers")
        try:
            return measure(make(model), target.speeds, target.name)
        except DoesNotFit as error:
            raise DoesNotFit(error.needed, error.available, f"{name} with {model.layers} layers") from error

    return measured(model) if few_layers is None else layers.of_all_layers(model, measured, few_layers)


def sizes_of(config: ExperimentConfig, method: Method, lengths: Lengths, mesh: Mesh) -> Sizes:
    """The sizes of the programs for texts of these lengths: those of the longest texts that are expected."""
    rules, agent = config.debate, mesh.shape["agent"]
    texts = list(all_texts(stages_of(config, lengths)))
    speakers = max(rules.agents, max(own.speakers for own in texts))
    limited = limit_slots(config.sampling, max(config.task.train_questions, config.task.eval_questions), mesh)
    longest = max(own.prompt for own in texts)
    return Sizes(
        lanes=-(-speakers // agent) * agent,
        rows=limited.rows,
        prefill_rows=limited.prefill_rows,
        columns=cache_columns(lengths.longest_prompt * longest, config),
        prompt_tokens=padded_prompt(longest),
        row_targets=row_targets(config, method, lengths) if method.lessons else 0,
    )


def _extreme(phase: Phase, config: ExperimentConfig, method: Method, lengths: Lengths, columns: int) -> Phase:
    """The memory of sampling if every text reached its limit. The cache and the temporaries grow with its columns."""
    rules = [method.protocol, *(own for _, own in baseline_rules(config, lengths))]
    longest = max(longest_prompt(own, lengths, config.sampling.max_new_tokens) for own in rules)
    growth = max(1.0, cache_columns(longest, config) / columns)
    grown = {kind: size * growth if kind in (CACHE, TEMPORARIES) else size for kind, size in phase.kinds.items()}
    return dataclasses.replace(phase, kinds=grown)


def _programs(
    config: ExperimentConfig,
    target: Target,
    sizes: Sizes,
    method: Method,
    decode: Figures,
    prefill: Figures,
    train: Figures | None,
) -> Iterator[ProgramPlan]:
    tuning, tokens = config.finetuning, sizes.lanes * sizes.prefill_rows * sizes.prompt_tokens
    rows = sizes.lanes * sizes.rows
    found = [
        ("prefill", f"{sizes.lanes} x {sizes.prefill_rows} prompts of {sizes.prompt_tokens} tokens", tokens, prefill),
        ("decode", f"{sizes.lanes} x {sizes.rows} rows, {sizes.columns} columns", rows, decode),
    ]
    if train is not None:
        count = len(method.lessons)
        tokens = count * tuning.batch_rows * tuning.row_tokens
        found.append(("train", f"{count} x {tuning.batch_rows} rows of {tuning.row_tokens} tokens", tokens, train))
    for name, case, tokens, figures in found:
        counts = figures.counts
        yield ProgramPlan(name, case, tokens, counts.step_seconds(target.speeds), counts.bound(target.speeds), figures)


def _compile_seconds(
    config: ExperimentConfig, lengths: Lengths, decode: Figures, prefill: Figures, train: Figures | None
) -> float:
    """The time to compile what a run needs: a prefill and a decode for each length, with adapters and without, and train."""
    texts = list(all_texts(stages_of(config, lengths)))
    prompts = {(own.adapted, padded_prompt(own.prompt)) for own in texts}
    caches = {(own.adapted, cache_columns(lengths.longest_prompt * own.prompt, config)) for own in texts}
    total = len(prompts) * prefill.compile_seconds + len(caches) * decode.compile_seconds
    return total + (train.compile_seconds if train else 0.0)
