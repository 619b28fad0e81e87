"""Pressure relief end to end on the simulated host: a guest at its floor that comes under pressure gets memory back, asking nobody."""

from __future__ import annotations

import struct
from itertools import pairwise

import msgspec
import pytest
from plain_host import plain_capacity

from agent import events as ev
from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.workload import Demand, Workload
from agent.core import AgentCore
from agent.ports import RawHost
from agent.sampling.derive import derive
from shared.clock import ManualClock
from shared.model import Allocation, HostSample, Mode, Policy
from shared.plan import OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, NS_PER_S, SAMPLE_PERIOD_S
from shared.workload import SERIES, VmWorkload, WorkloadFile

START_S = 1_800_000_000
VM = "id-vm"


class LonelyHost:
    """An agent's core on a simulated host, one tick a second, one sample each period. Nobody is ever connected."""

    def __init__(self, need: int, mode: Mode, *, standalone: bool, phase_s: float = 0.0) -> None:
        """Every fifth second a sample, `phase_s` after the beginning of one of the workload's slots."""
        vm = VmWorkload(
            vm_id=VM,
            name="vm",
            source="test",
            vcpus_max=4,
            memory_max_bytes=8 * GIB,
            policy=Policy(memory_floor_bytes=GIB),
            initial=Allocation(vcpus=2, memory_bytes=GIB),
            seed=7,
            noise_permille=0,
            burst_per_1024=0,
            **{name: struct.pack("<q", need if name == "memory_bytes" else 100_000 if "net" in name else 100) for name in SERIES},  # type: ignore[arg-type]
        )
        capacity = plain_capacity(cpu_millicores=8000, memory_bytes=64 * GIB, net_bits_per_s=10**11)
        file = WorkloadFile(host="h", start_s=START_S, buckets=1, seed=3, capacity=capacity, vms=(vm,))
        self.clock = ManualClock(int((START_S + phase_s) * NS_PER_S))
        self.workload = Workload(file)
        self.host = SimulatedHost(self.workload, lambda: (self.clock.wall_ns(), self.clock.monotonic_ns()))
        self.core = AgentCore(host_id="h", boot_id="boot", capacity=capacity, default_mode=mode, standalone=standalone)
        self.seconds, self._began_s = 0, START_S + phase_s
        self.before: RawHost | None = None
        self.steps: list[tuple[float, Step]] = []
        self.log: list[ev.Instruction] = []
        self.oom_kills = 0
        self.tell(ev.InventoryRead(domains=tuple(self.host.domains())))

    @property
    def now_s(self) -> float:
        return self.clock.wall_ns() / NS_PER_S - self._began_s

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            self.seconds += 1
            if self.seconds % SAMPLE_PERIOD_S == 0:
                raw = self.host.read()
                sample, self.before = derive(self.before, raw, {}), raw
                if sample.period_ns:
                    self.tell(ev.Sampled(sample=self._with_kills(sample)))
            self.tell(ev.Tick())

    def _with_kills(self, sample: HostSample) -> HostSample:
        kills, self.oom_kills = self.oom_kills, 0
        vms = {VM: msgspec.structs.replace(sample.vms[VM], guest_oom_kills=kills)}
        return msgspec.structs.replace(sample, vms=vms)

    def tell(self, event: ev.Event) -> None:
        events = [event]
        while events:
            for instruction in self.core.handle(events.pop(0), self.clock.wall_ns()):
                self.log.append(instruction)
                if isinstance(instruction, ev.SubmitStep):
                    step = instruction.step
                    self.steps.append((self.now_s, step))
                    self.host.submit(step.vm_id, step.kind, step.value)
                    events.append(ev.StepAccepted(step_id=step.id))
                elif isinstance(instruction, ev.ReadBack):
                    events.append(ev.AllocationRead(vm_id=VM, allocation=self.host.allocation(VM)))

    def memory(self) -> int:
        value = self.host.allocation(VM).memory_bytes
        assert value is not None
        return value

    def growths(self) -> list[float]:
        return [at for at, step in self.steps if step.kind is StepKind.MEMORY]


@pytest.mark.parametrize(
    ("mode", "standalone"), [(Mode.REACTIVE, True), (Mode.PREDICTIVE, True), (Mode.REACTIVE, False), (Mode.PREDICTIVE, False)]
)
def test_a_guest_under_pressure_at_its_floor_gets_memory_back_within_ten_seconds_of_being_seen(mode: Mode, standalone: bool) -> None:
    host = LonelyHost(need=GIB + GIB // 4, mode=mode, standalone=standalone)
    host.run(5)  # the first reading: rates need a second one
    assert host.steps == [] and host.memory() == GIB
    host.run(11)
    assert host.growths() and host.memory() > GIB
    assert host.growths()[0] == 10.0  # the first sample that can show it, whoever else could be asked
    host.run(30)
    assert host.memory() >= GIB + GIB // 4  # strides follow each other, not the samples
    values = [GIB, *(step.value for _, step in host.steps if step.kind is StepKind.MEMORY)]
    assert all(after - before <= before * 50 // 1000 for before, after in pairwise(values))
    times = host.growths()
    assert min(b - a for a, b in pairwise(times)) < SAMPLE_PERIOD_S


@pytest.mark.parametrize("short_permille", [50, 500])
@pytest.mark.parametrize("phase_s", [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.0, 4.9])
def test_alone_the_way_from_the_onset_to_a_larger_balloon_is_ten_seconds_at_most(
    phase_s: float, short_permille: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demand changes with the workload's slots; a sample sees it `phase_s` later first, with so little of it in its mean.

    In the worst phase a slight shortage is too little of the first sample to be pressure, and the second one counts.
    """
    host = LonelyHost(need=GIB // 2, mode=Mode.REACTIVE, standalone=False, phase_s=phase_s)
    host.run(60)
    assert host.steps == []
    need = float(GIB + GIB * short_permille // 1000)
    demands, onset_slot = host.workload.demands, START_S // SAMPLE_PERIOD_S + 13
    onset_s = 13 * SAMPLE_PERIOD_S - phase_s

    def suddenly_more(slot: int) -> list[Demand]:
        return [demand._replace(memory_bytes=need) if slot >= onset_slot else demand for demand in demands(slot)]

    monkeypatch.setattr(host.workload, "demands", suddenly_more)
    host.run(30)
    (first, *_) = [
        i.entry.outcome
        for i in host.log
        if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Closed) and i.entry.outcome.state is OutcomeState.VERIFIED
    ]
    assert first.step.kind is StepKind.MEMORY and first.origin == "autonomy"
    in_force_s = first.finished_ns / NS_PER_S - START_S - phase_s
    assert 0 < in_force_s - onset_s <= 10


def test_a_guest_that_killed_for_want_of_memory_is_helped_on_the_first_sample_even_alone() -> None:
    host = LonelyHost(need=GIB // 2, mode=Mode.REACTIVE, standalone=False)
    host.run(5)
    host.oom_kills = 1
    host.run(5)
    (first, *_) = host.steps
    assert first[0] == 10.0 and first[1].kind is StepKind.MEMORY and first[1].reason == "guest_oom"


def test_a_greedy_guest_is_bounded_by_its_budget() -> None:
    host = LonelyHost(need=7 * GIB, mode=Mode.REACTIVE, standalone=True)
    host.run(300)
    assert host.memory() <= 2 * GIB and host.memory() > 2 * GIB - 2 * GIB // 50
    refused = [
        i.entry.outcome.code
        for i in host.log
        if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Closed) and i.entry.outcome.state is OutcomeState.REFUSED
    ]
    assert RefusalCode.GROWTH_BUDGET in refused
    host.run(3600 - 300)
    assert host.memory() <= 2 * GIB
    host.run(300)
    assert host.memory() > 2 * GIB  # the next window
    assert host.memory() <= 4 * GIB


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.OBSERVE])
def test_nothing_is_given_where_nothing_may_change(mode: Mode) -> None:
    host = LonelyHost(need=2 * GIB, mode=mode, standalone=True)
    host.run(60)
    assert host.steps == [] and host.memory() == GIB
