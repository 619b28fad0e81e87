"""The agent killed at every failpoint of every lever: afterwards each lever is before or after, never between, and nothing is done twice.

The journal is real, the host a few numbers, the kill an exception that nothing catches: what is on disk and what is in force at that moment
is all that the next process gets. tests/realhost/test_kill.py does the same with SIGKILL, libvirt and tc.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from obedient_host import ABLE, BEFORE, T0, capacity, domain

from agent import events as ev
from agent.acting import journal
from agent.acting.journal import Journal
from agent.acting.levers import FIELDS, shows
from agent.acting.reconcile import local_prefix, reconcile
from agent.core import AgentCore
from shared import failpoint
from shared.config import GuardConfig
from shared.model import Allocation, HostSample, Mode, VmSample
from shared.plan import OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_S, UNLIMITED

PERIOD_S = 5
START = {**BEFORE, StepKind.VCPUS: 3, StepKind.CPU_QUOTA: 2000, StepKind.VIRTIO_MEM: 256 * MIB, StepKind.DIMM: 256 * MIB}
# lever -> a value that gives the VM more, one that takes from it; each within one stride of the guard
TARGETS = {
    StepKind.VCPUS: (4, 2),
    StepKind.CPU_QUOTA: (3000, 1200),
    StepKind.CPU_SHARES: (4096, 512),
    StepKind.MEMORY: (2 * GIB + 100 * MIB, 2 * GIB - 100 * MIB),
    StepKind.NET_RX: (200_000_000, 60_000_000),
    StepKind.NET_TX: (UNLIMITED, 60_000_000),
    StepKind.VCPUS_ONLINE: (3, 1),
    StepKind.CPU_PERIOD: (200_000, 50_000),
    StepKind.VIRTIO_MEM: (320 * MIB, 192 * MIB),
    StepKind.DIMM: (384 * MIB, 128 * MIB),
    StepKind.MEMORY_HIGH: (UNLIMITED, 9_800 * MIB),  # unlimited counts for the 10 GiB that the domain could have
    StepKind.DISK_BYTES: (UNLIMITED, 10**9),
    StepKind.DISK_OPS: (UNLIMITED, 60_000),
    StepKind.DISK_WEIGHT: (500, 50),
    StepKind.NET_TX_RATE: (50_000_000, 6_000_000),
}
LIMITED = {StepKind.MEMORY_HIGH: 6 * GIB, StepKind.DISK_BYTES: 10**8, StepKind.DISK_OPS: 5000, StepKind.NET_TX_RATE: 10**7}
# the guest may stop anywhere between: that is what these are
GUESTS = (StepKind.VIRTIO_MEM,)
READING = VmSample(
    cpu_used_millicores=300,
    cpu_throttled_permille=0,
    memory_used_bytes=GIB // 2,
    memory_reading_age_ms=1000,
    psi_memory_some_permille=0,
    net_rx_bits_per_s=10_000_000,
    net_tx_bits_per_s=10_000_000,
    disk_read_bytes_per_s=0,
    disk_write_bytes_per_s=0,
    disk_read_ops_per_s=0,
    disk_write_ops_per_s=0,
)


class Killed(BaseException):
    """What SIGKILL is here."""


class Machine:
    """The host: survives every kill. Each submit takes effect in two parts; `stuck` levers get no further than the first."""

    def __init__(self, kind: StepKind, growing: bool) -> None:
        self.values = dict(START)
        if kind in LIMITED and (growing or kind is StepKind.NET_TX_RATE):
            self.values[kind] = LIMITED[kind]
        self.stuck = False
        self.submits: Counter[str] = Counter()
        self.now = T0

    def submit(self, step: Step) -> None:
        failpoint.hit("submit.before")
        self.submits[step.id] += 1
        now = self.values[step.kind]
        if step.kind in (StepKind.VCPUS, StepKind.VCPUS_ONLINE, StepKind.DIMM):  # counts of things: one at a time here
            failpoint.hit("submit.between")
            self.values[step.kind] = now if self.stuck else step.value
        else:
            low, high = sorted((1000 * now if step.value == UNLIMITED else step.value, 1000 * step.value if now == UNLIMITED else now))
            self.values[step.kind] = now if self.stuck and step.reason != "undo" else (low + high) // 2
            failpoint.hit("submit.between")
            if not self.stuck or step.reason == "undo":
                self.values[step.kind] = step.value
        failpoint.hit("submit.after")


class Process:
    """One life of the agent on that machine."""

    def __init__(self, machine: Machine, folder: Path, journal_bytes: int) -> None:
        self.machine = machine
        self.journal = Journal(folder, journal_bytes)
        self.outcomes: list[tuple[str, OutcomeState]] = []
        self.core = AgentCore(
            host_id="h1",
            boot_id="boot-123456789",
            capacity=capacity(),
            ordered=Mode.PREDICTIVE,
            guard=GuardConfig(shrink_after_grow_s=0),
            recovered=reconcile(self.journal.read(), local_prefix("h1", "boot-123456789")),
        )
        able = domain(capabilities=ABLE, virtio_mem_max_bytes=GIB, dimm_max_bytes=GIB)
        self.tell(ev.InventoryRead(domains=(able,)))
        self.tell(ev.Started())
        self.tell(ev.LinkUp(epoch=1, acked=-1))

    def tell(self, event: ev.Event) -> None:
        events = [event]
        while events:
            for instruction in self.core.handle(events.pop(0), self.machine.now):
                if isinstance(instruction, ev.WriteJournal):
                    self.journal.write(instruction.entry)
                    if isinstance(instruction.entry, ev.Closed):
                        self.outcomes.append((instruction.entry.outcome.step.id, instruction.entry.outcome.state))
                elif isinstance(instruction, ev.SubmitStep):
                    self.machine.submit(instruction.step)
                    events.append(ev.StepAccepted(step_id=instruction.step.id))
                elif isinstance(instruction, ev.ReadBack):
                    failpoint.hit("read_back.before")
                    shown = Allocation(**{FIELDS[kind][0]: value for kind, value in self.machine.values.items()})
                    failpoint.hit("read_back.after")
                    events.append(ev.AllocationRead(vm_id="vm-1", allocation=shown))

    def live(self, seconds: int) -> None:
        for n in range(seconds):
            self.machine.now += NS_PER_S
            if n % PERIOD_S == PERIOD_S - 1:
                shown = {FIELDS[kind][1]: value for kind, value in self.machine.values.items()}
                vms = {"vm-1": msgspec.structs.replace(READING, **shown)}
                sample = HostSample(wall_ns=self.machine.now, monotonic_ns=self.machine.now - T0, period_ns=PERIOD_S * NS_PER_S, vms=vms)
                self.tell(ev.Sampled(sample=sample, runs={"vm-1": "run"}))
            self.tell(ev.Tick())

    def plan(self, kind: StepKind, value: int) -> None:
        now = self.machine.now
        step = Step(
            id="s1", vm_id="vm-1", kind=kind, value=value, before=self.machine.values[kind], reason="x", deadline_ns=now + 60 * NS_PER_S
        )
        self.tell(
            ev.PlanArrived(plan=Plan(host_id="h1", epoch=1, sequence=1, issued_ns=now, deadline_ns=now + 600 * NS_PER_S, steps=(step,)))
        )


def arm(monkeypatch: pytest.MonkeyPatch, name: str, count: int = 1) -> None:
    def kill(_pid: int, _signal: int) -> None:
        raise Killed(name)

    monkeypatch.setattr(failpoint, "_name", name)
    monkeypatch.setattr(failpoint, "_left", count)
    monkeypatch.setattr(failpoint.os, "kill", kill)


def disarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoint, "_name", "")


PLACES = [name for name in failpoint.FAILPOINTS if not name.startswith("shaper")]
CASES = [(kind, growing, place) for kind in TARGETS for growing in (True, False) for place in PLACES]


@pytest.mark.parametrize("stuck", [False, True], ids=["works", "stuck"])
def test_killed_anywhere_every_lever_is_before_or_after_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    deaths: Counter[str] = Counter()
    for sync in ("fsync", "fdatasync"):  # what was written outlives the process; only a power cut asks for more
        monkeypatch.setattr(journal.os, sync, lambda _fd: None)
    for number, (kind, growing, place) in enumerate(CASES):
        for count in (1, 2) if place.startswith(("submit", "read_back")) else (1,):
            machine = Machine(kind, growing)
            before, after = machine.values[kind], TARGETS[kind][0 if growing else 1]
            if before == after:
                continue
            where = f"{kind} {before} to {after}, killed at {place}:{count}"
            folder = tmp_path / f"{stuck}{number}.{count}"
            try:
                life = Process(machine, folder, 1200 if "rotate" in place else 10**6)
                life.live(2 * PERIOD_S)
                machine.stuck = stuck
                arm(monkeypatch, place, count)
                life.plan(kind, after)
                life.live(70 if stuck else 12)
            except Killed:
                deaths[place] += 1
            disarm(monkeypatch)
            machine.stuck = False
            next_life = Process(machine, folder, 10**6)
            next_life.live(2 * PERIOD_S)
            value = machine.values[kind]
            assert kind in GUESTS or shows(kind, before, value) or shows(kind, after, value), f"{where}: {value} after the restart"
            assert all(times == 1 for times in machine.submits.values()), f"{where}: {machine.submits}"
            assert machine.submits["s1"] <= 1
            others = {k: v for k, v in machine.values.items() if k is not kind}
            assert others == {k: v for k, v in Machine(kind, growing).values.items() if k is not kind}, where
            next_life.live(310 if kind in (StepKind.VCPUS, StepKind.DIMM) else 35)
            assert next_life.core.in_flight == 0, where
            entries = list(next_life.journal.read())
            intended = any(isinstance(e, ev.Intent) and "s1" in (e.step.id, e.goal.id if e.goal else "") for e in entries)
            told = {e.outcome.state for e in entries if isinstance(e, ev.Closed) and e.outcome.step.id == "s1"}
            assert len(told) == 1 if intended else not told - {OutcomeState.REFUSED}, where
            with contextlib.suppress(ValueError):  # killed within a rotation: closed already
                life.journal.close()
            next_life.journal.close()
    expected = {place for place in PLACES if stuck or not place.startswith("journal.undo")}
    assert set(deaths) == expected, f"never died at {expected - set(deaths)}"


def test_a_plan_heard_again_after_the_kill_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(StepKind.CPU_QUOTA, True)
    life = Process(machine, tmp_path, 10**6)
    life.live(10)
    arm(monkeypatch, "submit.after")
    with pytest.raises(Killed):
        life.plan(StepKind.CPU_QUOTA, 3000)
    disarm(monkeypatch)
    again = Process(machine, tmp_path, 10**6)
    again.plan(StepKind.CPU_QUOTA, 3000)
    again.live(10)
    assert machine.submits == {"s1": 1} and machine.values[StepKind.CPU_QUOTA] == 3000
    assert again.outcomes == [("s1", OutcomeState.VERIFIED)]
    assert RefusalCode.STEP_DUPLICATE not in {code for _, code in again.core.counters}
    life.journal.close()
    again.journal.close()
