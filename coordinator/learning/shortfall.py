"""Where capacity will be short within the hour, by how much, and the cheapest way out, with names and numbers. Pure.

A pool is short of a resource where even a perfect placement could not hold what its VMs want: the sum over its awake hosts of the forecast
load, plus z deviations of that sum, passes the sum of their capacities. Deviations of hosts add as those of independent ones. Cheapest
fix: hosts already waking count first, then sleeping ones are woken, fewest first (largest, of equal size the one that wakes fastest); what
is left has to be bought or given up, and the text says how much. A host is short on its own where its pool is not: then VMs move, fewest
first, each to the pool's host with most room at that step that can take it. Worked: 10 hosts of 64 GiB that want 700 +- 20 GiB at z = 1.5:
730 - 640 = 90 GiB short, two sleepers of 64 GiB close it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64
from coordinator.sizing.levers import SIZED
from coordinator.sizing.margin import HostLoads
from shared.units import BUCKET_S, CPU, GIB, MEMORY, RESOURCES

MAX_NAMED: Final = 5  # hosts or VMs in one text; the rest is counted
LEAST_SHARE: Final = 1e-3  # of the capacity: less is rounding


@dataclass(frozen=True, kw_only=True)
class Sleeper:
    """A host that is asleep, or on its way back. `capacity` [r] in the resources' units, `lead_s` from the order to its first word."""

    host_id: str
    pool: str
    capacity: tuple[float, ...]
    lead_s: float
    waking: bool = False


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """One pool (`host_id` empty) or host and resource, in the resource's unit."""

    pool: str
    host_id: str
    resource: int
    at_s: int  # start of the first bucket that is short
    missing: float  # in the worst bucket
    wanted: float  # in that bucket
    capacity: float
    wake: tuple[str, ...] = ()
    waking: tuple[str, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()  # VM, host to take it
    left: float = 0.0  # missing even then

    @property
    def summary(self) -> str:
        """One sentence with the numbers and the cheapest fix: as an operator would say it."""
        where = f"host {self.host_id}" if self.host_id else f"pool {self.pool}" if self.pool else "the fleet"
        what = amount(self.resource, self.missing)
        return f"{where} short of {what} at {datetime.fromtimestamp(self.at_s, UTC):%H:%M} UTC, cheapest fix: {self.fix}"

    @property
    def fix(self) -> str:
        """What to do."""
        parts = []
        if self.waking:
            parts.append(f"{len(self.waking)} hosts are waking already ({named(self.waking)})")
        if self.wake:
            parts.append(f"wake {len(self.wake)} hosts ({named(self.wake)})")
        if self.moves:
            parts.append(f"move {len(self.moves)} VMs ({named([f'{vm} to {host}' for vm, host in self.moves])})")
        if self.left > 0.0:
            parts.append(f"{'then ' if parts else ''}add {amount(self.resource, self.left)} of hosts, or give less")
        return ", ".join(parts)


def shortfalls(loads: HostLoads, z: float, pools: Mapping[str, str], sleepers: Sequence[Sleeper], issued_s: int) -> tuple[Shortfall, ...]:
    """Pools first, then hosts of pools that are not short of that resource; worst first within each."""
    if not loads.host_ids:
        return ()
    of = np.array([pools.get(host_id, "") for host_id in loads.host_ids])
    found, single = [], []
    for pool in sorted(set(of.tolist())):
        rows = np.flatnonzero(of == pool)
        for r in SIZED:
            capacity = loads.capacity[rows, r]
            if not np.isfinite(capacity).all() or capacity.sum() <= 0.0:
                continue
            load = loads.mean[rows, r].sum(axis=0) + z * np.sqrt((loads.stddev[rows, r] ** 2).sum(axis=0))
            short = load - capacity.sum()
            if short.max() > LEAST_SHARE * capacity.sum():
                found.append(_pool_short(pool, r, short, load, capacity=float(capacity.sum()), sleepers=sleepers, issued_s=issued_s))
            else:
                single += _hosts_short(loads, rows, r, z, pool=pool, issued_s=issued_s)
    worst = sorted(found, key=lambda each: -each.missing / max(each.capacity, 1.0))
    return (*worst, *sorted(single, key=lambda each: -each.missing / max(each.capacity, 1.0)))


def _pool_short(pool: str, r: int, short: F64, load: F64, *, capacity: float, sleepers: Sequence[Sleeper], issued_s: int) -> Shortfall:
    step = int(np.argmax(short))
    missing = left = float(short[step])
    mine = [each for each in sleepers if each.pool == pool and each.capacity[r] > 0.0]
    used: list[Sleeper] = []
    for sleeper in sorted(mine, key=lambda each: (not each.waking, -each.capacity[r], each.lead_s, each.host_id)):
        if left <= 0.0 and not sleeper.waking:
            break
        left -= sleeper.capacity[r]
        used.append(sleeper)
    return Shortfall(
        pool=pool,
        host_id="",
        resource=r,
        at_s=issued_s + BUCKET_S * int(np.argmax(short > 0.0)),
        missing=missing,
        wanted=float(load[step]),
        capacity=capacity,
        wake=tuple(each.host_id for each in used if not each.waking),
        waking=tuple(each.host_id for each in used if each.waking),
        left=max(0.0, left),
    )


def _hosts_short(loads: HostLoads, rows: NDArray[np.intp], r: int, z: float, *, pool: str, issued_s: int) -> list[Shortfall]:
    capacity = loads.capacity[rows, r]
    upper = loads.mean[rows, r] + z * loads.stddev[rows, r]
    short = upper - capacity[:, None]
    # [h, r, 12], made smaller by what moves there: two hosts that are short do not count on the same room
    room = loads.capacity[rows][:, :, None] - loads.upper(z)[rows]
    found = []
    for i in np.flatnonzero(short.max(axis=1) > LEAST_SHARE * capacity):
        step = int(np.argmax(short[i]))
        moves, left = _moves(loads, rows, int(i), r, step=step, missing=float(short[i, step]), room=room, z=z)
        found.append(
            Shortfall(
                pool=pool,
                host_id=loads.host_ids[rows[i]],
                resource=r,
                at_s=issued_s + BUCKET_S * int(np.argmax(short[i] > 0.0)),
                missing=float(short[i, step]),
                wanted=float(upper[i, step]),
                capacity=float(capacity[i]),
                moves=tuple(moves),
                left=left,
            )
        )
    return found


def _moves(
    loads: HostLoads, rows: NDArray[np.intp], i: int, r: int, *, step: int, missing: float, room: F64, z: float
) -> tuple[list[tuple[str, str]], float]:
    """VMs of host `i` to move, and what is missing even then. Takes what they need from `room` [h, r, 12] of their targets."""
    mine = np.flatnonzero(loads.owner == rows[i])
    need = loads.vm_mean[mine] + z * np.sqrt(loads.vm_variance[mine])
    moves: list[tuple[str, str]] = []
    # the smallest VM that closes the gap alone, else the largest: few moves, and no larger than needed
    order = sorted(range(len(mine)), key=lambda v: (need[v, r, step] < missing, abs(need[v, r, step] - missing)))
    for v in order:
        if missing <= 0.0 or len(moves) >= MAX_NAMED:
            break
        after = room - need[v]
        after[i] = -np.inf
        fits = np.where(np.isnan(after), np.inf, after).min(axis=(1, 2)) >= 0.0
        if not fits.any():
            continue
        target = int(np.argmax(np.where(fits, after[:, r, step], -np.inf)))
        room[target] -= need[v]
        missing -= float(need[v, r, step])
        moves.append((loads.vms[mine[v]].domain.vm_id, loads.host_ids[rows[target]]))
    return moves, max(0.0, missing)


def amount(resource: int, value: float) -> str:
    """96 GiB, 3.5 cores, 250 Mbit/s."""
    if resource == MEMORY:
        return f"{value / GIB:.3g} GiB" if value < 1000 * GIB else f"{value / GIB:.0f} GiB"
    if resource == CPU:
        return f"{value / 1000:.3g} cores"
    if RESOURCES[resource].endswith("bits_per_s"):
        return f"{value / 1e6:.4g} Mbit/s"
    return f"{value / 1e6:.4g} MB/s"


def named(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
