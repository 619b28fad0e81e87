"""Every knob of sizing in one frozen record, checked once.

Tuples by priority run LOW, NORMAL, HIGH, CRITICAL; tuples by resource follow shared.units.RESOURCES (CPU, memory, disk, net rx, net tx).
Invariant: quantiles never fall and trigger multipliers never rise with priority, so that a higher priority never gets less for the
same forecast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from shared.errors import ConfigError
from shared.plan import StepKind
from shared.units import HORIZON_STEPS, KIB, MBIT, MIB

ByPriority = tuple[float, float, float, float]
ByResource = tuple[float, float, float, float, float]
Steps = tuple[int, int, int, int, int]

LEAD_S: Final[Mapping[StepKind, float]] = {
    StepKind.VCPUS: 15.0,  # QMP device_add, then the guest brings the CPU online
    StepKind.CPU_QUOTA: 1.0,
    StepKind.CPU_SHARES: 1.0,
    StepKind.MEMORY: 60.0,  # the balloon moves in small steps, and growth may wait for somebody else's shrink
    StepKind.NET_RX: 1.0,
    StepKind.NET_TX: 1.0,
    StepKind.NET_TX_RATE: 1.0,
    StepKind.VCPUS_ONLINE: 5.0,  # the guest's agent answers within a second or not at all
    StepKind.VIRTIO_MEM: 60.0,  # as the balloon: it grows in the guard's strides
    StepKind.MEMORY_HIGH: 1.0,
    StepKind.DISK_BYTES: 1.0,
    StepKind.DISK_OPS: 1.0,
    StepKind.DISK_WEIGHT: 1.0,
}


@dataclass(frozen=True, kw_only=True)
class SizingPolicy:
    """How demand becomes a size. Shares and quantiles in 0..1, times in seconds; the defaults are what the demo runs.

    Raises ConfigError naming the field when a value is out of its range.
    """

    confidence_multiplier: ByPriority = (1.0, 0.5, 0.0, -1.0)  # trigger: mean > allocation + k * stddev
    price: ByResource = (30.0, 30.0, 0.0, 30.0, 30.0)  # of the host's whole capacity, in VMs short per cycle; 0 = fixed quantiles instead
    priority_weight: ByPriority = (0.7, 1.0, 1.4, 2.0)  # how much a VM's shortage counts against the price
    reserve_share: float = 0.10  # of the host's limit that priced sizes leave free, for growth under pressure between two cycles
    wait_reserve: float = 0.10  # of the host's limit: with less than this left, shrinks that wait for a turn that lasts wait no longer
    climb_from: float = 0.25  # share of samples at a limit in the newest bucket from which on a VM's demand counts as hidden ...
    climb: float = 4.0  # ... and it is lent so many times what it holds, of free room
    size_quantile: ByPriority = (0.90, 0.95, 0.975, 0.99)  # where the price is 0
    lower_quantile: ByPriority = (0.75, 0.90, 0.95, 0.975)  # an allocation under this quantile is acted on without a trigger
    quantile_offset: ByResource = (0.0, 0.0, 0.0, 0.0, 0.0)  # added to both quantiles, per resource
    steps: Steps = (2, 2, 12, 2, 2)  # size = peak within so many 5-minute steps (slow levers look further)
    margin: ByResource = (
        0.0,
        0.0,
        0.5,
        0.0,
        0.0,
    )  # on top of the quantile; a limited disk hides its demand
    upper_slack: ByResource = (0.10, 0.10, 0.10, 0.10, 0.10)  # shrink only when the allocation is so far above the target
    dead_band: ByResource = (0.02, 0.02, 0.02, 0.02, 0.02)  # growth smaller than this share of the target waits
    turn_band: ByResource = (0.10, 0.02, 0.02, 0.02, 0.02)  # the same for a lever that shrank last: once it grows, a shrink costs a turn
    shrink_evidence: Steps = (1, 1, 12, 1, 1)  # cycles in a row whose targets must all lie below; the shrink goes to their maximum
    recent_margin: float = 0.25  # out of calibration: on top of the largest peak ...
    recent_cycles: int = 2  # ... of so many buckets
    max_shrink: ByResource = (0.5, 0.15, 0.5, 0.5, 0.5)  # largest share of the allocation given up in one cycle
    memory_stride: float = 0.05  # a balloon shrinks in steps of this share of what is in force (the guard's own limit) ...
    memory_spacing_s: float = 65.0  # ... so far apart
    turns: int = 2  # from growing to shrinking that hosts allow a lever within the window: the guard's own defaults (a test compares them)
    turn_window_s: float = 21_600.0
    turn_waits: tuple[bool, bool, bool, bool, bool] = (False, False, False, True, True)  # a turn of these waits for the host's need
    turn_quantile: float = 0.75  # of the peak within the hour that a turning shrink leaves: of four turns, three should last
    shrink_cooldown_s: float = 60.0  # no shrink so soon after a growth of any resource; the host has its own pause per lever
    censored_threshold: float = 0.10  # share of samples at a limit in the newest bucket above which a VM is not shrunk
    working_set_margin: float = 0.03  # the guard keeps its own, larger one over the newest use
    floor: ByResource = (100.0, 64.0 * MIB, 16.0 * MIB, 1.0 * MBIT, 1.0 * MBIT)  # for VMs whose policy sets none
    granule: ByResource = (10.0, 4.0 * MIB, 64.0 * KIB, 100_000.0, 100_000.0)  # sizes are whole multiples
    penalty: ByPriority = (0.5, 1.0, 2.0, 8.0)  # money a minute of a VM that lacks all it wants of a resource; a tenth costs a tenth
    critical_pool: ByResource = (0.0, 0.0, 0.0, 0.0, 0.0)  # share of the host's limit that is the critical VMs', where there are any
    spare_share: float = 0.0  # share of the room left that is handed out beyond the targets
    burn_full: float = 4.0  # error-budget burn rate at which the quantile reaches the top level (it starts to rise at 1)
    cycle_s: float = 300.0
    lead_s: Mapping[StepKind, float] = field(default_factory=lambda: dict(LEAD_S))  # where nothing was measured
    early_s: ByResource = (180.0, 300.0, 180.0, 180.0, 180.0)  # growth ends so long before its bucket: ramps begin in the one before
    margin_z: float = 1.5  # deviations of a host's sum that count as its load, as in placement
    client_rho: float = 0.3  # correlation within a client's VMs on one host, where the sums themselves are not forecast
    spare_hosts: int = 0  # 1: growth leaves so much free on every host that any one of its pool may fail
    contended_at: float = 0.90  # host margin over physical CPU (or uplink, for guarantees) from which on weights follow priority
    boot_boost: ByResource = (
        0.5,
        0.0,
        0.5,
        0.25,
        0.25,
    )  # share on top of the size while a VM boots
    boot_boost_s: float = 600.0
    move_boost: ByResource = (0.25, 0.0, 0.25, 0.25, 0.25)  # and after a migration, which ends with cold caches and a backlog
    move_boost_s: float = 300.0
    disk_weights: tuple[int, int, int, int] = (50, 100, 200, 400)  # by priority, while tasks of the host wait for disks
    disk_contended_at: float = 0.20  # share of time in which they do, from which on weights follow priority
    shares: tuple[int, int, int, int] = (512, 1024, 2048, 4096)  # cgroup v1 CPU shares by priority

    def __post_init__(self) -> None:
        within("size_quantile", self.size_quantile, 0.5, 1.0)
        within("lower_quantile", self.lower_quantile, 0.0, 1.0)
        within("confidence_multiplier", self.confidence_multiplier, -10.0, 10.0)
        within("quantile_offset", self.quantile_offset, -0.5, 0.5)
        within("price", self.price, 0.0, 1e6)
        within("priority_weight", self.priority_weight, 0.001, 1000.0)
        within("steps", self.steps, 1, HORIZON_STEPS)
        within("shrink_evidence", self.shrink_evidence, 1, 2016)  # at most a week
        within("disk_weights", self.disk_weights, 1, 1000)
        within("disk_contended_at", (self.disk_contended_at,), 0.0, 1.0)
        for name in ("boot_boost", "move_boost"):
            within(name, getattr(self, name), 0.0, 10.0)
        for name in ("boot_boost_s", "move_boost_s"):
            within(name, (getattr(self, name),), 0.0, 86_400.0)
        within("shares", self.shares, 2, 262_144)
        within("granule", self.granule, 1.0, 2.0**40)
        within("floor", self.floor, 0.0, 2.0**53)
        for name in ("margin", "upper_slack", "dead_band", "turn_band"):
            within(name, getattr(self, name), 0.0, 10.0)
        within("recent_margin", (self.recent_margin,), 0.0, 10.0)
        within("recent_cycles", (self.recent_cycles,), 1, 2016)
        within("max_shrink", self.max_shrink, 0.0, 1.0)
        within("early_s", self.early_s, 0.0, 3600.0)
        within("penalty", self.penalty, 1e-9, 1e9)
        within("critical_pool", self.critical_pool, 0.0, 1.0)
        within("memory_stride", (self.memory_stride,), 0.001, 1.0)
        within("memory_spacing_s", (self.memory_spacing_s,), 0.0, 3600.0)
        for name in ("spare_share", "censored_threshold", "reserve_share", "wait_reserve", "climb_from"):
            within(name, (getattr(self, name),), 0.0, 1.0)
        within("climb", (self.climb,), 1.0, 100.0)
        within("working_set_margin", (self.working_set_margin,), 0.0, 10.0)
        within("turns", (self.turns,), 0, 1000)
        within("turn_window_s", (self.turn_window_s,), 60.0, 604_800.0)
        within("turn_quantile", (self.turn_quantile,), 0.0, 1.0)
        within("shrink_cooldown_s", (self.shrink_cooldown_s,), 0.0, 86_400.0)
        within("cycle_s", (self.cycle_s,), 1.0, 3600.0)
        within("burn_full", (self.burn_full,), 1.001, 1000.0)
        within("margin_z", (self.margin_z,), 0.0, 10.0)
        within("client_rho", (self.client_rho,), 0.0, 1.0)
        within("spare_hosts", (self.spare_hosts,), 0, 1)
        within("contended_at", (self.contended_at,), 0.0, 10.0)
        ordered("size_quantile", self.size_quantile)
        ordered("lower_quantile", self.lower_quantile)
        ordered("priority_weight", self.priority_weight)
        ordered("penalty", self.penalty)
        ordered("confidence_multiplier", tuple(-k for k in self.confidence_multiplier))
        if any(low > size for low, size in zip(self.lower_quantile, self.size_quantile, strict=True)):
            raise ConfigError(f"sizing.lower_quantile {self.lower_quantile!r}: each must be <= size_quantile {self.size_quantile!r}")


def within(name: str, values: tuple[float, ...], low: float, high: float) -> None:
    """Raise ConfigError unless every value is a number in [low, high]."""
    for value in values:
        if not (math.isfinite(value) and low <= value <= high):
            raise ConfigError(f"sizing.{name} = {value!r}: allowed {low:g} to {high:g}")


def ordered(name: str, values: tuple[float, ...]) -> None:
    """Raise ConfigError unless the values by priority favour the higher priority."""
    if any(low > high for low, high in pairwise(values)):
        raise ConfigError(f"sizing.{name}: must not favour a lower priority over a higher one")
