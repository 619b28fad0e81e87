"""Advised moves as a problem and a goal for the order of moves: CPU per bucket (soft), promises of CPU and memory (hard).

The one place that turns placement's answer into what execution works on; moves of a VM that is elsewhere by now are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.model import F64, ForecastBlock, HostState, Placement
from coordinator.placement.instance import GRANTED, PlacementPolicy, fill, host_capacity, migration_s
from coordinator.placement.problem import CURVE_POINTS, I32, NOWHERE, Problem
from coordinator.sizing.levers import promised
from shared.units import BUCKET_S, CPU, HORIZON_STEPS

DEFAULT_POLICY = PlacementPolicy()


def goal_of(
    hosts: Sequence[HostState], forecast: ForecastBlock, placements: Sequence[Placement], racks: Mapping[str, str]
) -> tuple[Problem, I32, F64]:
    """(problem, goal [v], seconds of each migration [v]) of these hosts, dead ones closed. VMs that cannot migrate are fixed, with why."""
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
        closed=np.array([not host.alive for host in hosts], bool),
        kind_cost=np.zeros((1, count)),
        domain=np.array([range(count), [named.index(racks.get(host.host_id, "")) for host in hosts]], np.int32).reshape(2, count),
    )
    goal = home.copy()
    at = {vm_id: v for v, vm_id in enumerate(vm_ids)}
    for move in (move for placement in placements for move in placement.moves):
        v, target = at.get(move.vm_id, NOWHERE), index.get(move.to_host, NOWHERE)
        if v >= 0 and target >= 0 and hosts[home[v]].host_id == move.from_host:
            goal[v] = target
    return problem, goal, seconds


def demand_ahead(hosts: Sequence[HostState], forecast: ForecastBlock, z: float = DEFAULT_POLICY.z) -> F64:
    """CPU that the VMs of these hosts will need together, millicores [12]: the summed means and z root of the summed variances."""
    wanted = {vm.domain.vm_id for host in hosts for vm in host.vms}
    rows = [i for i, vm_id in enumerate(forecast.vm_ids) if vm_id in wanted]
    mean = np.nansum(forecast.mean[rows, CPU].astype(np.float64), axis=0)
    total: F64 = mean + z * np.sqrt(np.nansum(forecast.stddev[rows, CPU].astype(np.float64) ** 2, axis=0))
    return total
