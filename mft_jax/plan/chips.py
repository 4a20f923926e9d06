"""Dated tables of what Cloud TPU chips can do and cost, and of the slices that can be rented."""

import dataclasses

from mft_jax.plan.counting import Speeds

AS_OF = "2026-11"  # when the prices were last looked up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip. FLOPs and bandwidths are those of Google's documentation of each version (cloud.google.com/tpu/docs).

    The memory is what the compiler leaves to a program. The bandwidth of links is that to both neighbours along one axis
    of the chips. `cycles` is the clock rate at which the matrix units reach the peak FLOPs.
    """

    name: str
    kind: str  # as JAX names it
    speeds: Speeds
    memory: int  # bytes
    on_demand: float  # dollars for a chip and hour
    slices: dict[int, str]  # chips -> the arrangement as the compiler names it
    name_counts: int = 1  # what a chip adds to the number in the name of a slice: 1 if it counts chips, 2 if cores

    @property
    def spot(self) -> float:
        """Dollars for a chip and hour that can be taken away: an assumption, since the price changes from day to day."""
        return SPOT_SHARE * self.on_demand


SPOT_SHARE = 0.5  # of the price on demand
_GIB = 1 << 30
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_DEEP = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_HOP = 1e-6  # seconds from a chip to its neighbour

CHIPS = (
    Chip(
        name="v5e", kind="TPU v5 lite", memory=int(15.75 * _GIB), on_demand=1.20, slices=_FLAT,
        speeds=Speeds(flops=197e12, memory_bytes=819e9, link_bytes=90e9, cycles=1.5e9, hop_seconds=_HOP),
    ),
    Chip(
        name="v5p", kind="TPU v5", memory=int(95.74 * _GIB), on_demand=4.20, slices=_DEEP, name_counts=2,
        speeds=Speeds(flops=459e12, memory_bytes=2765e9, link_bytes=180e9, cycles=1.75e9, hop_seconds=_HOP),
    ),
    Chip(
        name="v6e", kind="TPU v6 lite", memory=int(31.25 * _GIB), on_demand=2.70, slices=_FLAT,
        speeds=Speeds(flops=918e12, memory_bytes=1640e9, link_bytes=180e9, cycles=1.75e9, hop_seconds=_HOP),
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice as it is rented: `count` chips of one kind."""

    name: str
    chip: Chip
    count: int


SLICES = {
    name: Slice(name, chip, count)
    for chip in CHIPS
    for count in chip.slices
    for name in (f"{chip.name}-{count * chip.name_counts}",)
}
