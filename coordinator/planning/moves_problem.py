"""Advised moves as a problem and a goal for the order of moves: CPU per bucket (soft), promises of CPU and memory (hard).

The one place that turns placement's answer into what execution works on; moves of a VM that is elsewhere by now are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from coordinator.model import F64, ForecastBlock, HostState, Move, Outlook
from coordinator.placement.instance import GRANTED, PlacementPolicy, fill, host_capacity, migration_s
from coordinator.placement.problem import CURVE_POINTS, I32, NOWHERE, Problem
from coordinator.sizing.levers import promised
from shared.units import BUCKET_S, CPU, HORIZON_STEPS

DEFAULT_POLICY: Final = PlacementPolicy()
HALF_HOUR_S: Final = 1800
Z_90: Final = 1.2816  # stddevs from a normal's median to its .9 quantile


def goal_of(
    hosts: Sequence[HostState],
    forecast: ForecastBlock,
    advised: Sequence[Move],
    racks: Mapping[str, str],
    asleep: frozenset[str] = frozenset(),
) -> tuple[Problem, I32, F64]:
    """(problem, goal [v], seconds of each migration [v]) of these hosts; silent ones are closed unless asleep. Some VMs are fixed."""
    index = {host.host_id: h for h, host in enumerate(hosts)}
    placed = [(h, vm) for h, host in enumerate(hosts) for vm in host.vms if vm.domain.running]
    rows = {vm_id: i for i, vm_id in enumerate(forecast.vm_ids)}
    steps, granted = HORIZON_STEPS, len(GRANTED)
    mean, variance = np.zeros((len(placed), steps + granted)), np.zeros((len(placed), steps + granted))
    seconds = np.zeros(len(placed))
    for v, (_, vm) in enumerate(placed):
        demand, spread = np.zeros((steps, 4)), np.zeros((steps, 4))
        fill(demand, spread, vm, rows.get(vm.domain.vm_id), forecast)
        mean[v, :steps], variance[v, :steps] = demand[:, 0], spread[:, 0]
        mean[v, steps:] = [promised(vm, resource) for resource in GRANTED]
        seconds[v] = migration_s(vm, demand, DEFAULT_POLICY)
    capacity = np.zeros((len(hosts), steps + granted))
    for h, host in enumerate(hosts):
        capacity[h, :steps] = host_capacity(host)[0]
        capacity[h, steps:] = host.capacity.cpu_commit_millicores, host.capacity.memory_commit_bytes
    why = tuple("excluded by policy" if vm.domain.policy.excluded else vm.domain.capabilities.migrate or "" for _, vm in placed)
    vm_ids = tuple(vm.domain.vm_id for _, vm in placed)
    cells, count = np.arange(steps + granted), len(hosts)
    named = sorted({racks.get(host.host_id, "") for host in hosts})
    home = np.array([h for h, _ in placed], np.int32)
    problem = Problem(
        vm_ids=vm_ids,
        host_ids=tuple(index),
        home=home,
        fixed=np.array([bool(each) for each in why], bool),
        why_fixed=why,
        kind=np.zeros(len(placed), np.int32),
        mean=mean,
        variance=variance,
        weight=np.ones(len(placed)),
        move_cost=np.zeros(len(placed)),
        unplaced_cost=np.zeros(len(placed)),
        group=np.full(len(placed), -1, np.int32),
        rho=np.zeros(0),
        capacity=capacity,
        hard=cells >= steps,
        z=np.where(cells < steps, DEFAULT_POLICY.z, 0.0),
        minutes=np.where(cells < steps, BUCKET_S / 60.0, 60.0),
        cpu=cells < steps,
        curve=np.zeros((count, CURVE_POINTS)),
        empty_cost=np.zeros(count),
        wake_cost=np.zeros(count),
        closed=np.array([not host.alive and host.host_id not in asleep for host in hosts], bool),
        kind_cost=np.zeros((1, count)),
        domain=np.array([range(count), [named.index(racks.get(host.host_id, "")) for host in hosts]], np.int32).reshape(2, count),
    )
    goal = home.copy()
    at = {vm_id: v for v, vm_id in enumerate(vm_ids)}
    for move in advised:
        v, target = at.get(move.vm_id, NOWHERE), index.get(move.to_host, NOWHERE)
        if v >= 0 and target >= 0 and hosts[home[v]].host_id == move.from_host:
            goal[v] = target
    return problem, goal, seconds


def demand_ahead(
    hosts: Sequence[HostState], forecast: ForecastBlock, outlook: Outlook | None = None, z: float = DEFAULT_POLICY.z
) -> tuple[F64, F64]:
    """(Unix seconds [n], CPU that the VMs of these hosts need together from then on, millicores [n]): by bucket, then by half hour.

    Summed means plus z roots of the summed variances; a VM of which the outlook knows nothing keeps the hour's last mean.
    """
    vm_ids = [vm.domain.vm_id for host in hosts for vm in host.vms]
    rows = {vm_id: i for i, vm_id in enumerate(forecast.vm_ids)}
    known = [vm_id for vm_id in vm_ids if vm_id in rows]
    at = [rows[vm_id] for vm_id in known]
    mean = np.nan_to_num(forecast.mean[at, CPU].astype(np.float64))
    spread = np.nan_to_num(forecast.stddev[at, CPU].astype(np.float64))
    times = forecast.issued_s + BUCKET_S * np.arange(HORIZON_STEPS, dtype=np.float64)
    if outlook is not None and known:
        later = {vm_id: i for i, vm_id in enumerate(outlook.vm_ids)}
        blocks = outlook.issued_s + HALF_HOUR_S * np.arange(outlook.quantiles.shape[2], dtype=np.float64)
        median, high = outlook.levels.index(0.5), outlook.levels.index(0.9)
        kept = blocks >= times[-1] + BUCKET_S
        found = np.full((2, len(known), int(kept.sum())), np.nan)
        for v, vm_id in enumerate(known):
            if vm_id in later:
                quantiles = outlook.quantiles[later[vm_id], CPU][kept]
                found[:, v] = quantiles[:, median], (quantiles[:, high] - quantiles[:, median]) / Z_90
        mean = np.hstack([mean, np.where(np.isnan(found[0]), mean[:, -1:], found[0])])
        spread = np.hstack([spread, np.where(np.isnan(found[1]), spread[:, -1:], found[1])])
        times = np.concatenate([times, blocks[kept]])
    total: F64 = mean.sum(axis=0) + z * np.sqrt((spread**2).sum(axis=0))
    return times, total
