"""What sizing sees coming, for the API: hosts that will be short and what more would save, clients' error budgets, spare capacity. Pure."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from coordinator.learning.budgets import ErrorBudgets
from coordinator.sizing.foresight import Foresight
from coordinator.sizing.levers import GRAIN, SIZED
from coordinator.sizing.margin import HostLoads
from shared.units import BUCKET_S, RESOURCES

Resource = Literal["cpu_millicores", "memory_bytes", "disk_bytes_per_s", "net_rx_bits_per_s", "net_tx_bits_per_s"]


class HostLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What one host must carry within the hour of one resource: mean + z deviations of the sum of its VMs, not a sum of their peaks."""

    resource: Resource
    capacity: float  # of the hardware, for VMs
    mean: float | None  # in the fullest 5-minute step
    margin: float | None  # the deviations on top of it
    step_s: int  # when that step begins
    learned: bool  # the deviation is that of the sum itself, covariances included; false = of its VMs, added by a fixed correlation


class HostScarcity(msgspec.Struct, frozen=True, kw_only=True):
    """A resource of which one host may not promise what its VMs want within the hour. Money over that hour."""

    host_id: str
    resource: Resource
    from_s: int
    until_s: int
    missing: float  # in the worst step
    penalty: float | None  # expected SLA penalty of what VMs will lack; None, as the next two: too many hosts are short to work it out
    grain: float  # so much more here ...
    grain_price: float | None  # ... would save this, if all of it were worth as much as its first unit (the shadow price)
    grain_saves: float | None  # ... would really save this


class ClientBudget(msgspec.Struct, frozen=True, kw_only=True):
    """One client's SLA error budget. Shares of its VMs' time, since the coordinator started or over the period."""

    client: str
    budget: float
    violated: float
    burn_rate: float  # 1 = used up at the period's end at this pace; above, its VMs weigh more
    spent: float  # of the whole period's budget


class InfeasibleObjective(msgspec.Struct, frozen=True, kw_only=True):
    """A client's objective that cannot be met within the hour, by the forecast, and how much is missing in the worst step."""

    client: str
    resource: Resource
    cause: Literal["ceiling", "host", "fleet"]
    where: str  # VM, host, or "" for the fleet
    missing: float
    from_s: int
    until_s: int


class PoolSpare(msgspec.Struct, frozen=True, kw_only=True):
    """Whether any one host of a pool may fail: the needs of its VMs against what the others have free, in the worst step."""

    pool: str
    resource: Resource
    hosts: int
    worst_host: str
    step_s: int
    needed: float
    free: float
    missing: float  # 0 = in sum it fits
    keep_share: float  # share of every host that must stay free so that it fits
    stranded: tuple[str, ...]  # VMs of the pool's fullest host that find no place one by one; at most 100


class SizingView(msgspec.Struct, frozen=True, kw_only=True):
    """Of the newest decision cycle."""

    issued_s: int | None  # None = no decision was made yet
    scarce: tuple[HostScarcity, ...]
    budgets: tuple[ClientBudget, ...]
    infeasible: tuple[InfeasibleObjective, ...]
    spare: tuple[PoolSpare, ...]


def sizing_view(found: Foresight | None, budgets: ErrorBudgets, limit: int) -> SizingView:
    """At most `limit` of every kind: hosts with the dearest shortage, clients that burn fastest and greatest lacks first."""
    clients = sorted(budgets.standings(), key=lambda client: (-client.burn, -client.spent, client.client))[:limit]
    told = tuple(ClientBudget(client=c.client, budget=c.budget, violated=c.violated, burn_rate=c.burn, spent=c.spent) for c in clients)
    if found is None:
        return SizingView(issued_s=None, scarce=(), budgets=told, infeasible=(), spare=())
    return SizingView(
        issued_s=found.issued_s,
        scarce=tuple(sorted(_scarce(found), key=lambda each: (-(each.penalty or 0.0), each.host_id))[:limit]),
        budgets=told,
        infeasible=tuple(
            InfeasibleObjective(
                client=each.client,
                resource=RESOURCES[each.resource],
                cause=each.cause,
                where=each.where,
                missing=each.missing,
                from_s=found.issued_s + BUCKET_S * each.first_step,
                until_s=found.issued_s + BUCKET_S * (each.last_step + 1),
            )
            for each in found.infeasible[:limit]
        ),
        spare=tuple(
            PoolSpare(
                pool=each.pool,
                resource=RESOURCES[each.resource],
                hosts=each.hosts,
                worst_host=each.host_id,
                step_s=found.issued_s + BUCKET_S * each.step,
                needed=each.needed,
                free=each.free,
                missing=each.missing,
                keep_share=each.keep,
                stranded=found.stranded.get(each.pool, ())[:100],
            )
            for each in found.spare[:limit]
        ),
    )


def host_load(found: Foresight | None, host_id: str, z: float) -> tuple[HostLoad, ...]:
    """Every sized resource of one host; nothing before the first decision."""
    if found is None or host_id not in found.loads.host_ids:
        return ()
    loads, h = found.loads, found.loads.host_ids.index(host_id)
    return tuple(_load(loads, h, r, z, found.issued_s) for r in SIZED)


def _load(loads: HostLoads, h: int, r: int, z: float, issued_s: int) -> HostLoad:
    step = int((loads.mean[h, r] + z * loads.stddev[h, r]).argmax())
    return HostLoad(
        resource=RESOURCES[r],
        capacity=float(loads.capacity[h, r]),
        mean=_known(loads.mean[h, r, step]),
        margin=_known(z * loads.stddev[h, r, step]),
        step_s=issued_s + BUCKET_S * step,
        learned=bool(loads.learned[h, r]),
    )


def _scarce(found: Foresight) -> list[HostScarcity]:
    return [
        HostScarcity(
            host_id=host_id,
            resource=RESOURCES[each.resource],
            from_s=found.issued_s + BUCKET_S * each.first_step,
            until_s=found.issued_s + BUCKET_S * (each.last_step + 1),
            missing=each.missing,
            penalty=_known(each.penalty),
            grain=GRAIN[each.resource],
            grain_price=_known(each.price),
            grain_saves=_known(each.saves),
        )
        for host_id, parts in found.scarce.items()
        for each in parts
    ]


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
