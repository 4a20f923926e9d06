"""What a plan is for: devices, their speeds, their memory and their price."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from mft_jax.config import ExperimentConfig, MeshConfig
from mft_jax.errors import UserError
from mft_jax.models.config import ModelConfig
from mft_jax.parallel.mesh import make_mesh
from mft_jax.plan.chips import CHIPS, SPOT_SHARE
from mft_jax.plan.counting import Speeds
from mft_jax.plan.topology import HERE, find_slice, slice_devices


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices that a run may use, all of one kind."""

    name: str
    devices: Sequence[Any]
    speeds: Speeds  # of one device
    memory: float  # bytes of one device
    on_demand: float  # dollars for a device and hour; 0: not known
    spot: float
    is_listed: bool = True  # the price is from the table of prices, not from the user


def find_target(topology: str, price: float | None = None) -> Target:
    """The target with this name. `price` replaces the price on demand, in dollars for a chip and hour.

    Raises UserError for a topology that does not exist, and if the TPU compiler is missing.
    """
    if topology == HERE:
        return _present_devices(price or 0.0)
    chosen = find_slice(topology)
    chip = chosen.chip
    prices = (chip.on_demand, chip.spot) if price is None else (price, SPOT_SHARE * price)
    return Target(topology, slice_devices(chosen), chip.speeds, chip.memory, *prices, price is None)


def _present_devices(price: float) -> Target:
    """The present devices, with speeds that are measured now."""
    from mft_jax.bench.device import measure_limits

    devices = jax.devices()
    limits = measure_limits(make_mesh(MeshConfig(), devices), "float32" if devices[0].platform == "cpu" else "bfloat16")
    share = 1 / len(devices) if devices[0].platform == "cpu" else 1.0  # devices of a CPU share its cores and memory
    bandwidth = share * limits.bytes_per_second
    speeds = Speeds(
        flops=share * limits.flops_per_second, memory_bytes=bandwidth, link_bytes=bandwidth, cycles=1e9, hop_seconds=0.0
    )
    return Target(HERE, devices, speeds, _present_memory(devices), price, SPOT_SHARE * price, is_listed=False)


def devices_to_compare() -> Target:
    """The present devices, with speeds that are good enough to compare meshes, and the same whenever they are asked for.

    Those of TPUs are from the table. Of others only the ratios mean something.
    """
    devices = jax.devices()
    chip = next((own for own in CHIPS if own.kind == devices[0].device_kind), None)
    if chip is not None:
        return Target(HERE, devices, chip.speeds, chip.memory, 0.0, 0.0, is_listed=False)
    link = 4e11 if devices[0].platform == "gpu" else 2e12  # devices of a CPU share its memory
    speeds = Speeds(flops=5e14, memory_bytes=2e12, link_bytes=link, cycles=1e9, hop_seconds=1e-6)
    return Target(HERE, devices, speeds, _present_memory(devices), 0.0, 0.0, is_listed=False)


def _present_memory(devices: Sequence[Any]) -> float:
    """The bytes of one of the present devices. Those of a CPU share its memory."""
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    stats = devices[0].memory_stats()
    return stats["bytes_limit"] if stats else math.inf


def check_mesh(config: ExperimentConfig, model: ModelConfig, target: Target) -> None:
    """Raises UserError if the mesh has another number of devices than the slice, or splits a head."""
    mesh, count = config.mesh, len(target.devices)
    size = mesh.agent * mesh.data * mesh.model
    shape = f"mesh {mesh.agent}x{mesh.data}x{mesh.model} (agent x data x model)"
    if size != count and target.name != HERE:
        raise UserError(
            f"The {shape} has {size} devices, but {target.name} has {count} chips, which are all paid for: choose axes whose "
            f"product is {count}, such as {' or '.join(fitting_meshes(config, model, count)) or 'those of another slice'}."
        )
    if model.heads % mesh.model:
        raise UserError(
            f"The {shape} splits the weights over {mesh.model} devices, but the model has {model.heads} attention heads: "
            f"choose a mesh.model that divides {model.heads}."
        )


def fitting_meshes(config: ExperimentConfig, model: ModelConfig, count: int) -> list[str]:
    """The options of up to three meshes of `count` devices that divide agents, rows and heads."""
    return [
        f"--mesh.agent {own.agent} --mesh.data {own.data} --mesh.model {own.model}"
        for own in meshes(config, model, count)
    ][:3]


def meshes(config: ExperimentConfig, model: ModelConfig, count: int) -> list[MeshConfig]:
    """All meshes of `count` devices that divide agents, rows and heads, those with the largest model axis first."""
    found = []
    rows = math.gcd(config.sampling.rows, config.sampling.prefill_rows, config.finetuning.batch_rows)
    for split in sorted((own for own in range(1, count + 1) if count % own == 0), reverse=True):
        for agent in (own for own in range(1, count // split + 1) if count // split % own == 0):
            data = count // split // agent
            if model.heads % split == 0 and config.debate.agents % agent == 0 and rows % data == 0:
                found.append(MeshConfig(agent=agent, data=data, model=split))
    return found
