"""Which clients' objectives cannot be met within the hour, and what is missing: said before it happens, by the forecast.

A client's objective is a share of time in which its VMs may lack something (its SLA error budget); what it needs for that is the quantile 1
- share of its demand. Three things can stand in the way, each proven by itself:
ceiling  a VM's own ceiling or maximum lies below its need: no plan may give it more
host     on the host where its VMs run, the needs of its priority and above pass what the hardware has: a move may cure that
fleet    the same over all hosts together: nothing but more hardware, or less demand, cures that
Needs of many VMs add as host margins do (mean + z * root of the summed variances, z of the quantile), and higher priorities are served
first, so a lower one is named where it is what does not fit. Pure.
Worked: a host of 16,000 millicores; critical VMs need 9,000, normal ones of clients A and B, 2:1 by mean demand, bring it to 19,000: normal
is short by 3,000, of which A misses 2,000 and B 1,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64
from coordinator.sizing.levers import SIZED, ceilings
from coordinator.sizing.margin import HostLoads

Cause = Literal["ceiling", "host", "fleet"]
DEFAULT_BUDGET: Final = 0.01
# Objectives stricter than the forecast's highest quantile are judged at that quantile.
HIGHEST: Final = 0.99
# A budget of a quarter of the usual one makes shortages count four times; smaller ones count no more.
TIGHTEST: Final = 4.0
LOWEST: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """Share of its VMs' time that each client may lack something; `budget` where it has no share of its own."""

    budget: float = DEFAULT_BUDGET
    clients: Mapping[str, float] = field(default_factory=dict)
    period_s: int = 604_800

    def of(self, client: str) -> float:
        """This client's share."""
        return self.clients.get(client, self.budget)

    def tightness(self, client: str) -> float:
        """How much more a shortage counts for a client of a smaller budget than usual, or less for one of a larger."""
        return min(TIGHTEST, max(1.0 / TIGHTEST, self.budget / self.of(client)))


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """One client's objective that cannot be met, and by how much, in the unit of the resource."""

    client: str
    resource: int
    cause: Cause
    where: str  # vm_id, host_id, or "" for the fleet
    missing: float  # in the worst step
    first_step: int  # steps of the forecast in which it is missing
    last_step: int


def infeasible(loads: HostLoads, objectives: Objectives) -> tuple[Infeasible, ...]:
    """By cause, client, place and resource. Empty = every objective can be met as far as the forecast sees."""
    if not loads.vms:
        return ()
    clients = [vm.domain.policy.client for vm in loads.vms]
    level = np.array([min(HIGHEST, max(LOWEST, 1.0 - objectives.of(client))) for client in clients])
    z_of = {each: NormalDist().inv_cdf(each) for each in sorted(set(level.tolist()))}
    z = np.array([z_of[each] for each in level.tolist()])
    found = above_ceilings(loads, z)
    everywhere = np.zeros(len(loads.vms), np.int64)
    total = np.nansum(loads.capacity, axis=0, keepdims=True)
    alone = np.zeros_like(loads.mean)
    np.add.at(alone, loads.owner, loads.vm_variance)
    # what moving together adds to a host's variance; over a whole fleet it is left out, which errs towards "can be met"
    together = np.divide(loads.stddev**2, alone, out=np.ones_like(alone), where=alone > 0.0)
    for r in SIZED:
        hosts = Places(names=loads.host_ids, owner=loads.owner, capacity=loads.capacity[:, r], together=together[:, r])
        found += crowded(loads, z, r, "host", hosts)
        found += crowded(loads, z, r, "fleet", Places(names=("",), owner=everywhere, capacity=total[:, r], together=np.ones((1, 1))))
    return tuple(sorted(found, key=lambda each: (("ceiling", "host", "fleet").index(each.cause), each.client, each.where, each.resource)))


def above_ceilings(loads: HostLoads, z: F64) -> list[Infeasible]:
    """VMs that may never be given what they need."""
    top = np.array([ceilings(vm) for vm in loads.vms])[:, :, None]
    need = loads.vm_mean + z[:, None, None] * np.sqrt(loads.vm_variance)
    over = np.where(np.isfinite(top) & (loads.vm_variance > 0.0), need - top, 0.0)
    return [
        entry(loads.vms[v].domain.policy.client, r, "ceiling", loads.vms[v].domain.vm_id, over[v, r])
        for v, r in zip(*np.nonzero((over > 1e-3 * np.nan_to_num(top, nan=1.0)).any(axis=2)), strict=True)
        if r in SIZED
    ]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where VMs are together: hosts, or the fleet as one."""

    names: tuple[str, ...]
    owner: NDArray[np.int64]  # [v] place
    capacity: F64  # [place]
    together: F64  # [place, step] variance of the sum over that of independent VMs


def crowded(loads: HostLoads, z: F64, r: int, cause: Cause, places: Places) -> list[Infeasible]:
    """Clients that go short where their VMs are together, higher priorities first."""
    owner, capacity = places.owner, places.capacity
    priority = np.array([int(vm.domain.policy.priority) for vm in loads.vms])
    shape = (len(capacity), loads.vm_mean.shape[2])
    mean, spread, before = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    found: list[Infeasible] = []
    for p in range(3, -1, -1):
        members = np.flatnonzero(priority == p)
        if not len(members):
            continue
        own = np.zeros(shape)
        np.add.at(own, owner[members], loads.vm_mean[members, r])
        np.add.at(spread, owner[members], (z[members, None] ** 2) * loads.vm_variance[members, r])
        mean += own
        need = mean + np.sqrt(spread * places.together)
        short = np.maximum(need - np.maximum(capacity[:, None], before), 0.0)
        for place in np.flatnonzero((short > 1e-6 * capacity[:, None]).any(axis=1)):
            here = members[owner[members] == place]
            found += shared_out(loads, r, here, short[place] / np.maximum(own[place], 1e-9), cause, places.names[place])
        before = need
    return found


def shared_out(loads: HostLoads, r: int, here: NDArray[np.intp], share: F64, cause: Cause, where: str) -> list[Infeasible]:  # noqa: PLR0917
    """A class's shortage by client, in proportion to their mean demand. `share` [12]: missing over mean demand."""
    by_client: dict[str, F64] = {}
    for v in here:
        client = loads.vms[v].domain.policy.client
        by_client[client] = by_client.get(client, np.zeros(share.shape)) + loads.vm_mean[v, r] * share
    return [entry(client, r, cause, where, missing) for client, missing in by_client.items() if missing.max() > 0.0]


def entry(client: str, r: int, cause: Cause, where: str, missing: F64) -> Infeasible:
    """`missing` [12] in the unit of the resource."""
    steps = np.flatnonzero(missing > 0.0)
    return Infeasible(
        client=client,
        resource=int(r),
        cause=cause,
        where=where,
        missing=float(missing.max()),
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
    )
