"""A core with an obedient host under it, for tests of the agent's decisions: instructions are answered at once unless `deaf` or `stuck`."""

from __future__ import annotations

import msgspec
from plain_host import plain_capacity

from agent import events as ev
from agent.acting.levers import FIELDS
from agent.core import AgentCore
from shared.config import GuardConfig, ReactiveConfig
from shared.model import Allocation, Capabilities, Domain, HostCapacity, HostSample, Mode, VmSample
from shared.plan import Outcome, Plan, Step, StepKind
from shared.units import GIB, NS_PER_S, UNLIMITED

T0 = 1_800_000_000 * NS_PER_S
# Figures below are worked out for these, whatever the defaults.
GUARD = GuardConfig(shrink_after_grow_s=600, memory_grow_max_permille=10_000)
RULE = ReactiveConfig(headroom_permille=1250, shrink_window_s=1800)
BEFORE = {
    StepKind.VCPUS: 2,
    StepKind.CPU_QUOTA: 1000,
    StepKind.CPU_SHARES: 1024,
    StepKind.MEMORY: 2 * GIB,
    StepKind.NET_RX: 100_000_000,
    StepKind.NET_TX: 100_000_000,
    StepKind.VCPUS_ONLINE: 2,
    StepKind.CPU_PERIOD: 100_000,
    StepKind.VIRTIO_MEM: 0,
    StepKind.DIMM: 0,
    StepKind.MEMORY_HIGH: UNLIMITED,
    StepKind.DISK_BYTES: UNLIMITED,
    StepKind.DISK_OPS: UNLIMITED,
    StepKind.DISK_WEIGHT: 100,
    StepKind.NET_TX_RATE: 0,
}
ABLE = Capabilities(**dict.fromkeys(Capabilities.__struct_fields__))


def domain(vm_id: str = "vm-1", **changes: object) -> Domain:
    fields: dict[str, object] = {
        "vm_id": vm_id,
        "name": vm_id,
        "vcpus_max": 4,
        "memory_max_bytes": 8 * GIB,
        "net_max_bits_per_s": 10**9,
        "tap": f"tap-{vm_id}",
    }
    return Domain(**{**fields, **changes})  # type: ignore[arg-type]


def capacity(cpu: int = 16_000, memory: int = 32 * GIB, net: int = 10**10) -> HostCapacity:
    return plain_capacity(cpu_millicores=cpu, memory_bytes=memory, net_bits_per_s=net)


class Host:
    """`core` and what is in force on its host."""

    def __init__(self, *domains: Domain, mode: Mode = Mode.PREDICTIVE, limits: HostCapacity | None = None, **core: object) -> None:
        self.domains = domains or (domain(),)
        self.now = T0
        self.values = {d.vm_id: dict(BEFORE) for d in self.domains}
        self.readings: dict[str, VmSample] = {d.vm_id: VmSample() for d in self.domains}
        self.stuck: set[StepKind] = set()  # accepted, never in force
        self.reject: ev.StepRejected | None = None
        self.deaf = False  # submits stay unanswered
        self.runs: dict[str, str] = {}
        self.log: list[ev.Instruction] = []
        fields: dict[str, object] = {"host_id": "h1", "boot_id": "boot-123456789", "capacity": limits or capacity(), "ordered": mode}
        fields |= {"guard": GUARD, "reactive": RULE}
        self.core = AgentCore(**{**fields, **core})  # type: ignore[arg-type]
        self.tell(ev.InventoryRead(domains=self.domains))
        self.tell(ev.LinkUp(epoch=1, acked=-1))

    def tell(self, event: ev.Event) -> list[ev.Instruction]:
        """Hand in one event and answer what comes out; returns everything that came out."""
        told: list[ev.Instruction] = []
        events = [event]
        while events:
            out = self.core.handle(events.pop(0), self.now)
            self.log += out
            told += out
            for instruction in out:
                events += self._answer(instruction)
        return told

    def _answer(self, instruction: ev.Instruction) -> list[ev.Event]:
        if isinstance(instruction, ev.SubmitStep):
            step = instruction.step
            if self.deaf:
                return []
            if self.reject is not None:
                return [msgspec.structs.replace(self.reject, step_id=step.id)]
            if step.kind not in self.stuck:
                self.values[step.vm_id][step.kind] = step.value
            return [ev.StepAccepted(step_id=step.id)]
        if isinstance(instruction, ev.ReadBack) and instruction.vm_id in self.values:
            return [ev.AllocationRead(vm_id=instruction.vm_id, allocation=self.allocation(instruction.vm_id))]
        return []

    def allocation(self, vm_id: str) -> Allocation:
        return Allocation(**{FIELDS[kind][0]: value for kind, value in self.values[vm_id].items()})

    def sample(self, vm_id: str = "vm-1", advance_s: float = 5, **reading: int) -> list[ev.Instruction]:
        """One sampling round `advance_s` later; `reading` changes what `vm_id` shows."""
        self.now += int(advance_s * NS_PER_S)
        self.readings[vm_id] = msgspec.structs.replace(self.readings[vm_id], **reading)
        vms = {
            d.vm_id: msgspec.structs.replace(
                self.readings[d.vm_id], **{FIELDS[kind][1]: value for kind, value in self.values[d.vm_id].items()}
            )
            for d in self.domains
            if d.running
        }
        return self.tell(
            ev.Sampled(sample=HostSample(wall_ns=self.now, monotonic_ns=self.now - T0, period_ns=5 * NS_PER_S, vms=vms), runs=self.runs)
        )

    def calm(self) -> None:
        """Readings that allow any shrink and ask for nothing."""
        for vm_id in self.readings:
            self.readings[vm_id] = VmSample(
                cpu_used_millicores=300,
                cpu_throttled_permille=0,
                memory_used_bytes=GIB // 2,
                memory_reading_age_ms=1000,
                psi_memory_some_permille=0,
                net_rx_bits_per_s=10_000_000,
                net_tx_bits_per_s=10_000_000,
            )
        self.sample()

    def tick(self, advance_s: float = 1) -> list[ev.Instruction]:
        self.now += int(advance_s * NS_PER_S)
        return self.tell(ev.Tick())

    def plan(self, *steps: Step, epoch: int = 1, sequence: int = 1, deadline_s: int = 600, host_id: str = "h1") -> list[ev.Instruction]:
        plan = Plan(
            host_id=host_id, epoch=epoch, sequence=sequence, issued_ns=self.now, deadline_ns=self.now + deadline_s * NS_PER_S, steps=steps
        )
        return self.tell(ev.PlanArrived(plan=plan))

    def step(self, kind: StepKind, value: int, step_id: str = "s1", vm_id: str = "vm-1", **changes: object) -> Step:
        fields: dict[str, object] = {
            "before": self.values[vm_id].get(kind),
            "deadline_ns": self.now + 600 * NS_PER_S,
            "reason": "forecast_peak",
        }
        return Step(id=step_id, vm_id=vm_id, kind=kind, value=value, **{**fields, **changes})  # type: ignore[arg-type]


def submitted(out: list[ev.Instruction]) -> list[Step]:
    return [i.step for i in out if isinstance(i, ev.SubmitStep)]


def outcomes(out: list[ev.Instruction]) -> list[Outcome]:
    return [i.entry.outcome for i in out if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Closed)]


def one(out: list[ev.Instruction]) -> Outcome:
    (outcome,) = outcomes(out)
    return outcome
