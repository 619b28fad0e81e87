"""A placement's answer as it stands now: the problem that it was solved in, brought up to date, and the goal that its moves lead to.

Execution orders moves in the very problem that placement solved, so rules, memory, disks and links hold at every state on the way, too.
Between question and answer seconds pass: VMs that have gone elsewhere meanwhile count where they are and have no goal, those that the
problem does not know, and growths on their way, take their promise from the room of their host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.fleet import Fleet
from coordinator.model import F64, ForecastBlock, HostState, Outlook
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.fleet_problem import FleetProblem
from coordinator.placement.problem import I32, NOWHERE, Problem
from coordinator.planning.order_moves import Readiness
from coordinator.sizing.levers import promised
from shared.plan import StepKind
from shared.units import BUCKET_S, CPU, HORIZON_STEPS, MEMORY

DEFAULT_Z: Final = 1.5  # stddevs of the fleet's demand, where no placement says how many it keeps free
HALF_HOUR_S: Final = 1800
Z_90: Final = 1.2816  # stddevs from a normal's median to its .9 quantile
GROWTHS: Final = {StepKind.CPU_QUOTA: CPU, StepKind.MEMORY: MEMORY}  # steps that take from a promise


def moves_problem(placed: Placed, hosts: Sequence[HostState], fleet: Fleet) -> tuple[Problem, I32, Readiness] | None:
    """(problem with today's homes, goal [v], readiness); None where placement came to no problem. Everything counts as awake."""
    named, place = placed.fleet, placed.place
    if named is None or place is None:
        return None
    at = {vm.domain.vm_id: host.host_id for host in hosts for vm in host.vms if vm.domain.running}
    index = {host_id: h for h, host_id in enumerate(named.problem.host_ids)}
    now = np.array([index.get(at.get(vm_id, ""), NOWHERE) for vm_id in named.problem.vm_ids], np.int32)
    problem = replace(named.problem, home=now)
    goal = np.where(now == named.problem.home, place, now).astype(np.int32)
    ready = Readiness.now(problem, named.seconds)
    held = taken_since(named, hosts) + growing(named, fleet)
    return problem, goal, replace(ready, held=held, held_until_s=np.full(len(index), np.inf))


def taken_since(named: FleetProblem, hosts: Sequence[HostState]) -> F64:
    """[h, c] promises of VMs that the problem does not know."""
    known, held = set(named.problem.vm_ids), np.zeros_like(named.problem.capacity)
    index = {host_id: h for h, host_id in enumerate(named.problem.host_ids)}
    for host in hosts:
        for vm in host.vms:
            if host.host_id in index and vm.domain.running and vm.domain.vm_id not in known:
                for c, resource in promises(named):
                    held[index[host.host_id], c] += promised(vm, resource)
    return held


def growing(named: FleetProblem, fleet: Fleet) -> F64:
    """[h, c] promises that growths on their way will take: no VM may come into room that is given away already."""
    held = np.zeros_like(named.problem.capacity)
    column = {resource: c for c, resource in promises(named)}
    for h, host_id in enumerate(named.problem.host_ids):
        for step in fleet.host(host_id).open_steps.values():
            c = column.get(GROWTHS.get(step.kind, -1))
            if c is not None and step.before is not None and step.value > step.before >= 0:
                held[h, c] += step.value - step.before
    return held


def promises(named: FleetProblem) -> list[tuple[int, int]]:
    """(cell, resource) of the promises that a host can run short of."""
    return [(c, cell.resource) for c, cell in enumerate(named.cells) if cell.promise]


def demand_ahead(
    hosts: Sequence[HostState], forecast: ForecastBlock, outlook: Outlook | None = None, z: float = DEFAULT_Z
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
