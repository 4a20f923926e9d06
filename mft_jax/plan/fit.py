"""`mft plan --fit`: searches rows, mesh, agents at once and remat for the fastest configuration that fits.

Only settings that do not change the results of a run are searched.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jax.sharding import Mesh

from mft_jax.config import ExperimentConfig, MeshConfig, to_dict
from mft_jax.errors import UserError
from mft_jax.methods import Method, make_method
from mft_jax.metrics.flops import matmul_parameters
from mft_jax.models.config import ModelConfig
from mft_jax.models.lora import resolve_targets
from mft_jax.parallel import hosts
from mft_jax.parallel.hosts import decide
from mft_jax.parallel.mesh import make_mesh, split_cpu
from mft_jax.plan import layers
from mft_jax.plan.compiled import DoesNotFit
from mft_jax.plan.estimate import Clock
from mft_jax.plan.figures import bytes_on_device
from mft_jax.plan.lengths import Lengths, assumed_lengths
from mft_jax.plan.memory import phases_of
from mft_jax.plan.models import read_model
from mft_jax.plan.plan import Plan, make_plan, sizes_of
from mft_jax.plan.rough import Rough, Shares
from mft_jax.plan.target import Target, devices_to_compare, meshes
from mft_jax.plan.workload import stages_of
from mft_jax.programs import abstract
from mft_jax.session import dtypes

ROWS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
COMPILED = 5  # at most this many configurations, the best by rough figures first
MARGIN = 0.95  # share of the memory that rough figures may need


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration, and the rough estimate of its run in seconds."""

    config: ExperimentConfig
    seconds: float


def fit_plan(
    config: ExperimentConfig,
    target: Target,
    *,
    lengths: Lengths | None = None,
    few_layers: tuple[int, int] = layers.FEW,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """The plan of the fastest configuration that fits. The arguments are those of `make_plan`.

    All configurations are compared by rough figures; the best are compiled one after another until one fits. Raises
    UserError if none does.
    """
    lengths = lengths or assumed_lengths(config)
    found = candidates(config, target, lengths)
    for candidate in found[:COMPILED]:
        say(f"for {' '.join(changes(config, candidate.config)) or 'the given settings'}")
        try:
            plan = make_plan(candidate.config, target, lengths=lengths, few_layers=few_layers, say=say)
        except DoesNotFit:
            continue
        if plan.fits:
            return plan
    raise UserError(
        f"No setting of rows, mesh, agents at once and remat fits {target.name}: use a slice with more chips or memory, a "
        "smaller sampling.max_new_tokens or finetuning.row_tokens, or fewer agents."
    )


def candidates(config: ExperimentConfig, target: Target, lengths: Lengths) -> list[Candidate]:
    """All configurations that fit by rough figures, the fastest first."""
    model, stored = read_model(config.model)
    lora = dataclasses.replace(config.lora, targets=resolve_targets(model, config.lora.targets))
    config = dataclasses.replace(config, lora=lora)
    method, found = make_method(config.method, config), []
    for mesh in possible_meshes(config, model, len(target.devices)):
        placed = make_mesh(mesh, target.devices)
        rough = _rough(config, model, stored, placed, target)
        for own in _settings(config, mesh, method):
            seconds = _seconds(own, method, placed, rough, target, lengths)
            if seconds is not None:
                found.append(Candidate(own, seconds))
    return sorted(found, key=lambda own: own.seconds)


def changes(before: ExperimentConfig, after: ExperimentConfig) -> list[str]:
    """The options of the command that change `before` into `after`."""
    options = []
    for part in ("sampling", "finetuning", "mesh"):
        old, new = to_dict(before)[part], to_dict(after)[part]
        for name, value in new.items():
            if value != old[name]:
                flag = f"{part}.{name}".replace("_", "-")
                switch = f"--{part}.{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{flag} {value}"
                options.append(switch)
    return options


def possible_meshes(config: ExperimentConfig, model: ModelConfig, devices: int) -> Iterator[MeshConfig]:
    """All meshes of these devices that divide the agents, the rows of a batch, and the heads."""
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    for agent, data in itertools.product(sizes, sizes):
        split, rest = divmod(devices, agent * data)
        divides = not rest and split and model.heads % split == 0
        if divides and config.debate.agents % agent == 0 and config.finetuning.batch_rows % data == 0:
            yield MeshConfig(agent=agent, data=data, model=split)


def choose_mesh(config: ExperimentConfig, target: Target | None = None) -> ExperimentConfig:
    """With `mesh.auto`, the configuration with the fastest mesh of the target that fits, by rough figures.

    Without it, or with an axis that is set to more than 1, the configuration with the axes that it has. The target is by
    default the present devices; a CPU counts as the devices that `split_cpu` gives it, unless JAX has counted its devices
    before. Only meshes that divide the agents, rows and heads are compared: those of all devices, or, if there are none, of
    fewer present devices on one host. On several hosts, all must call this. Raises UserError if no mesh fits.
    """
    if target is None:
        split_cpu(config.mesh)  # here, because a run counts the devices before it opens its session
    if not config.mesh.is_open:
        return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, auto=False))
    some = target is None and hosts.count() == 1
    return dataclasses.replace(config, mesh=decide(lambda: _fastest_mesh(config, target or devices_to_compare(), some)))


def _fastest_mesh(config: ExperimentConfig, target: Target, some: bool) -> MeshConfig:
    """`some`: whether the mesh may leave devices out."""
    count = len(target.devices)
    model, stored = read_model(config.model)
    lora = dataclasses.replace(config.lora, targets=resolve_targets(model, config.lora.targets))
    config = dataclasses.replace(config, lora=lora)
    method, lengths = make_method(config.method, config), assumed_lengths(config)
    for devices in range(count, 0, -1) if some else [count]:
        seconds = {}
        for mesh in meshes(config, model, devices):
            placed = make_mesh(mesh, target.devices)
            own, rough = dataclasses.replace(config, mesh=mesh), _rough(config, model, stored, placed, target)
            seconds[mesh] = _seconds(own, method, placed, rough, target, lengths)
        fitting = {mesh: time for mesh, time in seconds.items() if time is not None}
        if fitting:
            return min(fitting, key=lambda mesh: fitting[mesh])
        if seconds:
            break
    raise UserError(
        f"mesh.auto: no mesh of the {count} devices that divides the agents, rows and heads fits their memory: give smaller "
        "sampling.rows, finetuning.agents_at_once or finetuning.batch_rows, or the axes of a mesh."
    )


def _settings(config: ExperimentConfig, mesh: MeshConfig, method: Method) -> Iterator[ExperimentConfig]:
    """The configuration with this mesh, and all settings of rows, agents at once and remat."""
    sampling, tuning = config.sampling, config.finetuning
    prefill = -(-sampling.prefill_rows // mesh.data) * mesh.data
    own = len(method.lessons) // mesh.agent if len(method.lessons) % mesh.agent == 0 else len(method.lessons)
    rows = sorted({*ROWS, sampling.rows})
    at_once: list[int | None] = [size for size in range(1, own) if own % size == 0] + [None]
    for count, size, remat in itertools.product(rows, at_once, (False, True)):
        if count % mesh.data == 0 and count <= -(-sampling.chunk_questions // mesh.data) * mesh.data:
            yield dataclasses.replace(
                config,
                mesh=mesh,
                sampling=dataclasses.replace(sampling, rows=count, prefill_rows=min(prefill, count)),
                finetuning=dataclasses.replace(tuning, agents_at_once=size, remat=remat),
            )
        if not method.lessons:
            break


def _rough(config: ExperimentConfig, model: ModelConfig, stored: jnp.dtype, placed: Mesh, target: Target) -> Rough:
    """Rough figures on a mesh: what each device holds follows from the shardings of a run."""
    agent, data, split = (placed.shape[axis] for axis in ("agent", "data", "model"))
    weights, compute = dtypes(config.model, placed)
    agents = config.debate.agents
    stack = lambda dtype: abstract.abstract_adapters(model, config.lora, placed, agents, dtype)
    slots = abstract.abstract_slots(
        model, placed, agents=agent, rows=data, columns=128, new_tokens=16, dtype=compute.name
    )
    shares = Shares(
        weights=bytes_on_device(abstract.abstract_base(model, placed, weights or stored)),
        adapter=bytes_on_device(stack(None)) / (agents / agent),
        lane=bytes_on_device(stack(compute.name)) / (agents / agent),
        row=bytes_on_device((slots.keys, slots.values)) / 128,
        agent=agent,
        data=data,
        model=split,
    )
    return Rough(model, matmul_parameters(model), shares, target.speeds)


def _seconds(
    config: ExperimentConfig, method: Method, placed: Mesh, rough: Rough, target: Target, lengths: Lengths
) -> float | None:
    """The rough time of a run; None if it does not fit."""
    sizes = sizes_of(config, method, lengths, placed)
    decode = rough.decode(sizes.lanes, sizes.rows, sizes.columns)
    prefill = rough.prefill(sizes.lanes, sizes.rows, sizes.columns, sizes.prefill_rows, sizes.prompt_tokens)
    train = rough.train(len(method.lessons), config.finetuning, sizes.row_targets) if method.lessons else None
    phases = phases_of(method, decode, prefill, train, sizes.lanes, MARGIN * target.memory)
    if not all(phase.fits for phase in phases):
        return None
    clock = Clock(config, lengths, sizes, target.speeds, decode, prefill, train)
    return sum(clock.stage(stage).seconds for stage in stages_of(config, lengths))
