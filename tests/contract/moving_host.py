"""A core whose VMs move: its journal and what was asked of its migrator. The test plays the migrator."""

from __future__ import annotations

from plain_host import plain_capacity

from agent import events as ev
from agent.acting.reconcile import Recovered, local_prefix, reconcile
from agent.core import AgentCore
from agent.ports import MigrationProgress
from shared.config import GuardConfig, MigrationConfig
from shared.model import Capabilities, Domain, HostSample, Mode, VmSample
from shared.plan import Outcome, Plan, Step, StepKind
from shared.units import GIB, MBIT, NS_PER_S, UNLIMITED

T0 = 1_800_000_000 * NS_PER_S
CONFIG = MigrationConfig(
    targets=("h2=qemu+tls://h2/system", "h3=qemu+tls://h3/system", "h1=qemu+tls://h1/system"),
    bits_per_s_max=800 * MBIT,
    no_progress_s=60,
    deadline_s=600,
    max_outgoing=2,
)
CALM = VmSample(
    cpu_used_millicores=300,
    cpu_throttled_permille=0,
    memory_used_bytes=GIB // 2,
    memory_reading_age_ms=1000,
    psi_memory_some_permille=0,
    vcpus=2,
    cpu_quota_millicores=1500,
    cpu_shares=1024,
    memory_allocated_bytes=2 * GIB,
    net_rx_ceil_bits_per_s=50 * MBIT,
    net_tx_ceil_bits_per_s=UNLIMITED,
    net_rx_bits_per_s=MBIT,
    net_tx_bits_per_s=MBIT,
)
VMS = ("vm-1", "vm-2", "vm-3")


def domain(vm_id: str, **changes: object) -> Domain:
    fields: dict[str, object] = {"vm_id": vm_id, "name": vm_id, "vcpus_max": 4, "memory_max_bytes": 8 * GIB}
    return Domain(**{**fields, "capabilities": Capabilities(migrate=None), **changes})  # type: ignore[arg-type]


def step(step_id: str = "move-1", vm_id: str = "vm-1", target: str = "h2", value: int = UNLIMITED, **changes: object) -> Step:
    fields: dict[str, object] = {"id": step_id, "vm_id": vm_id, "target": target, "value": value, "deadline_ns": T0 + 3600 * NS_PER_S}
    return Step(kind=StepKind.MIGRATE, **{**fields, **changes})  # type: ignore[arg-type]


class Host:
    """A core, its journal, and what was asked of its migrator. The test plays the migrator."""

    def __init__(self, *vm_ids: str, recovered: Recovered | None = None, config: MigrationConfig = CONFIG, **domains: Domain) -> None:
        self.here = {vm_id: domain(vm_id) for vm_id in vm_ids or VMS} | {d.vm_id: d for d in domains.values()}
        self.now = T0
        self.log: list[ev.Instruction] = []
        self.sequence = 0
        self.reading = CALM
        self.journal: list[ev.JournalEntry] = []
        self.core = AgentCore(
            host_id="h1",
            boot_id="boot-123456789",
            capacity=plain_capacity(cpu_millicores=64_000, memory_bytes=64 * GIB, net_bits_per_s=10**10),
            guard=GuardConfig(backoff_initial_s=30),
            migration=config,
            ordered=Mode.PREDICTIVE,
            recovered=recovered,
        )
        self.inventory()
        self.tell(ev.LinkUp(epoch=1, acked=-1))
        self.sample()

    def tell(self, event: ev.Event) -> list[ev.Instruction]:
        out = self.core.handle(event, self.now)
        self.log += out
        self.journal += [instruction.entry for instruction in out if isinstance(instruction, ev.WriteJournal)]
        return out

    def inventory(self) -> list[ev.Instruction]:
        return self.tell(ev.InventoryRead(domains=tuple(self.here.values())))

    def sample(self) -> list[ev.Instruction]:
        vms = dict.fromkeys(self.here, self.reading)
        return self.tell(ev.Sampled(sample=HostSample(wall_ns=self.now, monotonic_ns=self.now - T0, period_ns=5 * NS_PER_S, vms=vms)))

    def wait(self, seconds: float = 1, left: int | None = None, vm_id: str = "vm-1") -> list[ev.Instruction]:
        """Second by second; samples every fifth, and the watched VM tells that `left` bytes are left."""
        out = []
        for second in range(int(seconds)):
            self.now += NS_PER_S
            if second % 5 == 0:
                out += self.sample()
            out += self.tell(ev.Tick())
            if left is not None:
                out += self.progress(vm_id, memory_remaining_bytes=left)
        return out

    def progress(self, vm_id: str = "vm-1", /, **fields: int) -> list[ev.Instruction]:
        return self.tell(ev.MigrationProgressed(vm_id=vm_id, progress=MigrationProgress(**fields)))

    def plan(self, *steps: Step, deadline_s: int = 3600) -> list[ev.Instruction]:
        self.sequence += 1
        plan = Plan(
            host_id="h1", epoch=1, sequence=self.sequence, issued_ns=self.now, deadline_ns=self.now + deadline_s * NS_PER_S, steps=steps
        )
        return self.tell(ev.PlanArrived(plan=plan))

    def outcomes(self) -> list[Outcome]:
        return [i.entry.outcome for i in self.log if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Closed)]

    def outcome(self) -> Outcome:
        """The only one."""
        (outcome,) = self.outcomes()
        return outcome

    def restarted(self) -> Host:
        """A new process on this host's journal; what runs here runs on."""
        fresh = Host(*self.here, recovered=reconcile(self.journal, local_prefix("h1", "boot-123456789")))
        fresh.journal = self.journal + fresh.journal
        fresh.sequence = self.sequence
        return fresh


def of(kind: type, instructions: list[ev.Instruction]) -> list[ev.Instruction]:
    return [instruction for instruction in instructions if isinstance(instruction, kind)]


def started(host: Host, **changes: object) -> Host:
    """With one move under way."""
    assert of(ev.StartMigration, host.plan(step(**changes)))  # type: ignore[arg-type]
    return host
