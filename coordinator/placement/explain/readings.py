"""A plan read three ways over its 12 buckets: per VM, per host, and per client and application on each host. Pure.

mean is the sum of the VMs' mean demand, high the same plus z deviations of the sum (what the plan keeps room for). VMs without a forecast
count with what they were promised. Units are those of shared.units.RESOURCES.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.model import F64
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.fleet_problem import FleetProblem
from coordinator.placement.problem import I32, NOWHERE
from shared.units import HORIZON_STEPS, RESOURCES


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """One resource over the 12 buckets from the plan's `issued_s` on."""

    resource: str
    room: float | None  # of the host, before any reserve; None = nobody knows
    mean: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class VmAhead:
    """One VM in the plan. host_before and host_after are "" where it runs nowhere."""

    vm_id: str
    client: str
    application: str
    host_before: str
    host_after: str
    fixed: str  # why it may not move, "" = it may
    migration_s: float | None  # how long a move takes; None = it would not end
    resources: tuple[Ahead, ...]


@dataclass(frozen=True, kw_only=True)
class HostAhead:
    """One host as it is now and as the plan leaves it."""

    host_id: str
    pool: str
    closed: bool  # maintenance or spare
    vms_before: int
    vms_after: int
    before: tuple[Ahead, ...]
    after: tuple[Ahead, ...]


@dataclass(frozen=True, kw_only=True)
class PartAhead:
    """What the VMs of one client or application take of one host, as the plan leaves it."""

    kind: str  # "client" or "application"
    name: str  # "" = VMs of none
    vms: int
    resources: tuple[Ahead, ...]


def vm_ahead(placed: Placed, vm_id: str) -> VmAhead | None:
    """None = the plan knows no such VM."""
    fleet, place = placed.fleet, placed.place
    if fleet is None or place is None or vm_id not in fleet.problem.vm_ids:
        return None
    v = fleet.problem.vm_ids.index(vm_id)
    seconds = float(fleet.seconds[v])
    row = np.array([v])
    return VmAhead(
        vm_id=vm_id,
        client=fleet.clients[v],
        application=fleet.applications[v],
        host_before=_name(fleet, int(fleet.problem.home[v])),
        host_after=_name(fleet, int(place[v])),
        fixed=fleet.problem.why_fixed[v],
        migration_s=seconds if np.isfinite(seconds) else None,
        resources=_ahead(fleet, row, None if place[v] == NOWHERE else int(place[v])),
    )


def hosts_ahead(placed: Placed, host_ids: tuple[str, ...] | None = None, limit: int | None = None) -> tuple[HostAhead, ...]:
    """Hosts of the plan, those whose VMs change first, then by id."""
    fleet, place = placed.fleet, placed.place
    if fleet is None or place is None:
        return ()
    home = fleet.problem.home
    wanted = [h for h, name in enumerate(fleet.problem.host_ids) if host_ids is None or name in host_ids]
    moved = np.flatnonzero(place != home)
    changed = set(home[moved].tolist()) | set(place[moved].tolist())
    wanted.sort(key=lambda h: (h not in changed, fleet.problem.host_ids[h]))
    return tuple(_host(fleet, home, place, h) for h in wanted[:limit])


def parts_ahead(placed: Placed, host_id: str) -> tuple[PartAhead, ...]:
    """Clients, then applications, of one host as the plan leaves it, the largest user of CPU first."""
    fleet, place = placed.fleet, placed.place
    if fleet is None or place is None or host_id not in fleet.problem.host_ids:
        return ()
    h = fleet.problem.host_ids.index(host_id)
    out: list[PartAhead] = []
    for kind, column in (("client", fleet.clients), ("application", fleet.applications)):
        members: dict[str, list[int]] = {}
        for v in np.flatnonzero(place == h).tolist():
            members.setdefault(column[v], []).append(v)
        parts = [PartAhead(kind=kind, name=name, vms=len(vms), resources=_ahead(fleet, np.array(vms), h)) for name, vms in members.items()]
        out += sorted(parts, key=lambda part: (-sum(part.resources[0].mean), part.name))
    return tuple(out)


def _host(fleet: FleetProblem, home: I32, place: I32, h: int) -> HostAhead:
    before, after = np.flatnonzero(home == h), np.flatnonzero(place == h)
    return HostAhead(
        host_id=fleet.problem.host_ids[h],
        pool=fleet.pools[fleet.pool[h]],
        closed=bool(fleet.problem.closed[h]),
        vms_before=len(before),
        vms_after=len(after),
        before=_ahead(fleet, before, h),
        after=_ahead(fleet, after, h),
    )


def _ahead(fleet: FleetProblem, vms: np.ndarray, h: int | None) -> tuple[Ahead, ...]:
    mean = fleet.mean[vms].astype(np.float64).sum(axis=0)
    high = mean + fleet.z * np.sqrt(np.maximum(_variance(fleet, vms), 0.0))
    return tuple(
        Ahead(
            resource=name,
            room=float(fleet.room[h, r]) if h is not None and np.isfinite(fleet.room[h, r]) else None,
            mean=tuple(mean[r].tolist()),
            high=tuple(high[r].tolist()),
        )
        for r, name in enumerate(RESOURCES)
    )


def _variance(fleet: FleetProblem, vms: np.ndarray) -> F64:
    """Variance [r, b] of the sum of these VMs, what groups add included."""
    spread = fleet.stddev[vms].astype(np.float64)
    found = (spread**2).sum(axis=0) if len(vms) else np.zeros((len(RESOURCES), HORIZON_STEPS))
    group = fleet.problem.group[vms]
    for g in np.unique(group[group >= 0]).tolist():
        own = spread[group == g]
        found = found + fleet.problem.rho[g] * (own.sum(axis=0) ** 2 - (own**2).sum(axis=0))
    return np.asarray(found)


def _name(fleet: FleetProblem, h: int) -> str:
    return "" if h == NOWHERE else fleet.problem.host_ids[h]
