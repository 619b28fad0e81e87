"""The forecast matters: what is applied on a host depends on what the coordinator remembers of its VMs, and only on that.

One host, two VMs, seven days of history, four hours of run at a sample every five seconds. The VM under test idles at 0.6 cores and
1 GiB, then surges to 3 cores and 3 GiB: demand is interpolated between the centres of buckets, so the ramp lies in the 150 s before and
after noon. Its stored history shows that surge on each of the days before,
or a plain idle week; everything else, the demand in the run included, is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from msgspec.structs import replace
from plain_host import plain_capacity
from written_demand import past_of, written_vm

from agent.events import Closed
from bench.world import Settings, World
from coordinator.forecast.engine import ForecastOptions
from coordinator.model import N_RESOURCES, HistoryBlock, Receipt
from shared.model import Allocation, Mode, Policy
from shared.plan import StepKind
from shared.units import BUCKET_S, CPU, DISK, GIB, MBIT, MEMORY, NET_RX, NET_TX, NS_PER_S
from shared.workload import VmWorkload, WorkloadFile

NOON_S = 1_795_262_400  # 2026-11-21 12:00 UTC
RAMP_S = NOON_S - BUCKET_S / 2
START_S = NOON_S - 2 * 3600
HOURS = 3.0
BUCKETS = 4 * 12
DAYS = 7
VM, NEIGHBOUR = "vm-under-test", "vm-neighbour"
IDLE_MILLICORES, SURGE_MILLICORES = 600, 3000
IDLE_BYTES, SURGE_BYTES = GIB, 3 * GIB
QUOTA, BYTES = 1000, GIB * 3 // 2
INITIAL = Allocation(vcpus=4, cpu_quota_millicores=QUOTA, memory_bytes=BYTES, net_rx_bits_per_s=50 * MBIT, net_tx_bits_per_s=50 * MBIT)
FAST = ForecastOptions(boosting=False)


def vm(vm_id: str, cpu: list[int], memory: list[int], *, initial: Allocation = INITIAL, policy: Policy | None = None) -> VmWorkload:
    return written_vm(vm_id, cpu, memory, initial=initial, policy=policy or Policy(), seed=11, noise_permille=50)


def host(*vms: VmWorkload) -> WorkloadFile:
    capacity = plain_capacity(cpu_millicores=16_000, memory_bytes=16 * GIB, net_bits_per_s=10_000 * MBIT)
    capacity = replace(capacity, memory_commit_bytes=15 * GIB)
    return WorkloadFile(host="host-0", start_s=START_S, buckets=BUCKETS, seed=5, capacity=capacity, vms=vms)


def surging_host() -> WorkloadFile:
    before, after = 24, BUCKETS - 24
    return host(
        vm(VM, [IDLE_MILLICORES] * before + [SURGE_MILLICORES] * after, [IDLE_BYTES] * before + [SURGE_BYTES] * after),
        vm(NEIGHBOUR, [IDLE_MILLICORES] * BUCKETS, [IDLE_BYTES] * BUCKETS),
    )


def history(*, surge: bool) -> HistoryBlock:
    """A week of both VMs up to the start; with `surge`, VM under test is busy from noon to two every day."""
    buckets = DAYS * 288
    starts_s = START_S - BUCKET_S * np.arange(buckets, 0, -1)
    busy = ((starts_s % 86_400) // 3600 >= 12) & ((starts_s % 86_400) // 3600 < 14) & surge
    noise = 1 + 0.03 * np.random.default_rng(3).standard_normal((2, buckets))
    mean = np.empty((2, N_RESOURCES, buckets), dtype=np.float32)
    mean[:, CPU] = IDLE_MILLICORES * noise
    mean[:, MEMORY] = IDLE_BYTES * (1 + (noise - 1) / 5)
    mean[:, DISK], mean[:, NET_RX], mean[:, NET_TX] = 2_000_000 * noise, 5 * MBIT * noise, 5 * MBIT * noise
    mean[0, CPU, busy] = SURGE_MILLICORES * noise[0, busy]
    mean[0, MEMORY, busy] = SURGE_BYTES * (1 + (noise[0, busy] - 1) / 5)
    return past_of(surging_host().vms, START_S - BUCKET_S, mean)


@dataclass(frozen=True)
class Run:
    """What one world left behind."""

    world: World
    closed: tuple[Closed, ...]

    def first_growth_s(self, kind: StepKind, above: int) -> float:
        """When the VM under test first had more than `above` in force, in seconds after the ramp's begin; inf = never."""
        times = [
            entry.outcome.finished_ns / NS_PER_S - RAMP_S
            for entry in self.closed
            if entry.outcome.step.vm_id == VM and entry.outcome.step.kind is kind and (entry.outcome.value or 0) > above
            if entry.outcome.state in ("verified", "partial")
        ]
        return min(times, default=float("inf"))

    def receipts(self) -> list[Receipt]:
        return [receipt for receipt in self.world.coordinator.receipts if receipt.vm_id == VM]


def run(mode: Mode, file: WorkloadFile, past: HistoryBlock, hours: float = HOURS) -> Run:
    world = World([file], Settings(seed=1, hours=hours, modes=lambda _: mode, forecast=FAST, history=[past])).run()
    assert world.violations == []
    return Run(world, tuple(entry for entry in world.agents[0].journal if isinstance(entry, Closed)))


@pytest.fixture(scope="module")
def surge_known() -> Run:
    return run(Mode.PREDICTIVE, surging_host(), history(surge=True))


@pytest.fixture(scope="module")
def surge_unknown() -> Run:
    return run(Mode.PREDICTIVE, surging_host(), history(surge=False))


@pytest.fixture(scope="module")
def reactive() -> Run:
    return run(Mode.REACTIVE, surging_host(), history(surge=True))


# Both just below twice what the VM began with: so far, and no further within an hour, a host may go without a plan (growth budget).
@pytest.mark.parametrize(("kind", "above"), [(StepKind.CPU_QUOTA, 2 * QUOTA - 100), (StepKind.MEMORY, 2 * BYTES - GIB // 4)])
def test_a_known_surge_is_met_before_it_comes(surge_known: Run, surge_unknown: Run, reactive: Run, kind: StepKind, above: int) -> None:
    known, unknown, rule = (each.first_growth_s(kind, above) for each in (surge_known, surge_unknown, reactive))
    assert known < 0, "the surge is in the history: what it needs is there before the ramp"
    assert 0 < rule < 3600, "the rule follows what it sees"
    assert unknown > 0, "nothing in the history says that there will be a surge"
    assert known < rule - 60
    assert known < unknown - 60


def test_the_value_applied_depends_on_the_history(surge_known: Run, surge_unknown: Run) -> None:
    """At the moment at which the demands of these days and of the days before begin to differ."""

    def in_force(each: Run, kind: StepKind) -> int:
        values = [
            entry.outcome.value
            for entry in each.closed
            if entry.outcome.step.vm_id == VM and entry.outcome.step.kind is kind and entry.outcome.finished_ns < RAMP_S * NS_PER_S
            if entry.outcome.state in ("verified", "partial") and entry.outcome.value is not None
        ]
        return values[-1] if values else {StepKind.CPU_QUOTA: QUOTA, StepKind.MEMORY: BYTES}[kind]

    for kind in (StepKind.CPU_QUOTA, StepKind.MEMORY):
        assert in_force(surge_known, kind) > 1.5 * in_force(surge_unknown, kind)


def test_the_known_surge_hurts_less(surge_known: Run, reactive: Run) -> None:
    def violated_s(each: Run) -> float:
        return float(each.world.agents[0].host.truth()["vms"][VM]["violation_any_s"])

    assert violated_s(surge_known) < violated_s(reactive)


def test_observe_changes_nothing_and_says_what_it_would_have_done(surge_known: Run) -> None:
    observed = run(Mode.OBSERVE, surging_host(), history(surge=True), hours=1.95)  # up to the ramp: demand has not moved yet
    allocation = observed.world.agents[0].host.allocation(VM)
    assert (allocation.vcpus, allocation.cpu_quota_millicores, allocation.memory_bytes) == (4, QUOTA, BYTES)
    assert observed.world.agents[0].checks.steps == {}
    assert observed.world.coordinator.plans == {}
    shadows = observed.receipts()
    assert shadows
    assert all(receipt.shadow for receipt in shadows)
    wanted = {step.kind: step.value for receipt in shadows for step in receipt.steps}
    assert wanted[StepKind.CPU_QUOTA] > 2 * QUOTA
    assert wanted[StepKind.MEMORY] > BYTES + GIB
    assert not any(receipt.shadow for receipt in surge_known.receipts())


def capped_host() -> WorkloadFile:
    """Demand of 1.8 cores under a quota of 1, which the owner's policy does not let anybody raise."""
    policy = Policy(cpu_ceiling_millicores=QUOTA)
    return host(
        vm(VM, [1800] * BUCKETS, [IDLE_BYTES] * BUCKETS, policy=policy),
        vm(NEIGHBOUR, [IDLE_MILLICORES] * BUCKETS, [IDLE_BYTES] * BUCKETS),
    )


def test_a_capped_vm_shows_demand_and_is_not_shrunk() -> None:
    """Its use is the cap; a history of half that would have it shrunk if use were taken for demand."""
    capped = run(Mode.PREDICTIVE, capped_host(), history(surge=False), hours=1.5)
    rows = [(block, block.vm_ids.index(VM)) for block in capped.world.coordinator.buckets.values()]
    assert len(rows) >= 15
    for block, row in rows[1:]:
        assert block.censored[row, CPU] > 0.9
        assert block.usage[row, CPU] <= QUOTA * 1.01
        assert block.mean[row, CPU] > 1.2 * block.usage[row, CPU]
    neighbour = [block.censored[block.vm_ids.index(NEIGHBOUR), CPU] for block, _ in rows]
    assert max(neighbour) < 0.1
    assert capped.world.agents[0].host.allocation(VM).cpu_quota_millicores == QUOTA
    shrinks = [step for step in capped.world.agents[0].checks.steps.values() if step.vm_id == VM and step.kind is StepKind.CPU_QUOTA]
    assert shrinks == []
