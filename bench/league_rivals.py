"""The rivals of bench/league: what others' rules would do with the same samples, levers, guard and lead times.

- VpaRule: the recommender of Kubernetes' vertical pod autoscaler (kubernetes/autoscaler, vertical-pod-autoscaler/pkg/recommender):
  decaying histograms with buckets that grow by 5 %, a percentile of them and a margin; memory by the peaks of whole intervals; a reading
  at the limit counts 20 % higher (its answer to an out-of-memory kill). Its updater restarts a pod at most now and then; here it changes
  the limit in place, every minute, once the limit lies further from the target than the band. With `react` it also grows at once under
  pressure, as our reactive rule does, which the original cannot.
- MomRule: oVirt's Memory Overcommitment Manager (oVirt/mom, doc/balloon.rules): while the host's free memory is below a threshold, guests
  give up 5 % at a time down to what they use and a free share; otherwise they get back what they want. Its KSM rules have no counterpart:
  nothing is shared here. It has no rule for CPU and network: there it gets our reactive rule.
- OneDrsSizer: OpenNebula's OneDRS weighs the value predicted for the horizon's end against the present one (its knob PREDICTIVE). It only
  moves VMs; here that figure and a margin size them. It gets our forecasts and, under the plan, our local growth.
Their knobs were tuned on dev draws: `python -m bench.league --tune NAME` has the grids and the order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agent.acting.pressure import pressed, used
from agent.acting.reactive import LEVERS, Ask, Demand, ReactiveRule, Situation
from coordinator.model import F32, F64, ForecastBlock, HostState, VmSize
from coordinator.sizing.ahead import rows_of
from coordinator.sizing.draft import Evidence, VmEvidence
from coordinator.sizing.levers import KIND, SIZED, ceilings, commit_limits, floors, in_force, round_up
from coordinator.sizing.policy import SizingPolicy
from shared.config import ReactiveConfig
from shared.model import VmSample
from shared.plan import StepKind
from shared.units import BUCKET_S, CPU, MEMORY, MIB, NET_RX, NET_TX, NS_PER_S

RESOURCE: Final = {StepKind.CPU_QUOTA: CPU, StepKind.MEMORY: MEMORY, StepKind.NET_RX: NET_RX, StepKind.NET_TX: NET_TX}
FIRST: Final = {
    StepKind.CPU_QUOTA: 10.0,
    StepKind.MEMORY: 10.0 * MIB,
    StepKind.NET_RX: 1e5,
    StepKind.NET_TX: 1e5,
}  # width of the first bucket
GROWTH: Final = 1.05
HISTOGRAM_BUCKETS: Final = 240
BUMP: Final = 1.2
SAMPLES_PER_BUCKET: Final = 60


@dataclass(frozen=True, kw_only=True)
class VpaKnobs:
    """Tuned; the autoscaler's own: percentile .9, margin 1.15, half-life a day, memory by daily peaks, no reaction."""

    percentile: float = 0.90
    margin: float = 1.0
    half_life_s: float = 86_400.0
    interval_s: float = 3600.0  # of which memory counts the peak
    band: float = 0.10
    every_s: float = 60.0
    react: bool = True


@dataclass(frozen=True, kw_only=True)
class MomKnobs:
    """As in balloon.rules."""

    pressure: float = 0.20  # of the host's memory free, below which guests shrink
    guest_free: float = 0.20  # of what a guest has that stays free
    change: float = 0.05
    least_change: float = 0.0025
    every_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class OneDrsKnobs:
    """`predictive`: weight of the prediction against the present value; `margin` on top of both."""

    predictive: float = 1.0
    margin: float = 1.8
    memory_margin: float = 1.15


class Histogram:
    """Decaying histogram: weights double every half-life instead of old ones halving (as the autoscaler's does)."""

    __slots__ = ("_first", "_half_life_s", "_origin_s", "_weights")

    def __init__(self, first: float, half_life_s: float, origin_s: float) -> None:
        self._first, self._half_life_s, self._origin_s = first, half_life_s, origin_s
        self._weights = [0.0] * HISTOGRAM_BUCKETS

    def add(self, value: float, at_s: float, weight: float = 1.0) -> None:
        """Count `value` as seen at `at_s`."""
        doublings = (at_s - self._origin_s) / self._half_life_s
        if doublings > 100.0:  # far from overflow
            scale = 2.0**-doublings
            self._weights = [each * scale for each in self._weights]
            self._origin_s, doublings = at_s, 0.0
        self._weights[self._index(value)] += weight * 2.0**doublings

    def percentile(self, level: float) -> float:
        """Upper end of the bucket that holds this share of the weight; 0 while there is none."""
        total = math.fsum(self._weights)
        left = level * total
        for i, weight in enumerate(self._weights):
            left -= weight
            if left <= 0.0 < total:
                return self._first * (GROWTH ** (i + 1) - 1.0) / (GROWTH - 1.0)
        return 0.0

    def _index(self, value: float) -> int:
        if value < self._first:
            return 0
        return min(HISTOGRAM_BUCKETS - 1, int(math.log(value / self._first * (GROWTH - 1.0) + 1.0) / math.log(GROWTH)))


@dataclass(slots=True)
class _Watched:
    """What VpaRule knows of one VM."""

    histograms: dict[StepKind, Histogram]
    peak: float = 0.0  # of memory, in the interval that is open
    interval: int = -1
    due_ns: int = 0
    targets: dict[StepKind, float] = field(default_factory=dict)


class VpaRule:
    """A LocalRule. `past`: what it has seen of each VM before the start, in the order in which the agent asks (by vm_id)."""

    def __init__(self, knobs: VpaKnobs, reactive: ReactiveConfig, past: Sequence[tuple[F32, F32]], start_s: int) -> None:
        """`past`: (mean, peak) float32[r, b] up to `start_s` by VM."""
        self._knobs, self._past, self._start_s = knobs, past, start_s
        self._reactive = ReactiveRule(reactive)
        self._watched: dict[int, _Watched] = {}  # by the identity of what the agent remembers of a VM

    def asks(
        self, reading: VmSample, situation: Situation, demand: Demand, now_ns: int, *, planned: bool = False, sustained: bool = False
    ) -> list[Ask]:
        """As LocalRule."""
        known = self._watched.get(id(demand))
        if known is None:
            known = self._watched[id(demand)] = self._begin(self._past[len(self._watched)])
        quick = self._reactive.asks(reading, situation, demand, now_ns, planned=planned, sustained=sustained)
        for kind in LEVERS:
            self._observe(known, kind, reading, situation, now_ns)
        if now_ns >= known.due_ns:
            known.due_ns = now_ns + int(self._knobs.every_s * NS_PER_S)
            known.targets = {kind: self._target(known, kind) for kind in LEVERS}
        asks = [ask for ask in quick if ask.grow] if self._knobs.react else []
        growing = {ask.kind for ask in asks}
        for kind, target in known.targets.items():
            limit = situation.in_force.get(kind)
            if kind in growing or limit is None or limit <= 0:
                continue
            low, high = situation.bounds[kind]
            value = int(min(max(target, low), high))
            if abs(value - limit) > self._knobs.band * limit:
                asks += _with_vcpus(kind, value, limit, situation)
        return asks

    def _begin(self, past: tuple[F32, F32]) -> _Watched:
        half_life_s, start_s = self._knobs.half_life_s, self._start_s
        watched = _Watched(histograms={kind: Histogram(FIRST[kind], half_life_s, start_s) for kind in LEVERS})
        mean, peak = past
        buckets = mean.shape[1]
        for kind, r in RESOURCE.items():
            histogram = watched.histograms[kind]
            for b in range(buckets):
                at_s = start_s - BUCKET_S * (buckets - b)
                if math.isnan(mean[r, b]):
                    continue
                if kind is StepKind.MEMORY:
                    self._memory(watched, float(peak[r, b]), at_s)
                else:  # of the bucket's samples a tenth lay near the peak
                    histogram.add(float(mean[r, b]), at_s, 0.9 * SAMPLES_PER_BUCKET)
                    histogram.add(float(peak[r, b]), at_s, 0.1 * SAMPLES_PER_BUCKET)
        return watched

    def _memory(self, watched: _Watched, value: float, at_s: float) -> None:
        interval = int(at_s // self._knobs.interval_s)
        if interval != watched.interval:
            if watched.interval >= 0:
                watched.histograms[StepKind.MEMORY].add(watched.peak, at_s)
            watched.interval, watched.peak = interval, 0.0
        watched.peak = max(watched.peak, value)

    def _observe(self, watched: _Watched, kind: StepKind, reading: VmSample, situation: Situation, now_ns: int) -> None:
        use, limit = used(reading, kind), situation.in_force.get(kind)
        if use is None:
            return
        value = float(use)
        if pressed(reading, kind) and limit is not None and limit > 0:
            value = max(value, BUMP * limit)
        if kind is StepKind.MEMORY:
            self._memory(watched, value, now_ns / NS_PER_S)
        else:
            watched.histograms[kind].add(value, now_ns / NS_PER_S)

    def _target(self, watched: _Watched, kind: StepKind) -> float:
        target = watched.histograms[kind].percentile(self._knobs.percentile)
        if kind is StepKind.MEMORY:
            target = max(target, watched.peak)
        return target * self._knobs.margin


class MomRule:
    """A LocalRule: memory by MOM's rules, the other levers by ours. `free` = share of the host's memory that nobody was promised."""

    def __init__(self, knobs: MomKnobs, reactive: ReactiveConfig, free: Callable[[], float]) -> None:
        self._knobs, self._free = knobs, free
        self._reactive = ReactiveRule(reactive)
        self._recent: dict[int, deque[int]] = {}
        self._due_ns: dict[int, int] = {}

    def asks(
        self, reading: VmSample, situation: Situation, demand: Demand, now_ns: int, *, planned: bool = False, sustained: bool = False
    ) -> list[Ask]:
        """As LocalRule."""
        others = self._reactive.asks(reading, situation, demand, now_ns, planned=planned, sustained=sustained)
        asks = [ask for ask in others if ask.kind not in (StepKind.MEMORY, StepKind.MEMORY_HIGH)]
        use, now = used(reading, StepKind.MEMORY), situation.in_force.get(StepKind.MEMORY)
        if use is None or not now:
            return asks
        recent = self._recent.setdefault(id(demand), deque(maxlen=4))
        recent.append(use)
        if now_ns < self._due_ns.get(id(demand), 0):
            return asks
        self._due_ns[id(demand)] = now_ns + int(self._knobs.every_s * NS_PER_S)
        ask = self._balloon(sum(recent) / len(recent), now, situation)
        return asks if ask is None else [*asks, ask]

    def _balloon(self, use: float, now: int, situation: Situation) -> Ask | None:
        knobs = self._knobs
        low, high = situation.bounds[StepKind.MEMORY]
        least = min(max(use + knobs.guest_free * now, low), high)  # what it uses and the free share
        short = self._free() < knobs.pressure
        if now < least:
            value = least
        elif short:
            value = max(least, now * (1.0 - knobs.change))
        else:
            value = min(high, now * (1.0 + knobs.change))
        if abs(value - now) <= knobs.least_change * now:
            return None
        return Ask(StepKind.MEMORY, int(value), value > now, "host_pressure" if value < now else "guest_free")


class OneDrsSizer:
    """Sits where the product sizes."""

    def __init__(self, knobs: OneDrsKnobs) -> None:
        self._knobs = knobs

    def __call__(
        self,
        host: HostState,
        forecast: ForecastBlock,
        policy: SizingPolicy,
        evidence: Mapping[str, VmEvidence],  # a Sizer's
        /,
        *,
        measured_lead_s: Mapping[StepKind, float] | None = None,
        **_: object,
    ) -> tuple[tuple[VmSize, ...], Evidence]:
        """Sizes of the VMs with a forecast; where they don't fit, what lies above the floors shrinks alike."""
        rows = rows_of(forecast.vm_ids)
        vms = [vm for vm in host.vms if vm.domain.vm_id in rows and vm.domain.running and not vm.domain.policy.excluded]
        found = [rows[vm.domain.vm_id] for vm in vms]
        ahead = forecast.mean[found, :, -1].astype(np.float64)
        now = np.array([vm.demand_now for vm in vms]).reshape(ahead.shape)
        weight = self._knobs.predictive
        wanted = np.where(np.isnan(now), ahead, weight * ahead + (1.0 - weight) * now) * self._knobs.margin
        wanted[:, MEMORY] *= self._knobs.memory_margin / self._knobs.margin
        low = np.array([floors(vm, policy) for vm in vms]).reshape(ahead.shape)
        high = np.array([ceilings(vm) for vm in vms]).reshape(ahead.shape)
        target = np.clip(wanted, low, high)
        for r in SIZED:
            target[:, r] = fitted(target[:, r], low[:, r], commit_limits(host)[r], policy.granule[r])
        sizes = []
        for vm, goal in zip(vms, target, strict=True):
            goal[[r for r in range(len(goal)) if r not in KIND or math.isnan(in_force(vm)[r])]] = np.nan
            sizes.append(VmSize(vm_id=vm.domain.vm_id, host_id=host.host_id, target=goal, lower=0.98 * goal, upper=1.10 * goal))
        return tuple(sizes), {}


def fitted(target: F64, low: F64, limit: float, granule: float) -> F64:
    """Targets float64[v] cut alike above their floors so that they sum to at most `limit`; unknown ones stay unknown."""
    extra = np.nan_to_num(target - low)
    room = limit - float(np.nansum(np.where(np.isnan(target), 0.0, low)))
    share = min(1.0, max(0.0, room / extra.sum())) if extra.sum() > 0.0 else 1.0
    return np.array([round_up(value, granule) for value in low + share * (target - low)])


def _with_vcpus(kind: StepKind, value: int, limit: int, situation: Situation) -> list[Ask]:
    """The ask, and first the vCPUs that a larger quota needs."""
    asks = []
    vcpus = situation.in_force.get(StepKind.VCPUS)
    if kind is StepKind.CPU_QUOTA and vcpus is not None and value > 1000 * vcpus:
        wanted = min(-(-value // 1000), situation.bounds[StepKind.VCPUS][1])
        if wanted > vcpus:
            asks.append(Ask(StepKind.VCPUS, wanted, True, "recommended"))
    return [*asks, Ask(kind, value, value > limit, "recommended")]
