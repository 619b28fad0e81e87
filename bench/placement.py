"""One shard of hosts, exactly: how much overload advised moves remove, what they cost, how far from the proven bound, how long it takes.

Fleets are made from one seed: VMs whose CPU follows a daily wave at a random phase, hosts loaded unevenly around their capacity, so that
peaks at other times can share a host. The baseline of every figure is doing nothing (the incumbent) on the same fleet; the descent that
warm-starts the solver is shown beside it. A figure holds where the answer is no worse than the incumbent and the checker found no fault.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.report import Figure, options, publish
from coordinator.model import LEVELS, N_RESOURCES, ForecastBlock, HostState, Placement, VmState
from coordinator.placement.check_moves import check_moves
from coordinator.placement.descend import descend
from coordinator.placement.instance import PERCENT_MINUTES, PlacementPolicy, build_instance, cost_of
from coordinator.placement.shards import solve_shard
from shared.model import Allocation, Capabilities, Domain, HostCapacity, Mode, Policy, Priority
from shared.units import CPU, GIB, HORIZON_STEPS, MEMORY

SHAPES = ((4, 4), (8, 4), (8, 12), (12, 12), (12, 24))  # (hosts, VMs per host)
CORES = 16
DEADLINE_S = 10.0


@dataclass(frozen=True)
class Case:
    """One fleet with its forecast."""

    hosts: tuple[HostState, ...]
    forecast: ForecastBlock


def make_case(hosts: int, vms: int, seed: int) -> Case:
    """A fleet from a seed: mean CPU 70 % of all cores, single hosts between 40 and 100 %."""
    random = np.random.default_rng(seed)
    capacity = HostCapacity(
        cpu_millicores=1000 * CORES,
        memory_bytes=256 * GIB,
        net_bits_per_s=10**10,
        cpu_commit_millicores=4000 * CORES,
        memory_commit_bytes=240 * GIB,
        net_commit_bits_per_s=10**10,
    )
    ids = [[f"v{h:02}-{i:02}" for i in range(vms)] for h in range(hosts)]
    share = np.repeat(random.uniform(0.4, 1.0, hosts), vms)[:, None] * random.uniform(0.5, 1.5, (hosts * vms, 1))
    phase = random.uniform(0, HORIZON_STEPS, (hosts * vms, 1))
    wave = 1.0 + 0.4 * np.sin((np.arange(HORIZON_STEPS) + phase) / HORIZON_STEPS * 2 * np.pi)
    mean = np.zeros((hosts * vms, N_RESOURCES, HORIZON_STEPS), np.float32)
    mean[:, CPU] = 1000.0 * CORES / vms * share * wave
    mean[:, MEMORY] = 2 * GIB
    stddev = np.zeros_like(mean)
    stddev[:, CPU] = 0.15 * mean[:, CPU]
    flat = np.repeat(mean[..., None], len(LEVELS), axis=-1)
    forecast = ForecastBlock(
        issued_s=0,
        vm_ids=tuple(v for row in ids for v in row),
        mean=mean,
        stddev=stddev,
        quantiles=flat,
        peak_quantiles=np.maximum.accumulate(flat, axis=2),
        model=np.zeros(mean.shape[:2], np.int8),
        models=("given",),
        reason=np.zeros(mean.shape[:2], np.int8),
        coverage=np.full(mean.shape[:2], np.nan, np.float32),
    )
    states = tuple(
        HostState(
            host_id=f"h{h:02}", capacity=capacity, mode=Mode.OBSERVE, alive=True, vms=tuple(make_vm(v, f"h{h:02}", random) for v in row)
        )
        for h, row in enumerate(ids)
    )
    return Case(states, forecast)


def make_vm(vm_id: str, host_id: str, random: np.random.Generator) -> VmState:
    """A VM of 4 vCPUs and 4 GiB that can migrate."""
    unknown = np.full(N_RESOURCES, np.nan)
    return VmState(
        domain=Domain(
            vm_id=vm_id,
            name=vm_id,
            vcpus_max=8,
            memory_max_bytes=16 * GIB,
            policy=Policy(priority=Priority(int(random.integers(4)))),
            capabilities=Capabilities(migrate=None),
        ),
        host_id=host_id,
        allocation=Allocation(vcpus=4, cpu_quota_millicores=2000, memory_bytes=4 * GIB, net_rx_bits_per_s=10**8, net_tx_bits_per_s=10**8),
        demand_now=unknown,
        peak_now=unknown,
        censored_now=unknown,
        working_set_bytes=float("nan"),
    )


def figures_of(hosts: int, vms: int, seeds: int) -> list[Figure]:
    """Medians over the seeds of one shape."""
    policy = PlacementPolicy()
    results: list[Placement] = []
    quick, sound = [], True
    for seed in range(seeds):
        case = make_case(hosts, vms, seed)
        result = solve_shard(case.hosts, case.forecast, seed, DEADLINE_S, 0, policy=policy)
        instance = build_instance(case.hosts, case.forecast, policy)
        quick.append(cost_of(instance, descend(instance)) * PERCENT_MINUTES)
        sound &= not check_moves(case.hosts, case.forecast, result.moves, z=policy.z) and result.objective <= result.incumbent
        results.append(result)
    name = f"{hosts} hosts x {vms} VMs"

    def median(values: list[float]) -> float:
        return float(np.median(values))

    left = [r.objective / r.incumbent for r in results if r.incumbent > 0]
    first = [q / r.incumbent for q, r in zip(quick, results, strict=True) if r.incumbent > 0]
    gap = [(r.objective - r.bound) / r.objective for r in results if r.objective > 0]
    return [
        Figure(
            name=f"{name}: cost left, of doing nothing", value=median(left), unit="ratio", bar="<= 1, checker silent", holds=bool(sound)
        ),
        Figure(name=f"{name}: the same, descent alone", value=median(first), unit="ratio"),
        Figure(name=f"{name}: gap to the proven bound", value=median(gap), unit="ratio"),
        Figure(name=f"{name}: proven optimal", value=float(np.mean([r.status == "optimal" for r in results])), unit="share"),
        Figure(name=f"{name}: moves", value=median([len(r.moves) for r in results]), unit="moves"),
        Figure(name=f"{name}: time", value=median([r.wall_ms for r in results]), unit="ms"),
    ]


def main() -> None:
    """Run all shapes."""
    chosen = options(__doc__ or "").parse_args()
    shapes, seeds = (SHAPES[:2], 2) if chosen.quick else (SHAPES, 5)
    publish([figure for hosts, vms in shapes for figure in figures_of(hosts, vms, seeds)], chosen.json)


if __name__ == "__main__":
    main()
