"""On what terms hosts run: price, power, who is closed or kept spare. Pure.

Money over the hour of a host with VMs = its price in this hour + its watts at its mean load x the price of energy. Without VMs it costs
its idle watts, or what it takes asleep where it may sleep, and the share of its price that an empty host still costs. Waking it costs the
energy of its start, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.model import F64, HostState
from coordinator.placement.fleet.site import Duty, HostTraits, Pool
from coordinator.placement.problem import I32, Bool


@dataclass(frozen=True, kw_only=True)
class Terms:
    """By host [h], and by pool [p] of those that hosts are in."""

    pools: tuple[Pool, ...]  # [p]
    pool: I32  # [h]
    price: F64  # [h] money over the hour while it has VMs, without energy
    empty_price: F64  # [h]
    watts: F64  # [h, point]
    empty_watts: F64  # [h]
    energy_price: F64  # [h] per kWh
    wake_cost: F64  # [h]
    closed: Bool  # [h]
    notes: tuple[str, ...]


def make_terms(
    hosts: Sequence[HostState], traits: Sequence[HostTraits], pools: Sequence[Pool], asleep: frozenset[str], issued_s: int
) -> Terms:
    """The terms of these hosts in the hour that begins at `issued_s`; pools [h] is each host's, traits [h] have nothing left open."""
    unique = list({pool.name: pool for pool in pools}.values())
    index = {pool.name: i for i, pool in enumerate(unique)}
    hour, minutes = issued_s // 3600 % 24, issued_s % 3600 / 3600.0
    # the hour ahead is part of two hours of the clock
    price = np.array([pool.price_at(hour) * (1.0 - minutes) + pool.price_at((hour + 1) % 24) * minutes for pool in pools])
    full = np.array([trait.watts for trait in traits], np.float64)
    points = np.linspace(0.0, 1.0, full.shape[1])
    # the problem's capacity is what a reserve leaves: its 100 % are less of the host's
    watts = np.array([np.interp(points * (1.0 - pool.reserve), points, row) for pool, row in zip(pools, full, strict=True)])
    sleeps = np.array([bool(trait.sleep) for trait in traits])
    energy = np.array([pool.energy_price_per_kwh for pool in pools])
    starting = np.array([host.host_id in asleep for host in hosts])
    wake_s = np.array([trait.wake_s or 0 for trait in traits], np.float64)
    closed, notes = close_hosts(hosts, traits, pools)
    return Terms(
        pools=tuple(unique),
        pool=np.array([index[pool.name] for pool in pools], np.int32),
        price=price,
        empty_price=price * np.array([pool.empty_price_share for pool in pools]),
        watts=watts,
        empty_watts=np.where(sleeps, np.array([trait.sleep_watts or 0.0 for trait in traits]), watts[:, 0]),
        energy_price=energy,
        wake_cost=np.where(starting, full[:, -1] / 1000.0 * wake_s / 3600.0 * energy, 0.0),
        closed=closed,
        notes=notes,
    )


def close_hosts(hosts: Sequence[HostState], traits: Sequence[HostTraits], pools: Sequence[Pool]) -> tuple[Bool, tuple[str, ...]]:
    """(closed [h], notes): hosts in maintenance or spare by name, and the largest empty hosts of pools that keep spares."""
    closed = np.array([trait.state is not Duty.ACTIVE for trait in traits], bool)
    notes = []
    for pool in {each.name: each for each in pools}.values():
        own = [h for h, each in enumerate(pools) if each.name == pool.name]
        wanted = pool.spares - sum(traits[h].state is Duty.SPARE for h in own)
        empty = [h for h in own if not closed[h] and not any(vm.domain.running for vm in hosts[h].vms)]
        empty.sort(key=lambda h: (-hosts[h].capacity.memory_bytes, -hosts[h].capacity.cpu_millicores, hosts[h].host_id))
        closed[empty[: max(0, wanted)]] = True
        if wanted > len(empty):
            notes.append(
                f"pool {pool.name!r} keeps {pool.spares - wanted + len(empty)} of {pool.spares} spare hosts: no other host is empty"
            )
    return closed, tuple(notes)
