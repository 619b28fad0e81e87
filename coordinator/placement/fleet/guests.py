"""The VMs of a placement as columns: who they are, what they will need, what moving them takes, why some stay, who peaks together. Pure.

One pass over the VM records (objects), arrays from there on. VMs without a forecast of CPU and memory count with what they were promised,
and stay. How far a group's VMs move together is what the forecast of their sum says: the rho for which
`sum(variance) + rho * ((sum of stddevs)^2 - sum(variance))` is the variance that the Aggregator learned for the sum, over CPU and the hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.aggregate.answer import GroupSums
from coordinator.model import F64, I8, ForecastBlock, HostState
from coordinator.placement.fleet.rulebook import Labels
from coordinator.placement.fleet.site import Moving, RuleSort, Site
from coordinator.placement.problem import I32, Bool
from coordinator.sizing.levers import promised
from shared.units import CPU, HORIZON_STEPS, MEMORY, NET_RX, NET_TX, RESOURCES

LEAST_RHO: Final = 0.02  # less is noise
DIRTY_GROWTH: Final = (0.25, 4.0)  # bounds of how a measured dirty rate follows the predicted CPU


@dataclass(frozen=True, kw_only=True)
class Guests:
    """The VMs of all hosts [w], those of the first hosts (the problem's, `inside` VMs) first; v are those inside."""

    host: I32  # [w] index of the host
    inside: int
    labels: Labels  # [w]
    inner: Labels  # [v]
    priority: I8  # [v]
    mean: F64  # [v, r, b] demand; a promise where there is no forecast
    stddev: F64  # [v, r, b] 0 there
    known: Bool  # [v] CPU and memory are forecast
    promise: F64  # [v, r] limits in force
    dirty: F64  # [v] measured bytes per second, NaN = never
    used_now: F64  # [v] CPU demand in the newest bucket
    since_move_s: F64  # [v]
    cannot: tuple[str, ...]  # [v] why the domain or its policy forbids a move, "" = nothing does


def read_guests(hosts: Sequence[HostState], inside_hosts: int, forecast: ForecastBlock) -> Guests:
    """Columns of every VM that runs on these hosts."""
    placed = [(h, vm) for h, host in enumerate(hosts) for vm in host.vms if vm.domain.running]
    vms = [vm for h, vm in placed if h < inside_hosts]
    domains = [vm.domain for _, vm in placed]
    policies = [domain.policy for domain in domains]
    labels = Labels(
        ids=[domain.vm_id for domain in domains],
        names=[domain.name for domain in domains],
        clients=[policy.client for policy in policies],
        applications=[policy.application for policy in policies],
    )
    row_of = {vm_id: i for i, vm_id in enumerate(forecast.vm_ids)}
    n = len(vms)
    rows = np.array([row_of.get(vm_id, -1) for vm_id in labels.ids[:n]], np.int64)
    promise = np.zeros((n, len(RESOURCES)))
    for r in (CPU, MEMORY, NET_RX, NET_TX):
        promise[:, r] = [promised(vm, r) for vm in vms]
    mean, stddev = (take(values, rows) for values in (forecast.mean, forecast.stddev))
    heard: Bool = np.isfinite(mean).all(axis=2) & np.isfinite(stddev).all(axis=2)  # type: ignore[assignment]  # [v, r], never a scalar
    mean = np.where(heard[:, :, None], mean, promise[:, :, None])
    cannot = [
        domain.capabilities.migrate or "cannot migrate"
        if domain.capabilities.migrate is not None
        else "excluded by policy"
        if domain.policy.excluded
        else ""
        for domain in domains[:n]
    ]
    return Guests(
        host=np.array([h for h, _ in placed], np.int32),
        inside=n,
        labels=labels,
        inner=Labels(ids=labels.ids[:n], names=labels.names[:n], clients=labels.clients[:n], applications=labels.applications[:n]),
        priority=np.array([policy.priority for policy in policies[:n]], np.int8),
        mean=mean,
        stddev=np.where(heard[:, :, None], stddev, 0.0),
        known=heard[:, CPU] & heard[:, MEMORY],
        promise=promise,
        dirty=np.array([vm.dirty_bytes_per_s for vm in vms]),
        used_now=np.array([vm.demand_now[CPU] for vm in vms]),
        since_move_s=np.array([vm.since_move_s for vm in vms]),
        cannot=tuple(cannot),
    )


def take(values: NDArray[np.float32], rows: NDArray[np.int64]) -> F64:
    """Rows of the forecast as float64, NaN where there is none."""
    if not len(values):
        return np.full((len(rows), *values.shape[1:]), np.nan)
    found = values[np.maximum(rows, 0)].astype(np.float64)
    found[rows < 0] = np.nan
    return found


def migration_s(guests: Guests, moving: Moving) -> F64:
    """Seconds [v] to copy each VM's memory in its quietest bucket while it dirties it; inf where that would not end.

    8 GiB over 125 MB/s at 20 MB/s dirty: 82 s. A measured dirty rate follows the CPU that is predicted against the CPU now.
    """
    quiet = guests.mean[:, CPU].min(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        growth = np.clip(np.nan_to_num(quiet / guests.used_now, nan=1.0), *DIRTY_GROWTH)
    dirty = np.where(np.isfinite(guests.dirty), guests.dirty * growth, moving.dirty_bytes_per_core_s * quiet / 1000.0)
    ends = dirty < moving.converges_below * moving.bytes_per_s
    return np.where(ends, guests.promise[:, MEMORY] / np.where(ends, moving.bytes_per_s - dirty, 1.0), np.inf)


def why_fixed(
    guests: Guests, seconds: F64, site: Site, *, leaving: Bool, most: float, cooling: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Why each VM stays, [v], "" = it may move. `leaving` [v]: its host must be emptied, so a cooldown does not hold it there.

    most: bytes that the largest host may promise.
    """
    why = list(guests.cannot)
    for rule in site.rules:
        if rule.kind is RuleSort.FIXED:
            for v in np.flatnonzero(guests.inner.match(rule)):
                why[v] = why[v] or rule.why or f"fixed by rule {rule.name!r}"
    recent = (
        np.fromiter((vm_id in cooling for vm_id in guests.inner.ids), bool, guests.inside) if cooling else np.zeros(guests.inside, bool)
    )
    recent = (recent | (guests.since_move_s < site.moving.cooldown_s)) & ~leaving
    reasons = (
        (guests.promise[:, MEMORY] > most, "larger than any host"),
        (~guests.known, "no forecast"),
        (recent, "moved recently"),
        (~np.isfinite(seconds), "dirties memory faster than it can be copied"),
    )
    for mask, text in reasons:
        for v in np.flatnonzero(mask):
            why[v] = why[v] or text
    return tuple(why)


def peaking_groups(guests: Guests, together: Sequence[GroupSums]) -> tuple[I32, F64, tuple[str, ...]]:
    """(group [v], rho [group], names): each VM in that of its groups (application, client) whose members move together most."""
    group = np.full(guests.inside, -1, np.int32)
    best = np.full(guests.inside, LEAST_RHO)
    rhos: list[float] = []
    names: list[str] = []
    spread = guests.stddev[:, CPU]
    for column, sums in zip((guests.inner.applications, guests.inner.clients), together, strict=False):
        row_of = {name: i for i, name in enumerate(sums.names)}
        rows = np.array([row_of.get(name, -1) if name else -1 for name in column], np.int64)
        of = np.flatnonzero((rows >= 0) & guests.known)
        alone = np.zeros((len(sums.names), HORIZON_STEPS))
        joined = np.zeros_like(alone)
        np.add.at(alone, rows[of], spread[of] ** 2)
        np.add.at(joined, rows[of], spread[of])
        learned = (sums.stddev[:, CPU].astype(np.float64) ** 2).sum(axis=1)
        between = (joined**2 - alone).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            rho = np.clip(np.nan_to_num((learned - alone.sum(axis=1)) / between, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)
        better = of[rho[rows[of]] > best[of]]
        best[better] = rho[rows[better]]
        group[better] = rows[better] + len(rhos)
        rhos += rho.tolist()
        names += sums.names
    return group, np.array(rhos), tuple(names)
