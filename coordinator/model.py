"""What travels between the coordinator's stages: arrays over VMs, resources and buckets, and the small records around them.

Axes: v = VM (order of `vm_ids`), r = resource (order of shared.units.RESOURCES), b = 5-minute bucket (oldest first),
s = step ahead (0 = the bucket being filled now, which starts at `issued_s`), q = quantile level (order of LEVELS).
Unknown is NaN. Units are those of RESOURCES.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.model import Allocation, Domain, HostCapacity, Mode
from shared.plan import Step
from shared.refusal import RefusalCode
from shared.units import BUCKET_S, HORIZON_STEPS, RESOURCES

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]

LEVELS: Final = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99)
N_RESOURCES: Final = len(RESOURCES)
SIGNALS: Final = ("requests_per_s", "queue_length")  # what applications may tell of their own load, see `signals`


@dataclass(frozen=True, kw_only=True)
class BucketBlock:
    """One closed 5-minute bucket of some VMs (all arrays [v, r]). `mean` and `peak` are demand, de-censored.

    `peak` is the largest 5-second demand in the bucket; `usage` the plain mean of what was used; `censored` the share of
    samples that ran into a limit; `allocation` the mean limit in force (NaN = unlimited or unknown).
    """

    start_s: int
    vm_ids: tuple[str, ...]
    host_ids: tuple[str, ...]  # where each VM was at the bucket's end
    mean: F64
    peak: F64
    usage: F64
    censored: F64
    allocation: F64
    samples: NDArray[np.int64]  # [v]
    signals: F64 | None = None  # [v, signal] means of what the applications told, in the order of SIGNALS; None = nobody told anything

    @classmethod
    def unlimited(
        cls, start_s: int, vm_ids: tuple[str, ...], mean: F64, peak: F64 | None = None, signals: F64 | None = None
    ) -> BucketBlock:
        """A bucket of VMs on one host that nothing limits: what they want is what they use. `peak` None: no higher than the mean."""
        return cls(
            start_s=start_s,
            vm_ids=vm_ids,
            host_ids=("host",) * len(vm_ids),
            mean=mean,
            peak=mean if peak is None else peak,
            usage=mean,
            censored=np.zeros_like(mean),
            allocation=np.full_like(mean, np.nan),
            samples=np.full(len(vm_ids), BUCKET_S // 5),
            signals=signals,
        )

    def select(self, rows: Sequence[int]) -> BucketBlock:
        """The same bucket with only the VMs of these rows, in this order."""
        index = list(rows)
        arrays = {name: getattr(self, name)[index] for name in ("mean", "peak", "usage", "censored", "allocation", "samples")}
        signals = None if self.signals is None else self.signals[index]
        hosts = tuple(self.host_ids[i] for i in index)
        return replace(self, vm_ids=tuple(self.vm_ids[i] for i in index), host_ids=hosts, signals=signals, **arrays)


@dataclass(frozen=True, kw_only=True)
class HistoryBlock:
    """Demand history of some VMs up to and including bucket `end_s`. Arrays float32[v, r, b]; NaN where a bucket is missing.

    `capacity` float32[v, r]: the most the VM could ever be given (domain maximum); bounds every forecast.
    """

    vm_ids: tuple[str, ...]
    end_s: int  # start of the newest bucket in the arrays
    mean: F32
    peak: F32
    censored: F32
    capacity: F32
    signals: F32 | None = None  # [v, signal, b] as BucketBlock.signals

    def select(self, rows: Sequence[int]) -> HistoryBlock:
        """The same history with only the VMs of these rows, in this order."""
        index = list(rows)
        arrays = {name: getattr(self, name)[index] for name in ("mean", "peak", "censored", "capacity")}
        signals = None if self.signals is None else self.signals[index]
        return replace(self, vm_ids=tuple(self.vm_ids[i] for i in index), signals=signals, **arrays)


class NoForecast(IntEnum):
    """Why a series has no model of its own (0 = it has one)."""

    OK = 0
    COLD_START = 1  # too few buckets: class or last-value prior, wide
    ALL_UNKNOWN = 2  # not one reading
    GAP = 3  # newest bucket missing for too long
    OUT_OF_CALIBRATION = 4  # coverage of late is off: the VM drops to reactive


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Half-hour blocks ahead of `issued_s`, a half hour of UTC: block k (from 0) is [issued_s + 1800 k, issued_s + 1800 (k + 1)).

    quantiles float32[v, r, 12, q] of the block's mean, peak_quantiles of the largest 5-second demand within it (not cumulative), both
    monotone in level and inside [0, capacity]; NaN throughout a (VM, resource) of which too little is known.
    """

    issued_s: int
    vm_ids: tuple[str, ...]
    quantiles: F32
    peak_quantiles: F32
    coverage: F32  # [v, r] realised coverage of the central 80 % band of the mean of late, before it is held; NaN = not known yet
    levels: tuple[float, ...] = LEVELS

    def select(self, vm_ids: tuple[str, ...], rows: NDArray[np.int64]) -> Outlook:
        """These rows, which are the VMs `vm_ids`."""
        arrays = {name: getattr(self, name)[rows] for name in ("quantiles", "peak_quantiles", "coverage")}
        return replace(self, vm_ids=vm_ids, **arrays)


@dataclass(frozen=True, kw_only=True)
class ForecastBlock:
    """Forecasts issued at `issued_s`, the end of the newest closed bucket. Step k (from 0) is the bucket that starts at issued_s + 300 * k.

    mean, stddev float32[v, r, 12]; quantiles float32[v, r, 12, q] of the bucket mean; peak_quantiles float32[v, r, 12, q]
    of the largest 5-second demand within steps 0..s (cumulative). Quantiles are monotone and inside [0, capacity].
    """

    issued_s: int
    vm_ids: tuple[str, ...]
    mean: F32
    stddev: F32
    quantiles: F32
    peak_quantiles: F32
    model: I8  # [v, r] index into `models`: the member with the largest weight
    models: tuple[str, ...]
    reason: I8  # [v, r] NoForecast
    coverage: F32  # [v, r] realised coverage of the central 80 % band of late; NaN = not known yet
    levels: tuple[float, ...] = LEVELS
    outlook: Outlook | None = None  # six hours ahead, of the same VMs; only where a new one was issued, see coordinator/forecast/outlook

    def select(self, vm_ids: tuple[str, ...], rows: NDArray[np.int64]) -> ForecastBlock:
        """These rows, which are the VMs `vm_ids`, without an outlook."""
        if vm_ids == self.vm_ids:
            return self
        names = ("mean", "stddev", "quantiles", "peak_quantiles", "model", "reason", "coverage")
        return replace(self, vm_ids=vm_ids, outlook=None, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True, kw_only=True)
class LeverTurns:
    """How often a lever turned from growing to shrinking, as outcomes told it."""

    turning: bool = False  # its last change was a growth: a shrink would be a turn
    ago_s: tuple[float, ...] = ()  # seconds since each turn, oldest first
    refused_s: float = math.inf  # since the host last refused one more


@dataclass(frozen=True, kw_only=True)
class VmState:
    """What the decision cycle knows of one VM now. Floats [r]; NaN unknown."""

    domain: Domain
    host_id: str
    allocation: Allocation
    demand_now: F64  # mean demand of the newest bucket
    peak_now: F64  # largest 5-second demand in the newest bucket
    censored_now: F64
    working_set_bytes: float  # largest guest-reported need of late; NaN = no fresh reading
    since_grow_s: float = 1e9  # since the last verified growth, any resource
    pressured: bool = False  # memory or swap pressure in the newest bucket
    turns: tuple[LeverTurns, ...] = (LeverTurns(),) * N_RESOURCES  # [r]
    recent_peak: tuple[float, ...] = (math.nan,) * N_RESOURCES  # [r] largest 5-second demand of the last hour's buckets
    since_start_s: float = 1e9  # since it was seen to start
    since_move_s: float = 1e9  # since it was first seen on this host, coming from another
    dirty_bytes_per_s: float = math.nan  # newest measured dirty rate; NaN = never measured


@dataclass(frozen=True, kw_only=True)
class HostState:
    """One host as the cycle sees it. A silent host counts as full: nothing is planned for it or moved to it."""

    host_id: str
    capacity: HostCapacity
    mode: Mode
    alive: bool
    cpu_overhead_millicores: float = 0.0
    io_pressure: float = math.nan  # share of time in which tasks of the host waited for disks, of late
    vms: tuple[VmState, ...] = ()
    paused: bool = False  # its kill switch is on: nothing on it is changed


@dataclass(frozen=True, kw_only=True)
class VmSize:
    """What one VM should get, per resource [r]: the target, the range in which nothing is done, and how it came about."""

    vm_id: str
    host_id: str
    target: F64  # NaN = leave alone
    lower: F64  # act only when the allocation is below `lower` or above `upper`
    upper: F64
    trail: tuple[str, ...] = ()  # one line per step of the stack: "cpu quantile .95 of peak in 2 steps = 1830"
    clipped: tuple[str, ...] = ()  # resources whose target was cut by the host's capacity
    shadow_price: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Move:
    """A migration that the placement advises. Costs and gains share one unit (see coordinator/placement)."""

    vm_id: str
    from_host: str
    to_host: str
    gain: float
    cost: float
    why: str


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Result of one shard's solve."""

    shard: int
    moves: tuple[Move, ...]
    objective: float
    incumbent: float
    bound: float
    status: str  # "optimal", "feasible", "no_beneficial_move", "no_solution"
    wall_ms: float


@dataclass(frozen=True, kw_only=True)
class PoolEnergy:
    """Energy of one pool of hosts over the coming hour. Budgets of a day are spread evenly over its hours."""

    pool: str
    hosts: int
    kwh_before: float
    kwh_after: float
    budget_kwh: float | None
    hard: bool
    price_before: float  # money of the pool's hosts over the hour: energy and price
    price_after: float


@dataclass(frozen=True, kw_only=True)
class FleetPlacement:
    """What placement decided for the whole fleet. Money over the hour that the forecast speaks of.

    status: "optimal" (proven), "feasible", "no_beneficial_move", or "hold" (everything stays, `code` and `detail` say why).
    before, after: money by cause (coordinator/placement/cost.py; energy_budget beside them); after.moves is what the moves cost.
    """

    issued_s: int
    status: str
    code: RefusalCode | None = None
    detail: str = ""
    moves: tuple[Move, ...] = ()
    wake: tuple[str, ...] = ()  # hosts that sleep now and get VMs
    empty: tuple[str, ...] = ()  # hosts that the moves leave without VMs
    sleep: tuple[str, ...] = ()  # hosts without VMs once all moves are made that may be put to sleep
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    saving: float = 0.0  # before less after, moves included
    bound: float | None = None  # no assignment costs less; None = not known
    gap: float | None = None  # (after - bound) / after
    hosts_before: int = 0  # with VMs
    hosts_after: int = 0
    energy: tuple[PoolEnergy, ...] = ()
    notes: tuple[str, ...] = ()  # what the operator should know of the inputs
    left_out: dict[str, str] = field(default_factory=dict)  # host -> why it is not part of it
    engine: str = ""
    seed: int = 0
    effort: float = 1.0
    cut: bool = False  # the deadline ended the search: another run may differ
    digest: str = ""  # of the problem that was solved; the same digest, seed and effort give the same moves unless `cut`
    wall_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Why a VM got (or would have got) what it got; stored as JSON, enough to recompute the decision."""

    id: str
    vm_id: str
    host_id: str
    issued_s: int
    shadow: bool  # observe mode: nothing was sent to act
    steps: tuple[Step, ...]
    inputs: dict[str, object]
    trail: tuple[str, ...]
    refused: tuple[str, ...]  # "code: detail" of alternatives that were not taken


assert HORIZON_STEPS == 12
