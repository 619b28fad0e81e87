"""What somebody who knew all demand would grant, under the same rule of turns: the yardstick of bench/league, and the size of its hosts.

For each VM and lever the least allocation over time that covers the true peak of every bucket and turns from growing to shrinking no
more than the guard allows. Between two turns an allocation falls, then rises: a valley. Over a stretch [s, e) with its lowest point at v
it costs sum over t <= v of max(d[t..v]) + sum over t > v of max(d[v..t]), and dynamic programming over the ends of stretches finds the
least sum.
Turns at least half a window apart (two turns in six hours: three hours) keep any window within the budget; a schedule that crowds two
turns into one hour and none into the next five is allowed by the guard and not searched, so the yardstick may lie a little high.
Invariants: foresight >= demand in every bucket; two falls after growths lie at least SPACING buckets apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64, ForecastBlock, HostState, VmSize
from coordinator.sizing.draft import Evidence, VmEvidence
from coordinator.sizing.levers import KIND, SIZED, ceilings, floors, in_force, round_up
from coordinator.sizing.policy import SizingPolicy
from coordinator.workloads import demand_detail
from shared.plan import StepKind
from shared.units import BUCKET_S
from shared.workload import VmWorkload

SPACING: Final = 36  # buckets: half of the guard's six hours for two turns
LONGEST: Final = 144  # buckets of one valley
# What the oracle grants over what it needs: for granules; and the guard lets no memory go below a tenth above its use.
SPARE: Final = np.array([[1.01], [1.10], [1.01], [1.01]])
LEVERS: Final = 4  # CPU, memory, rx, tx


def demand_peaks(spec: VmWorkload, file_start_s: int, start_s: int) -> F64:
    """Largest 5-second demand of each bucket from `start_s` on, float64[4, buckets]: CPU, memory, rx, tx."""
    detail = demand_detail(spec, file_start_s)
    skip = (start_s - file_start_s) // BUCKET_S
    peaks: F64 = detail[[0, 1, 4, 5], skip:].max(axis=2)
    return peaks


def foresight(peaks: F64) -> F64:
    """The least allocation of each lever by bucket, float64[4, buckets]."""
    return np.stack([_valleys(row, SPACING, LONGEST) for row in peaks]) * SPARE


def needed(ahead: Sequence[F64]) -> F64:
    """What a host must be able to promise, float64[4]: the largest sum over its VMs, growth being in force a bucket early."""
    total = np.sum([np.maximum(each[:, :-1], each[:, 1:]) for each in ahead], axis=0)
    most: F64 = total.max(axis=1)
    return most


class OracleSizer:
    """Sits where the product sizes: what `ahead` says of this bucket and the next, whatever the forecast says."""

    def __init__(self, ahead: Mapping[str, F64], start_s: int) -> None:
        self._ahead, self._start_s = ahead, start_s

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
        """Sizes of all VMs that are known here."""
        bucket = (forecast.issued_s - self._start_s) // BUCKET_S
        sizes = []
        for vm in host.vms:
            ahead = self._ahead.get(vm.domain.vm_id)
            if ahead is None or not 0 <= bucket < ahead.shape[1]:
                continue
            target = np.full(len(in_force(vm)), np.nan)
            low, high = floors(vm, policy), ceilings(vm)
            for i, r in enumerate(SIZED):
                if r in KIND:
                    wanted = round_up(float(ahead[i, bucket : bucket + 2].max()), policy.granule[r])
                    target[r] = min(max(wanted, low[r]), high[r])
            sizes.append(VmSize(vm_id=vm.domain.vm_id, host_id=host.host_id, target=target, lower=target, upper=target))
        return tuple(sizes), {}


@njit(cache=True, nogil=True)
def _valleys(demand: F64, spacing: int, longest: int) -> F64:
    """The least-cost sequence of valleys that covers float64[b]."""
    n = len(demand)
    # falling[v, k]: cost of v-k .. v as the falling side of a valley at v; rising[v, k]: of v .. v+k as its rising side
    falling = np.full((n, longest), np.inf)
    rising = np.full((n, longest), np.inf)
    for v in range(n):
        most = total = 0.0
        for k in range(min(longest, v + 1)):
            most = max(most, demand[v - k])
            total += most
            falling[v, k] = total
        most = total = 0.0
        for k in range(min(longest, n - v)):
            most = max(most, demand[v + k])
            total += most
            rising[v, k] = total
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    came = np.zeros(n + 1, np.int64)
    low = np.zeros(n + 1, np.int64)
    for e in range(1, n + 1):
        for s in range(max(0, e - longest), e):
            # The first stretch and the last may be short: the one follows no turn, the other is followed by none.
            if not np.isfinite(best[s]) or (s > 0 and e < n and e - s < spacing):
                continue
            for v in range(s, e):
                cost = best[s] + falling[v, v - s] + rising[v, e - 1 - v] - demand[v]
                if cost < best[e]:
                    best[e], came[e], low[e] = cost, s, v
    out = np.empty(n)
    e = n
    while e > 0:
        s, v = came[e], low[e]
        most = 0.0
        for t in range(v, s - 1, -1):
            most = max(most, demand[t])
            out[t] = most
        most = 0.0
        for t in range(v, e):
            most = max(most, demand[t])
            out[t] = most
        e = s
    return out
