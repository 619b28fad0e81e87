"""One look at the whole fleet per cycle: what hosts must carry, where they will be short, who cannot be served, whether a host may fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coordinator.forecast.aggregate import AggregateForecast
from coordinator.model import N_RESOURCES, ForecastBlock, HostState
from coordinator.sizing.feasible import Infeasible, Objectives, infeasible
from coordinator.sizing.margin import HostLoads, host_loads
from coordinator.sizing.scarcity import Scarcity, scarcities
from coordinator.sizing.spare import Spare, kept_free, spare_of, stranded
from coordinator.sizing.weigh import Terms
from shared.units import CPU, DISK

NOTHING_KEPT = (0.0,) * N_RESOURCES


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """As seen at `issued_s`, over the hour ahead."""

    issued_s: int
    loads: HostLoads
    scarce: Mapping[str, tuple[Scarcity, ...]]  # host_id -> what will be short there
    infeasible: tuple[Infeasible, ...]
    spare: tuple[Spare, ...]  # pools and resources, and whether any one host may fail
    stranded: Mapping[str, tuple[str, ...]]  # pool -> VMs that would find no place if its fullest host failed
    pools: Mapping[str, str] = field(default_factory=dict)

    def kept_free(self, host_id: str, spare_hosts: int) -> tuple[float, ...]:
        """[r] share of a host that growth leaves free; nothing where no host is to be spared."""
        return kept_free(self.spare, self.pools, host_id) if spare_hosts else NOTHING_KEPT

    def margin(self, host_id: str, z: float) -> tuple[float, ...]:
        """[r] z deviations of a host's sum within two steps, where those of the sum itself are known; inf elsewhere."""
        loads = self.loads
        if host_id not in loads.host_ids:
            return (math.inf,) * N_RESOURCES
        h = loads.host_ids.index(host_id)
        spread = z * loads.stddev[h, :, :2].max(axis=1)
        return tuple(np.where((loads.learned[h] > 0.0) & np.isfinite(spread), spread, np.inf).tolist())


def look_at_fleet(
    hosts: Sequence[HostState],
    forecast: ForecastBlock,
    aggregates: AggregateForecast | None,
    terms: Terms,
    *,
    objectives: Objectives,
    pools: Mapping[str, str],
) -> Foresight:
    """Of the alive hosts. `pools`: host_id -> pool; hosts that are not named are one."""
    alive = [host for host in hosts if host.alive]
    z = terms.policy.margin_z
    loads = host_loads(alive, forecast, aggregates, terms.policy.client_rho)
    spares = spare_of(loads, z, pools)
    homeless = {}
    for spare in spares:
        if spare.resource == CPU:
            rows = [h for h, host_id in enumerate(loads.host_ids) if pools.get(host_id, "") == spare.pool]
            fullest = max(rows, key=lambda h: fullness(loads, h, z))
            homeless[spare.pool] = stranded(loads, fullest, rows, z)
    return Foresight(
        issued_s=forecast.issued_s,
        loads=loads,
        scarce=scarcities(alive, loads, forecast, terms),
        infeasible=infeasible(loads, objectives),
        spare=spares,
        stranded=homeless,
        pools=pools,
    )


def fullness(loads: HostLoads, h: int, z: float) -> float:
    """A host's largest load over its capacity, over resources and steps."""
    worst = 0.0
    for r in range(N_RESOURCES):
        if r != DISK and loads.capacity[h, r] > 0.0:
            worst = max(worst, float((loads.mean[h, r] + z * loads.stddev[h, r]).max() / loads.capacity[h, r]))
    return worst
