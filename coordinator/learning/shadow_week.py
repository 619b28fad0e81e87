"""Had these hosts been predictive: violations, steps, memory and hosts, scored against the demand that came, beside what happened.

Four ways of granting over the same buckets: `happened` (allocation in force as history holds it, the maximum where nothing limited; want =
the measured share of samples that ran into the limit), `static` (every VM its maximum), `reactive` and `predictive` (shadow_rules.py).
Hosts needed: for each bucket, the sum of grants over what an average host of these may promise, CPU or memory, whichever needs more; the
largest over time, rounded up: a lower bound, as placement's rules are left out. Fed chunk by chunk in order of time. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.learning.shadow_rules import DEAD_BAND, Replay, RuleState, replay
from coordinator.model import F32, F64
from shared.model import HostCapacity
from shared.units import BUCKET_S, CPU, GIB, MEMORY

Way = Literal["happened", "static", "reactive", "predictive"]
WAYS: Final[tuple[Way, ...]] = ("happened", "static", "reactive", "predictive")
SHAPED: Final = (CPU, MEMORY)


@dataclass(frozen=True, kw_only=True)
class WaySums:
    """One way on one host. Minutes and hours are sums over its VMs."""

    violation_minutes: float
    steps: int
    cpu_core_hours: float
    memory_gib_hours: float


@dataclass(frozen=True, kw_only=True)
class HostShadow:
    """One host's VMs under each way."""

    host_id: str
    vms: int
    known_hours: float  # VM-hours of which demand is known
    ways: dict[Way, WaySums]


@dataclass(frozen=True, kw_only=True)
class ShadowResult:
    """All of it; `hosts_needed` by way, None where no capacity is known. `forecast_share`: of VM-buckets, those with a stored forecast."""

    hosts: tuple[HostShadow, ...]
    hosts_needed: dict[Way, int | None]
    forecast_share: float | None


class ShadowWeek:
    """`host_of`: the host of each VM; `static` float64[v, 2]: maxima of CPU and memory."""

    def __init__(self, host_of: Sequence[str], static: F64, capacities: Mapping[str, HostCapacity]) -> None:
        self._host_of, self._static = host_of, static
        named = [capacities[host] for host in sorted(set(host_of)) if host in capacities]
        self._room = None
        if named:
            means = (sum(each.cpu_commit_millicores for each in named), sum(each.memory_commit_bytes for each in named))
            self._room = np.array(means, np.float64) / len(named)
        self._states: dict[tuple[str, int], RuleState] = {
            (way, r): RuleState.start(static[:, i]) for way in WAYS[2:] for i, r in enumerate(SHAPED)
        }
        self._happened: F64 = np.full(static.shape, np.nan)
        v = len(host_of)
        self._lack = {way: np.zeros(v) for way in WAYS}
        self._steps: dict[Way, NDArray[np.int64]] = {way: np.zeros(v, np.int64) for way in WAYS}
        self._granted = {way: np.zeros((v, 2)) for way in WAYS}
        self._peak_hosts: dict[Way, float] = dict.fromkeys(WAYS, 0.0)
        self._known = np.zeros(v)
        self._forecasts = np.zeros(2)  # with one, all

    def take(self, history: Mapping[str, F32], forecast: F32) -> None:
        """The next buckets: `peak`, `allocation`, `censored` float32[v, r, b] of history, `forecast` [v, r, b] as shadow_rules has it."""
        v, _, buckets = history["peak"].shape
        summed: dict[Way, F64] = {way: np.zeros((2, buckets)) for way in WAYS}
        lacking: dict[Way, F64] = {way: np.zeros((v, buckets)) for way in WAYS}
        for i, r in enumerate(SHAPED):
            static = self._static[:, i]
            peak = history["peak"][:, r].astype(np.float64)
            known = ~np.isnan(peak) & ~np.isnan(static)[:, None]
            peak, ahead = np.where(known, peak, np.nan), np.where(known, forecast[:, r], np.nan)
            self._forecasts += [float((~np.isnan(ahead)).sum()), float(known.sum())]
            if r == CPU:
                self._known += known.sum(axis=1)
            ways: dict[Way, Replay] = {
                "happened": self._happening(i, history["allocation"][:, r], history["censored"][:, r], known),
                "static": Replay(
                    granted=np.where(known, static[:, None], np.nan),
                    lack_s=np.where(known & (peak > static[:, None]), float(BUCKET_S), 0.0),
                    steps=np.zeros((v, buckets), np.int64),
                ),
                "reactive": replay(peak, static, self._states["reactive", r], r),
                "predictive": replay(peak, static, self._states["predictive", r], r, ahead),
            }
            for way, run in ways.items():
                self._granted[way][:, i] += np.nansum(run.granted, axis=1)
                self._steps[way] += run.steps.sum(axis=1)
                summed[way][i] += np.nansum(run.granted, axis=0)
                # CPU and memory may be short at once: that time counts once
                np.maximum(lacking[way], run.lack_s, out=lacking[way])
        for way in WAYS:
            self._lack[way] += lacking[way].sum(axis=1)
            if self._room is not None and buckets:
                self._peak_hosts[way] = max(self._peak_hosts[way], float((summed[way] / self._room[:, None]).max()))

    def result(self) -> ShadowResult:
        """What it comes to, hosts by id."""
        rows: dict[str, list[int]] = {}
        for row, host in enumerate(self._host_of):
            rows.setdefault(host, []).append(row)
        hours = BUCKET_S / 3600
        hosts = tuple(
            HostShadow(
                host_id=host,
                vms=len(at),
                known_hours=float(self._known[at].sum() * hours),
                ways={
                    way: WaySums(
                        violation_minutes=float(self._lack[way][at].sum() / 60.0),
                        steps=int(self._steps[way][at].sum()),
                        cpu_core_hours=float(self._granted[way][at, 0].sum() * hours / 1000.0),
                        memory_gib_hours=float(self._granted[way][at, 1].sum() * hours / GIB),
                    )
                    for way in WAYS
                },
            )
            for host, at in sorted(rows.items())
        )
        with_one, all_ = self._forecasts
        return ShadowResult(
            hosts=hosts,
            hosts_needed={way: None if self._room is None else math.ceil(self._peak_hosts[way] - 1e-9) for way in WAYS},
            forecast_share=float(with_one / all_) if all_ else None,
        )

    def _happening(self, i: int, allocation: F32, censored: F32, known: NDArray[np.bool_]) -> Replay:
        """What was in force, and how often it changed by more than the dead band, unknown buckets skipped."""
        limit = np.where(np.isnan(allocation), np.inf, allocation.astype(np.float64))
        given = np.where(known, np.fmin(limit, self._static[:, i, None]), np.nan)
        steps = np.zeros(given.shape, np.int64)
        before = self._happened[:, i].copy()
        for b in range(given.shape[1]):
            now = given[:, b]
            steps[:, b] = np.abs(now - before) > DEAD_BAND * before
            before = np.where(np.isnan(now), before, now)
        self._happened[:, i] = before
        return Replay(granted=given, lack_s=np.where(known, np.nan_to_num(censored) * float(BUCKET_S), 0.0), steps=steps)
