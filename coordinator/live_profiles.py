"""Workload profiles of the running coordinator: reads history in a thread and keeps what it found for a while.

Implements coordinator.service.profiling.ProfilesView. Bounded: one profile at a time, MAX_VMS of a client are read, MAX_KEPT profiles
are kept for KEPT_S: a page that is looked at by many costs the disk once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple, Protocol
from zoneinfo import ZoneInfo

import numpy as np

from coordinator.cycle import DecisionCycle
from coordinator.learning.accuracy import Accuracy
from coordinator.learning.profiles import resource_profile
from coordinator.model import F32, F64, N_RESOURCES, HistoryBlock
from coordinator.service.profiling import WorkloadProfile
from shared.clock import Clock
from shared.units import BUCKET_S, NS_PER_S, RESOURCES

MAX_VMS: Final = 500  # 14 days of them are 80 MB of arrays
MAX_KEPT: Final = 256
KEPT_S: Final = 1800
DAY_BUCKETS: Final = 86_400 // BUCKET_S
DEFAULT_LEVELS: Final = (0.90, 0.95, 0.975, 0.99)  # by priority: those of sizing without a price
LEAST_SHARE: Final = 0.5  # of a client's VMs that must be known for their sum to be


class Past(Protocol):
    """History as far as profiles read it."""

    def load(self, vm_ids: Sequence[str], end_s: int, buckets: int) -> HistoryBlock:
        """float32[v, r, buckets] ending with bucket `end_s`."""
        ...


class Key(NamedTuple):
    """What a profile is of."""

    kind: str
    name: str
    days: int


class LiveProfiles:
    """`zone`: the operator's, in which days begin."""

    def __init__(self, clock: Clock, cycle: DecisionCycle, history: Past, zone: ZoneInfo) -> None:
        self._clock, self._cycle, self._history, self._zone = clock, cycle, history, zone
        self._one_at_a_time = asyncio.Lock()
        self._kept: OrderedDict[Key, tuple[int, WorkloadProfile]] = OrderedDict()

    async def of_vm(self, vm_id: str, days: int) -> WorkloadProfile | None:
        """None = no such VM."""
        vm = self._cycle.fleet.vms.get(vm_id)
        if vm is None:
            return None
        own = vm.domain.policy.size_quantile_permille
        level = DEFAULT_LEVELS[vm.domain.policy.priority] if own is None else own / 1000
        return await self._profile(Key("vm", vm_id, days), [vm_id], level)

    async def of_client(self, client: str, days: int) -> WorkloadProfile | None:
        """None = no VM belongs to it."""
        vms = self._cycle.fleet.vms
        mine = sorted(vm_id for vm_id, vm in vms.items() if vm.domain.policy.client == client)
        if not mine:
            return None
        level = DEFAULT_LEVELS[max(vms[vm_id].domain.policy.priority for vm_id in mine)]
        return await self._profile(Key("client", client, days), mine, level)

    async def _profile(self, key: Key, vm_ids: list[str], level: float) -> WorkloadProfile:
        async with self._one_at_a_time:
            now_s = self._clock.wall_ns() // NS_PER_S
            kept = self._kept.get(key)
            if kept is not None and now_s - kept[0] < KEPT_S and (kept[1].vms, kept[1].resources[0].level) == (len(vm_ids), level):
                return kept[1]
            bucket = self._cycle.bucket
            end_s = bucket.start_s if bucket is not None else now_s // BUCKET_S * BUCKET_S - BUCKET_S
            used = vm_ids[:MAX_VMS]
            capacity = np.array(list(self._cycle.fleet.capacity_of(used).values()), np.float64).reshape(-1, N_RESOURCES).sum(axis=0)
            errors = self._errors(key)
            made = await asyncio.get_running_loop().run_in_executor(
                None, self._work_out, key, used, len(vm_ids), end_s, capacity, errors, level
            )
            self._kept[key] = (now_s, made)
            self._kept.move_to_end(key)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return made

    def _errors(self, key: Key) -> F64:
        """Mean absolute error of the forecasts so far, [r]; NaN = nothing scored."""
        accuracy = self._cycle.ledger.errors.accuracy
        found = accuracy.of_vm(key.name, "total") if key.kind == "vm" else accuracy.by_client("total").get(key.name)
        return np.full(N_RESOURCES, np.nan) if found is None else _mae(found)

    def _work_out(  # noqa: PLR0917
        self, key: Key, used: list[str], vms: int, end_s: int, capacity: F64, errors: F64, level: float
    ) -> WorkloadProfile:
        buckets = key.days * DAY_BUCKETS
        block = self._history.load(used, end_s, buckets)
        first_s = end_s - (buckets - 1) * BUCKET_S
        offset = datetime.fromtimestamp(end_s, self._zone).utcoffset()
        mean, peak = together(block.mean, block.peak)
        return WorkloadProfile(
            of=key.name,
            vms=vms,
            vms_used=len(used),
            from_s=first_s,
            until_s=end_s + BUCKET_S,
            time_zone=str(self._zone),
            resources=tuple(
                resource_profile(
                    name,
                    mean[r],
                    peak[r],
                    first_s=first_s,
                    utc_offset_s=0 if offset is None else int(offset.total_seconds()),
                    capacity=float(capacity[r]),
                    forecast_mae=float(errors[r]) * (len(used) if key.kind == "client" else 1),
                    level=level,
                )
                for r, name in enumerate(RESOURCES)
            ),
        )


def together(mean: F32, peak: F32) -> tuple[F64, F64]:
    """The sum of VMs [v, r, b] as [r, b]: of means, and with peaks as of VMs that burst independently (their squares add).

    A bucket in which fewer than LEAST_SHARE of the VMs that were ever seen are known is unknown; fewer than all are raised in proportion.
    """
    there = np.isfinite(mean)
    ever = there.any(axis=2).sum(axis=0)[:, None]
    count = there.sum(axis=0)
    enough = (count > 0) & (count >= LEAST_SHARE * ever)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(enough, ever / count, np.nan)
    total: F64 = np.nansum(mean, axis=0, dtype=np.float64) * scale
    above = np.where(there & np.isfinite(peak), np.maximum(peak - mean, 0.0), 0.0).astype(np.float64)
    return total, total + np.sqrt(np.square(above).sum(axis=0) * scale)


def _mae(accuracy: Accuracy) -> F64:
    """Of all parts of the horizon together, [r]."""
    pairs = np.atleast_2d(accuracy.pairs)
    whole = pairs.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: F64 = np.nansum(np.atleast_2d(accuracy.mae) * pairs, axis=0) / np.where(whole > 0, whole, np.nan)
    return mean
