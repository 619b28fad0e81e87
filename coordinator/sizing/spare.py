"""Enough left for a host that fails: in every pool and every step of the forecast, the VMs of any one host must fit on the others.

The demand that counts is the host's own margin (margin.py). What all others have free, in sum, is a bound from above: it proves "does not
fit". That the VMs of the fullest host fit one by one is tried too (largest first, each to the host with most room left in its worst step),
so that "fits" is more than a sum. Pure.
Worked: four hosts of 64 GiB that carry 40, 50, 50, 60 at the worst: if the last fails, 60 must fit into 24 + 14 + 14 = 52: 8 GiB are
missing. Had every host kept 60 / 192 = 31 % free, it would fit: that share is `keep`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64, N_RESOURCES
from coordinator.sizing.levers import SIZED
from coordinator.sizing.margin import HostLoads


@dataclass(frozen=True, kw_only=True)
class Spare:
    """One pool and resource. Units of the resource."""

    pool: str
    resource: int
    hosts: int
    host_id: str  # the one whose failure is worst
    step: int  # in which
    needed: float  # what its VMs need then
    free: float  # what the others have free then
    keep: float  # share of its capacity that every host must keep free so that any one of them may fail

    @property
    def missing(self) -> float:
        """How much does not fit, at the least; 0 = the sums fit."""
        return max(0.0, self.needed - self.free)


def spare_of(loads: HostLoads, z: float, pools: Mapping[str, str]) -> tuple[Spare, ...]:
    """Every pool and sized resource. `pools`: host_id -> pool; hosts that are not named are one pool, ""."""
    named = np.array([pools.get(host_id, "") for host_id in loads.host_ids])
    upper = loads.upper(z)
    found = []
    for pool in sorted(set(named.tolist())):
        rows = np.flatnonzero(named == pool)
        found += [worst_failure(loads, upper, rows, pool, r) for r in SIZED if np.isfinite(loads.capacity[rows, r]).all()]
    return tuple(found)


def worst_failure(loads: HostLoads, upper: F64, rows: NDArray[np.intp], pool: str, r: int) -> Spare:
    """Over all hosts of the pool and all steps, where most is missing."""
    load, capacity = upper[rows, r], loads.capacity[rows, r]
    free = np.maximum(capacity[:, None] - load, 0.0)
    others = free.sum(axis=0) - free
    lacking = load - others
    # hosts of one size lack the same whoever fails: of those, the one that carries most
    worst = np.where(lacking >= lacking.max() - 1e-9 * capacity.max(), load, -np.inf)
    h, step = np.unravel_index(int(np.argmax(worst)), load.shape)
    rest = capacity.sum() - capacity
    keep = np.divide(load.max(axis=1), rest, out=np.ones(len(rows)), where=rest > 0.0)
    return Spare(
        pool=pool,
        resource=r,
        hosts=len(rows),
        host_id=loads.host_ids[rows[h]],
        step=int(step),
        needed=float(load[h, step]),
        free=float(others[h, step]),
        keep=float(min(1.0, keep.max())),
    )


def kept_free(spares: Sequence[Spare], pools: Mapping[str, str], host_id: str) -> tuple[float, ...]:
    """[r] share of this host's limit that growth leaves free for a host that fails; 0 where a host is alone: nobody could take over."""
    mine = {spare.resource: spare.keep for spare in spares if spare.pool == pools.get(host_id, "") and spare.hosts > 1}
    return tuple(mine.get(r, 0.0) for r in range(N_RESOURCES))


def stranded(loads: HostLoads, failing: int, pool: Sequence[int], z: float) -> tuple[str, ...]:
    """VMs of host `failing` (index) that find no place on the other hosts `pool`; () = the host may fail."""
    targets = np.array([h for h in pool if h != failing], np.int64)
    mine = np.flatnonzero(loads.owner == failing)
    if not len(targets):
        return tuple(loads.vms[v].domain.vm_id for v in mine)
    capacity = loads.capacity[targets][:, :, None]
    known = np.isfinite(capacity)
    scale = np.where(known, np.maximum(capacity, 1e-9), np.inf)
    total, spread = loads.mean[targets].copy(), loads.stddev[targets] ** 2
    need = (loads.vm_mean[mine] + z * np.sqrt(loads.vm_variance[mine])) / scale.max(axis=0, where=known, initial=1e-9)
    left = []
    for v in mine[np.argsort(-need.max(axis=(1, 2)), kind="stable")]:
        after = (total + loads.vm_mean[v] + z * np.sqrt(spread + loads.vm_variance[v])) / scale
        fullest = after.max(axis=(1, 2))
        best = int(np.argmin(fullest))
        if fullest[best] > 1.0:
            left.append(loads.vms[v].domain.vm_id)
            continue
        total[best] += loads.vm_mean[v]
        spread[best] += loads.vm_variance[v]
    return tuple(left)
