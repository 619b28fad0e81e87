"""Where hosts will be short within the hour, what that is expected to cost, and what a little more would save: shadow prices, published.

Per host, resource and bucket: every VM wants the quantile of its bucket's mean that its priority is sized by, floors and ceilings
respected. Where these pass what the host may promise, the program of shortage.py shares it out bucket by bucket; the sum of its penalties
over the buckets is what the shortage is expected to cost, and what would be served next says what one grain more (1 vCPU, 1 GiB, 100
Mbit/s) would save. Only short hosts are solved; the look at the others is a few array operations for the whole fleet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.model import F64, N_RESOURCES, ForecastBlock, HostState, VmState
from coordinator.sizing.ahead import rows_of
from coordinator.sizing.levers import GRAIN, NAN, ceilings, commit_limits, floors
from coordinator.sizing.margin import HostLoads
from coordinator.sizing.shortage import Cell, relieve
from coordinator.sizing.target import interpolate
from coordinator.sizing.weigh import Terms, money_weight
from shared.units import BUCKET_S, HORIZON_STEPS

BUCKET_MINUTES: Final = BUCKET_S / 60.0
# Hosts that are solved in one cycle, 5 ms each: those that miss the greatest share of what they have. Of the others no money is known.
MOST_SOLVED: Final = 200


@dataclass(frozen=True, kw_only=True)
class Scarcity:
    """One resource of one host that will be short. Money over the hour ahead."""

    resource: int
    first_step: int
    last_step: int
    missing: float  # in the worst step, in the unit of the resource
    penalty: float  # expected SLA penalty of what VMs will lack; NaN, as the next two: not worked out, too many hosts are short
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
    lacking = np.where(short, sums / limits, 0.0).max(axis=(1, 2))
    worst = np.argsort(-lacking, kind="stable")[:MOST_SOLVED].tolist()
    found = {}
    for h in np.flatnonzero(lacking > 0.0).tolist():
        rows = np.flatnonzero(loads.owner == h)
        parts = []
        for r in np.flatnonzero(short[h].any(axis=1)).tolist():
            vms = [loads.vms[v] for v in rows]
            limit = float(limits[h, r, 0])
            solved = (
                cells_of(vms, r, wants[rows, r], quantiles[rows, r], limit=limit, terms=terms, levels=forecast.levels) if h in worst else ()
            )
            parts.append(scarcity(r, sums[h, r] - limit, solved))
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


def scarcity(r: int, missing: F64, cells: Sequence[Cell]) -> Scarcity:
    """One resource of one host from what is missing [12] and the program's cells of the short buckets; none = leave the money unknown."""
    steps = np.flatnonzero(missing > 0.0)
    reliefs = relieve(cells, GRAIN[r])
    known = 1.0 if cells else NAN
    return Scarcity(
        resource=r,
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        missing=float(missing.max()),
        penalty=known * BUCKET_MINUTES * sum(relief.penalty for relief in reliefs),
        price=known * BUCKET_MINUTES * GRAIN[r] * sum(relief.price for relief in reliefs),
        saves=known * BUCKET_MINUTES * sum(relief.saves for relief in reliefs),
    )


def cells_of(
    vms: Sequence[VmState], r: int, wants: F64, quantiles: F64, *, limit: float, terms: Terms, levels: tuple[float, ...]
) -> tuple[Cell, ...]:
    """One cell for every bucket in which these wants [v, 12] pass the limit."""
    floor = np.minimum(np.nan_to_num(np.array([floors(vm, terms.policy)[r] for vm in vms])), wants.min(axis=1))
    chance = np.broadcast_to(1.0 - np.asarray(levels), (len(vms), len(levels)))
    cells = []
    for step in np.flatnonzero(wants.sum(axis=0) > limit):
        size, most = quantiles[:, step], wants[:, step]
        weight = np.array([money_weight(vm, terms, float(top)) for vm, top in zip(vms, size[:, -1], strict=True)])
        cells.append(Cell(least=np.zeros(len(vms)), floor=floor, most=most, size=size, exceed=chance, weight=weight, room=limit))
    return tuple(cells)
