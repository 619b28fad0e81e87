"""Worlds in bad weather, many seeds, two processes: every fault that the world knows, at once, on a fleet of mixed modes.

    python -m bench.world_storm [FIRST_SEED] [SEEDS]    prints one line a seed; exit 1 when an invariant broke

The fleet is small and its samples are rare (60 s), so that fifty seeds of six hours fit into a test. One seed is one world: workloads,
policies, faults and their times follow from it, so a line with a violation is all that is needed to see it again.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from agent.adapters.simulated_vm import SimulationFaults
from bench.report import Figure, options, publish
from bench.world import Settings, Weather, World
from coordinator.forecast.engine import ForecastOptions
from coordinator.workloads import HostWorkload, prepare
from shared.config import GuardConfig
from shared.model import Mode
from shared.workload import VmWorkload

START_S = 1_795_219_200  # 2026-11-21 00:00 UTC
MODES = (Mode.PREDICTIVE, Mode.REACTIVE, Mode.PREDICTIVE, Mode.OBSERVE, Mode.PREDICTIVE)

# 75 minutes: longer than anybody is away here, and within what the folder of buckets remembers (its MAX_CLOSED).
LOG_BUCKETS = 15

STORM = Weather(
    delay_s=(0.001, 2.0),
    duplicate=0.02,
    reset=0.003,
    lost_answers=0.05,
    partitions=1,
    partition_s=(60.0, 1200.0),
    agent_kills=1,
    agent_stops=1,
    coordinator_kills=2,
    down_s=(20.0, 600.0),
    full_logs=1,
    stale_plans=2,
    mode_orders=6,
    mode_pins=6,
    adjusts=30,
    mad_plans=10,
    stuck_vms=1,
    late_guests=1,
    faults=SimulationFaults(submit_failure_permille=30, submit_lost_permille=30),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of one world. `steps`: submitted in all; `refused`: outcomes of that state at the coordinator."""

    seed: int
    digest: str
    violations: tuple[str, ...]
    counts: dict[str, int]
    steps: int
    refused: int
    samples: int
    cpu_s: float


def storm(seed: int, *, hosts: int = 10, hours: float = 6.0, log_buckets: int = LOG_BUCKETS) -> World:
    """Run one world to its end, healed. The same arguments give the same world."""
    workloads = fleet(seed, hosts=hosts, hours=hours)
    settings = storm_settings(seed, hours=hours, workloads=workloads)
    return World([workload.file for workload in workloads], replace(settings, log_buckets=log_buckets)).run()


def fleet(seed: int, *, hosts: int, hours: float) -> list[HostWorkload]:
    """Generated hosts of two VMs each; every third VM has a ceiling of its own, below its domain's maximum."""
    hours_run = max(1, round(hours + 0.5))
    workloads = prepare(None, hosts=hosts, vms_per_host=2, start_s=START_S, hours_history=24, hours_run=hours_run, seed=seed)
    return [_with_ceilings(workload, index) for index, workload in enumerate(workloads)]


def storm_settings(seed: int, *, hours: float, workloads: Sequence[HostWorkload]) -> Settings:
    """Settings of a cheap world: one sample a minute, small forecasters, a guard that accepts readings of that age."""
    return Settings(
        seed=seed,
        hours=hours,
        modes=lambda index: MODES[index % len(MODES)],
        sample_period_s=60.0,
        step_s=60,
        weather=STORM,
        heal_s=1500.0,
        # The last two are tighter than the defaults, so that they bite within hours in VMs that wander by a third.
        guard=GuardConfig(reading_max_age_s=70, memory_cut_per_hour_permille=100, growth_budget_permille=250),
        forecast=ForecastOptions(boosting=False, ring=144, replay=12),
        history=[workload.history() for workload in workloads],
    )


def report(seed: int) -> Report:
    """Run one seed; for a pool of processes."""
    started_s = time.process_time()
    gc.freeze()  # what is here already, modules above all, need not be walked through again below
    gc.disable()  # a world lives for seconds and is let go whole
    world = storm(seed)
    result = Report(
        seed=seed,
        digest=world.digest,
        violations=tuple(world.violations),
        counts=dict(sorted(world.counts.items())),
        steps=sum(len(agent.checks.steps) for agent in world.agents),
        refused=sum(state == "refused" for _, _, state in world.coordinator.outcomes),
        samples=sum(len(agent.checks.sampled_ns) for agent in world.agents),
        cpu_s=time.process_time() - started_s,
    )
    del world  # its parts hold each other: 40 MB that nobody else would ever let go
    gc.enable()
    gc.collect()
    return result


def reports(seeds: Sequence[int], processes: int = 2) -> list[Report]:
    """Run many seeds side by side, in the order given. Fresh processes, so that threads of this one do not matter."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return list(pool.imap(report, seeds))


def _with_ceilings(workload: HostWorkload, index: int) -> HostWorkload:
    vms = tuple(_with_ceiling(vm) if (index + i) % 3 == 0 else vm for i, vm in enumerate(workload.file.vms))
    return replace(workload, file=msgspec.structs.replace(workload.file, vms=vms))


def _with_ceiling(vm: VmWorkload) -> VmWorkload:
    """Ceilings a quarter above what the VM starts with, where its domain allows that much."""
    initial = vm.initial

    def above(value: int | None, most: int) -> int | None:
        return None if value is None or value < 0 else min(most, value + value // 4)

    policy = msgspec.structs.replace(
        vm.policy,
        cpu_ceiling_millicores=above(initial.cpu_quota_millicores, vm.vcpus_max * 1000),
        memory_ceiling_bytes=above(initial.memory_bytes, vm.memory_max_bytes),
        net_ceiling_bits_per_s=above(max(initial.net_rx_bits_per_s or 0, initial.net_tx_bits_per_s or 0), vm.net_max_bits_per_s),
    )
    return msgspec.structs.replace(vm, policy=policy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a seed, and the violations below it; 1 when an invariant broke."""
    parser = options("Storms over the simulated world: no invariant may break.")
    parser.add_argument("first", nargs="?", type=int, default=1, help="first seed")
    parser.add_argument("count", nargs="?", type=int, default=50, help="number of seeds")
    chosen = parser.parse_args(arguments)
    count = 2 if chosen.quick else chosen.count
    broken, spent = 0, 0.0
    for result in reports(range(chosen.first, chosen.first + count)):
        print(f"seed {result.seed}: {result.digest[:16]}, {result.steps} steps, {result.cpu_s:.2f} CPU s, {result.counts}")
        broken += bool(result.violations)
        spent += result.cpu_s
        for violation in result.violations[:10]:
            print(f"    {violation}")
    figures = [
        Figure(name="seeds with a broken invariant", value=broken, unit=f"of {count}", bar="0", holds=broken == 0),
        Figure(name="10 hosts x 6 simulated hours", value=spent / count, unit="CPU s a seed", bar="<= 4.8", holds=None),
    ]
    publish(figures, chosen.json)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
