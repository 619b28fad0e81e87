"""Where hosts will be short within the hour, what that is expected to cost, and what a little more would save: shadow prices, published.

Per host, resource and bucket: every VM wants the quantile of its bucket's mean that its priority is sized by, floors and ceilings
respected. Where these pass what the host may promise, the program of shortage.py shares it out bucket by bucket; the sum of its penalties
over the buckets is what the shortage is expected to cost, and the same program with one grain more (1 vCPU, 1 GiB, 100 Mbit/s) says what
that would save. Only short hosts are solved; the look at the others is a few array operations for the whole fleet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64, N_RESOURCES, ForecastBlock, HostState
from coordinator.sizing.ahead import rows_of
from coordinator.sizing.levers import GRAIN, PROMISED, ceilings, commit_limits, floors
from coordinator.sizing.margin import HostLoads
from coordinator.sizing.shortage import Cell, relieve
from coordinator.sizing.target import interpolate
from coordinator.sizing.weigh import Terms, money_weight
from shared.units import BUCKET_S, HORIZON_STEPS

BUCKET_MINUTES: Final = BUCKET_S / 60.0


@dataclass(frozen=True, kw_only=True)
class Scarcity:
    """One resource of one host that will be short. Money over the hour ahead."""

    resource: int
    first_step: int
    last_step: int
    missing: float  # in the worst step, in the unit of the resource
    penalty: float  # expected SLA penalty of what VMs will lack
    price: float  # of one grain, by the duals: what it would save if all of it were as useful as its first unit
    saves: float  # what one grain more would really save


def scarcities(hosts: Sequence[HostState], loads: HostLoads, forecast: ForecastBlock, terms: Terms) -> dict[str, tuple[Scarcity, ...]]:
    """host_id -> what will be short there; hosts that hold what their VMs want are absent. `loads` of the same hosts."""
    if not loads.vms:
        return {}
    wants, quantiles = wants_of(loads, forecast, terms)
    sums = np.zeros((len(hosts), N_RESOURCES, HORIZON_STEPS))
    np.add.at(sums, loads.owner, wants)
    limits = np.array([commit_limits(host) for host in hosts])[:, :, None]
    short = np.isfinite(limits) & (sums > limits * (1.0 + 1e-9))
    found = {}
    for h in np.flatnonzero(short.any(axis=(1, 2))).tolist():
        rows = np.flatnonzero(loads.owner == h)
        parts = [
            scarcity(loads, rows, r, wants[rows, r], quantiles[rows, r], limit=float(limits[h, r, 0]), terms=terms, levels=forecast.levels)
            for r in PROMISED
            if short[h, r].any()
        ]
        found[hosts[h].host_id] = tuple(parts)
    return found


def wants_of(loads: HostLoads, forecast: ForecastBlock, terms: Terms) -> tuple[F64, F64]:
    """(wants [v, r, 12], quantiles [v, r, 12, q]) of all VMs; a VM without a forecast wants what it was promised, for certain."""
    policy = terms.policy
    place = rows_of(forecast.vm_ids)
    at = np.array([place.get(vm.domain.vm_id, -1) for vm in loads.vms], np.int64)
    quantiles = forecast.quantiles[at].astype(np.float64)
    level = np.minimum(np.array([policy.size_quantile[int(vm.domain.policy.priority)] for vm in loads.vms]), forecast.levels[-1])
    blind = (at < 0)[:, None] | (loads.vm_variance <= 0.0).all(axis=2) | ~np.isfinite(quantiles).all(axis=(2, 3))
    quantiles = np.where(blind[:, :, None, None], loads.vm_mean[:, :, :1, None], quantiles)
    wants = interpolate(quantiles, forecast.levels, np.broadcast_to(level[:, None, None], quantiles.shape[:-1]))
    low = np.array([floors(vm, policy) for vm in loads.vms])[:, :, None]
    high = np.array([ceilings(vm) for vm in loads.vms])[:, :, None]
    return np.clip(wants, np.nan_to_num(low), np.nan_to_num(high, nan=np.inf)), quantiles


def scarcity(
    loads: HostLoads,
    rows: NDArray[np.intp],
    r: int,
    wants: F64,
    quantiles: F64,
    *,
    limit: float,
    terms: Terms,
    levels: tuple[float, ...],
) -> Scarcity:
    """The program for every short bucket of one resource, and once more with a grain more."""
    vms = [loads.vms[v] for v in rows]
    floor = np.minimum(np.nan_to_num(np.array([floors(vm, terms.policy)[r] for vm in vms])), wants.min(axis=1))
    steps = np.flatnonzero(wants.sum(axis=0) > limit)
    chance = np.broadcast_to(1.0 - np.asarray(levels), (len(rows), len(levels)))
    cells = []
    for step in steps:
        size = quantiles[:, step]
        weight = np.array([money_weight(vm, terms, float(top)) for vm, top in zip(vms, size[:, -1], strict=True)])
        cells.append(Cell(least=np.zeros(len(rows)), floor=floor, most=wants[:, step], size=size, exceed=chance, weight=weight, room=limit))
    now, more = relieve(cells), relieve([replace(cell, room=limit + GRAIN[r]) for cell in cells])
    return Scarcity(
        resource=r,
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        missing=float((wants.sum(axis=0) - limit).max()),
        penalty=BUCKET_MINUTES * sum(relief.penalty for relief in now),
        price=BUCKET_MINUTES * GRAIN[r] * sum(relief.price for relief in now),
        saves=BUCKET_MINUTES * sum(max(0.0, a.penalty - b.penalty) for a, b in zip(now, more, strict=True)),
    )
