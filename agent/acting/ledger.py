"""What the agent knows of its VMs: values in force, readings, steps of late, failures, and what the host has promised in sum. Pure.

Invariant: a value in flight is charged at the larger of what is and what will be, so an in-flight growth uses room at once and an in-flight
shrink frees none before it is verified (a vCPU that the guest has not let go of, too); a value never read is charged as full.
A growth counts as shown from 99 % of it on, and may still do the rest: it is charged whole.

What must survive a restart is handed in after the first inventory: `restore_change` for every step begun of late, oldest first (cooldowns,
turns, growth budgets, the hour's cuts of memory, the blast radius), `restore_oom`, `restore_failure`, `yield_to`, and `began_with` for
what each VM began with. Rates of steps per minute and back-offs start anew: a restart takes longer than the one and proves little of the
other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import Final

from agent.acting.budgets import MINUTE_NS, BlastRadius, Circuit, GrowthBudget, MemoryCuts, Turns
from agent.acting.guard import View
from agent.acting.levers import (
    FIELDS,
    MEMORY_LEVERS,
    PROMISE_OF,
    WEIGHTS,
    Promise,
    bounds,
    charge,
    commit_limit,
    extent,
    grows,
    shows,
)
from agent.acting.pressure import short_of_memory
from agent.acting.reactive import Demand, Situation
from agent.events import Decision
from shared.config import GuardConfig
from shared.model import Allocation, Domain, HostCapacity, VmSample
from shared.plan import StepKind
from shared.units import NS_PER_S, UNLIMITED

# QEMU tells libvirt of its balloon once a second at most, and libvirt's statistics show what it was told last; a read-back asks QEMU.
HEARD_NS: Final = 2 * NS_PER_S
# Decisions kept per VM for `why VM`: an hour of a busy VM, a day of a quiet one.
STORY_LENGTH: Final = 20
# A memory step that follows one of the same direction this closely is the next stride of it: it is bounded by its size and by having been
# verified, and would use up a rate that is meant for decisions.
STRIDE_NS: Final = 10 * NS_PER_S

# With less than this share of its limit left, the host has little left to promise.
SCARCE_PERMILLE: Final = 200

_KINDS: Final = tuple(FIELDS)
_sample_columns: Final = attrgetter(*(column for _, column in FIELDS.values()))
_allocation_fields: Final = attrgetter(*(name for name, _ in FIELDS.values()))


class VmRecord:
    """One VM. Mutable; owned by the Ledger."""

    __slots__ = (
        "_columns",
        "_read_at_ns",
        "_scarce",
        "backoff_until",
        "budget",
        "demand",
        "domain",
        "failures",
        "grown_at",
        "in_force",
        "memory_cuts",
        "oom_at_ns",
        "ours",
        "owed",
        "pending",
        "reading",
        "reading_at_ns",
        "short_at_ns",
        "shrunk_at",
        "situation",
        "steps",
        "story",
        "told_at",
        "turns",
        "yielded",
    )

    def __init__(self, domain: Domain, config: GuardConfig, scarce: AbstractSet[StepKind] = frozenset()) -> None:
        """`scarce`: the host's levers with little left to promise; read whenever the local rule looks."""
        self.domain = domain
        self._scarce = scarce
        self.in_force: dict[StepKind, int] = {}
        self.pending: dict[StepKind, tuple[int, int]] = {}  # lever with a step in flight -> (before, value)
        self.owed: dict[StepKind, int] = {}  # what the newest growth asked for; the last percent of it may come after it was verified
        self.reading: VmSample | None = None
        self.reading_at_ns = 0
        self.demand = Demand()
        self.grown_at: dict[StepKind, int] = {}
        self.shrunk_at: dict[StepKind, int] = {}
        self.failures: dict[tuple[StepKind, bool], int] = {}  # (lever, growth) -> failures in a row
        self.backoff_until: dict[tuple[StepKind, bool], int] = {}
        self.steps: deque[int] = deque()
        self.story: deque[Decision] = deque(maxlen=STORY_LENGTH)
        self.told_at: dict[tuple[StepKind, str], int] = {}  # (lever, verdict) of a local step -> when it was last reported
        self.turns = Turns()
        self.budget = GrowthBudget()
        self.memory_cuts = MemoryCuts()
        self.ours: set[StepKind] = set()  # levers whose value in force may be of our making
        self.oom_at_ns: int | None = None
        self.short_at_ns: int | None = None  # newest sample in which it was short of memory
        self.yielded: dict[StepKind | None, int] = {}  # lever, None = all of them -> until when it is left to somebody else
        self._read_at_ns = 0
        self._columns: tuple[int | None, ...] = ()  # of the newest sample that was taken in, where nothing else was since
        self.define(domain, config)

    def define(self, domain: Domain, config: GuardConfig) -> None:
        """Take over a (new) definition."""
        self.domain = domain
        limits = {kind: bounds(kind, domain, config) for kind in FIELDS}
        self.situation = Situation(
            self.in_force, limits, domain.vcpus_max, domain.net_max_bits_per_s, self.ours, self.turns.growing, self._scarce
        )

    def note_sample(self, reading: VmSample, wall_ns: int, seen_ns: int) -> None:
        """Take in a sample; its allocation columns count unless something newer was read back. None leaves the last known value.

        A balloon figure of before three strides that were read back would undo them in our eyes, and the next growth from there would take
        memory away.
        """
        self.reading, self.reading_at_ns = reading, wall_ns
        if reading.guest_oom_kills:
            self.oom_at_ns = wall_ns
        if short_of_memory(reading):
            self.short_at_ns = wall_ns
        if seen_ns <= self._read_at_ns + HEARD_NS:
            return
        columns = _sample_columns(reading)
        if columns != self._columns:  # most samples of most VMs show what the one before showed
            self._take_in(columns)
            self._columns = columns

    def note_allocation(self, allocation: Allocation, now_ns: int) -> None:
        """Take in what was read back."""
        self._read_at_ns = now_ns
        self._columns = ()
        self._take_in(_allocation_fields(allocation))

    def _take_in(self, values: tuple[int | None, ...]) -> None:
        in_force = self.in_force
        for kind, value in zip(_KINDS, values, strict=True):
            if value is not None:
                if kind not in in_force:
                    self._first_seen(kind, value)
                in_force[kind] = value

    def lately_short(self, now_ns: int) -> bool:
        """It was short of memory in the newest sample or the one before."""
        return self.short_at_ns is not None and now_ns - self.short_at_ns <= STRIDE_NS

    def _first_seen(self, kind: StepKind, value: int) -> None:
        if kind in PROMISE_OF:
            self.budget.began_with(kind, extent(kind, value, self.domain, self.vcpus))

    @property
    def memory_sum_bytes(self) -> int:
        """Balloon and devices in force or, where that is more, on their way; what is not known counts nothing."""
        in_force, pending = self.in_force, self.pending
        if not pending:
            return sum([in_force.get(kind, 0) for kind in MEMORY_LEVERS])
        return sum([max(in_force.get(kind, 0), *pending.get(kind, (0, 0))) for kind in MEMORY_LEVERS])

    @property
    def vcpus(self) -> int:
        """vCPUs in force or on their way; the domain's maximum when not known."""
        now = self.in_force.get(StepKind.VCPUS, self.domain.vcpus_max)
        flying = self.pending.get(StepKind.VCPUS)
        return now if flying is None else max(now, *flying)

    def another_memory_falls(self, kind: StepKind) -> bool:
        """A step in flight takes memory by another lever than this one."""
        return any(kind is not other and grows(*reversed(self.pending.get(other, (0, 0)))) for other in MEMORY_LEVERS)

    def charged(self, promise: Promise) -> int:
        """What this VM takes of one promise."""
        domain = self.domain
        if not domain.running:
            return 0
        vcpus, total = self.vcpus, 0
        for kind in _LEVERS_OF[promise]:
            most = charge(kind, self.in_force.get(kind), domain, vcpus)
            for value in self.pending.get(kind, ()):
                most = max(most, charge(kind, value, domain, vcpus))
            owed = self.owed.get(kind)
            if owed is not None and shows(kind, owed, self.in_force.get(kind)):
                most = max(most, charge(kind, owed, domain, vcpus))
            total += most
        return total


# Whose values are summed up; vCPUs only turn an unlimited quota into a number.
_LEVERS_OF: Final = {
    Promise.CPU: (StepKind.CPU_QUOTA,),
    Promise.MEMORY: MEMORY_LEVERS,
    Promise.NET_RX: (StepKind.NET_RX,),
    Promise.NET_TX: (StepKind.NET_TX,),
    Promise.NET_TX_RATE: (StepKind.NET_TX_RATE,),
}


class Ledger:
    """All VMs of the host, by id."""

    def __init__(self, config: GuardConfig, capacity: HostCapacity) -> None:
        self.config = config
        self.capacity = capacity
        self.vms: dict[str, VmRecord] = {}
        self.circuit = Circuit()
        self._radius = BlastRadius()
        self._running = 0
        self._steps: deque[int] = deque()
        self._scarce: set[StepKind] = set()
        self._rooms: dict[Promise, int] = {}  # of this moment; emptied whenever a value or a flight changes

    def define(self, domains: tuple[Domain, ...]) -> list[str]:
        """Take over the inventory; returns the VMs that are gone or no longer run, sorted."""
        self._rooms.clear()
        named = {domain.vm_id: domain for domain in domains}
        lost = [vm_id for vm_id in self.vms if vm_id not in named]
        for vm_id in lost:
            del self.vms[vm_id]
        for vm_id, domain in sorted(named.items()):
            record = self.vms.get(vm_id)
            if record is None:
                self.vms[vm_id] = VmRecord(domain, self.config, self._scarce)
                continue
            if record.domain.running != domain.running:
                # Stopped, or begun (it came by migration, with the limits half made): what was read of it says nothing about this run.
                if record.domain.running:
                    lost.append(vm_id)
                self.vms[vm_id] = VmRecord(domain, self.config, self._scarce)
                self.vms[vm_id].story = record.story
            elif record.domain != domain:
                record.define(domain, self.config)
        self._running = sum(domain.running for domain in domains)
        return sorted(lost)

    def view(self, vm_id: str, kind: StepKind, now_ns: int) -> View:
        """What the guard may look at for one lever of one VM."""
        record = self.vms.get(vm_id)
        if record is None:
            return View(domain=None, in_force=None, vcpus=0, reading=None, reading_at_ns=0)
        _forget_before(record.steps, now_ns - MINUTE_NS)
        _forget_before(self._steps, now_ns - MINUTE_NS)
        budget_ns, flap_ns = self.config.growth_budget_window_s * NS_PER_S, self.config.flap_window_s * NS_PER_S
        in_force, pending, base = record.in_force.get(kind), record.pending, None
        vcpus, memory = record.vcpus, kind in MEMORY_LEVERS
        if kind in PROMISE_OF and in_force is not None:
            base = record.budget.base(kind, extent(kind, in_force, record.domain, vcpus), now_ns, budget_ns)
        return View(
            domain=record.domain,
            in_force=in_force,
            vcpus=vcpus,
            reading=record.reading,
            reading_at_ns=record.reading_at_ns,
            busy=kind in pending or StepKind.MIGRATE in pending,  # nothing of a VM changes while it moves
            growth_waits_until_ns=record.backoff_until.get((kind, True), 0),
            shrink_waits_until_ns=record.backoff_until.get((kind, False), 0),
            grown_at_ns=record.grown_at.get(kind),
            shrunk_at_ns=record.shrunk_at.get(kind),
            vm_steps=len(record.steps),
            host_steps=len(self._steps),
            room=self._room_for(record, kind),
            moving=bool(pending),
            yielded_until_ns=max(record.yielded.get(None, 0), record.yielded.get(kind, 0)) if record.yielded else 0,
            memory_bytes=record.in_force.get(StepKind.MEMORY) if memory else None,
            memory_sum_bytes=record.memory_sum_bytes if memory else 0,
            memory_falling=memory and bool(pending) and record.another_memory_falls(kind),
            memory_peak=record.memory_cuts.peak(now_ns) if memory else None,
            turning=record.turns.would_turn(kind),
            turned_at_ns=record.turns.within(kind, now_ns - flap_ns),
            cut_recently=self._radius.recently(vm_id, now_ns),
            cuts_at_ns=self._radius.others(vm_id, now_ns),
            vms=self._running,
            circuit_open_until_ns=self.circuit.open_until_ns,
            budget_base=base,
            budget_ends_ns=record.budget.ends_ns(kind, now_ns, budget_ns),
            oom_at_ns=record.oom_at_ns,
        )

    def room(self, promise: Promise) -> int:
        """What the host may still promise; negative when it has promised too much."""
        room = self._rooms.get(promise)
        if room is None:
            room = commit_limit(promise, self.capacity) - sum(record.charged(promise) for record in self.vms.values())
            self._rooms[promise] = room
        return room

    def note_samples(
        self, samples: Mapping[str, VmSample], wall_ns: int, seen_ns: int | None = None
    ) -> list[tuple[str, VmRecord, VmSample]]:
        """Take in one round of samples; those of known VMs, sorted by id. `seen_ns`: time of its oldest reading (None = wall_ns)."""
        self._rooms.clear()
        known = []
        for vm_id in sorted(samples):
            record = self.vms.get(vm_id)
            if record is not None:
                record.note_sample(samples[vm_id], wall_ns, wall_ns if seen_ns is None else seen_ns)
                known.append((vm_id, record, samples[vm_id]))
        self._note_scarce()
        return known

    def _note_scarce(self) -> None:
        promise = PROMISE_OF[StepKind.CPU_QUOTA]
        if self.room(promise) * 1000 < SCARCE_PERMILLE * commit_limit(promise, self.capacity):
            self._scarce.add(StepKind.CPU_QUOTA)
        else:
            self._scarce.discard(StepKind.CPU_QUOTA)

    def note_allocation(self, vm_id: str, allocation: Allocation, now_ns: int) -> bool:
        """Take in what was read back; False when there is no such VM."""
        record = self.vms.get(vm_id)
        if record is None:
            return False
        self._rooms.clear()
        record.note_allocation(allocation, now_ns)
        return True

    def hold(self, vm_id: str, kind: StepKind, before: int, value: int) -> None:
        """A step is in flight: its lever is busy, and both its values are charged."""
        self._rooms.clear()
        record = self.vms[vm_id]
        record.owed.pop(kind, None)
        record.pending[kind] = (before, value)

    def begun(self, vm_id: str, kind: StepKind, before: int, value: int, now_ns: int, *, unplanned: bool = False) -> None:
        """A step was submitted: it counts against rates, cooldowns, budgets and promises. `unplanned`: as the guard was told."""
        record = self.vms[vm_id]
        same_way = record.grown_at if grows(before, value) else record.shrunk_at
        if kind is not StepKind.MEMORY or not 0 <= now_ns - same_way.get(kind, -STRIDE_NS) < STRIDE_NS:
            record.steps.append(now_ns)
            self._steps.append(now_ns)
        self._note_change(record, kind, before, value, now_ns, unplanned)
        self.hold(vm_id, kind, before, value)

    def restore_change(
        self, vm_id: str, kind: StepKind, before: int, value: int, at_ns: int, *, unplanned: bool = False, memory_bytes: int = 0
    ) -> None:
        """A step begun before a restart; oldest first, `at_ns` wall time of its intent. Unknown VMs are ignored.

        `memory_bytes`: the VM's memory in sum when a step of memory was begun; 0 = as far as it is known now.
        """
        record = self.vms.get(vm_id)
        if record is not None:
            self._note_change(record, kind, before, value, at_ns, unplanned, memory_bytes)

    def _note_change(  # noqa: PLR0917
        self, record: VmRecord, kind: StepKind, before: int, value: int, now_ns: int, unplanned: bool, memory_bytes: int = 0
    ) -> None:
        record.ours.add(kind)
        if kind in WEIGHTS or kind is StepKind.MIGRATE:
            return
        if grows(before, value):
            record.grown_at[kind] = now_ns
            record.turns.grew(kind)
            if unplanned:
                record.budget.grew(kind, before, now_ns, self.config.growth_budget_window_s * NS_PER_S)
            return
        record.shrunk_at[kind] = now_ns
        record.turns.shrank(kind, now_ns, self.config.flap_window_s * NS_PER_S)
        self._radius.cut(record.domain.vm_id, now_ns)
        if kind in MEMORY_LEVERS:
            record.memory_cuts.cut(max(record.memory_sum_bytes, before, memory_bytes), now_ns)

    def restore_oom(self, vm_id: str, at_ns: int) -> None:
        """The guest killed for want of memory before a restart; `VmRecord.oom_at_ns` is what must have been written down."""
        record = self.vms.get(vm_id)
        if record is not None:
            record.oom_at_ns = max(at_ns, record.oom_at_ns or 0)

    def restore_failure(self, at_ns: int) -> None:
        """A step that failed before a restart; oldest first."""
        config = self.config
        self.circuit.failed(
            at_ns, failures=config.circuit_failures, window_ns=config.circuit_window_s * NS_PER_S, open_ns=config.circuit_open_s * NS_PER_S
        )

    def began_with(self, vm_id: str, kind: StepKind, value: int) -> None:
        """What a VM had before the agent ever changed it; only what comes before the first reading of the lever counts."""
        record = self.vms.get(vm_id)
        if record is not None:
            record.budget.began_with(kind, extent(kind, value, record.domain, record.vcpus))

    def yield_to(self, vm_id: str, until_ns: int, kind: StepKind | None = None) -> None:
        """Somebody else changed this VM (or this lever of it): it is left to them until then. A later end wins; unknown VMs are ignored."""
        record = self.vms.get(vm_id)
        if record is not None:
            record.yielded[kind] = max(record.yielded.get(kind, 0), until_ns)

    def take_back(self, vm_id: str) -> None:
        """The owner wants the VM handled again at once: end all yielding."""
        record = self.vms.get(vm_id)
        if record is not None:
            record.yielded.clear()

    def configure(self, config: GuardConfig) -> None:
        """Other settings from now on; what was counted so far stays counted."""
        self.config = config
        for record in self.vms.values():
            record.define(record.domain, config)

    def ended(self, vm_id: str, kind: StepKind, *, growth: bool, failed: bool, now_ns: int) -> None:
        """A step in flight is over: its lever is free, and backs off in this direction (doubling) when it failed."""
        record = self.vms.get(vm_id)
        if record is None:
            return
        self._rooms.clear()
        asked = record.pending.pop(kind, None)
        if growth and asked is not None:
            record.owed[kind] = asked[1]
        if not failed:
            record.failures.pop((kind, growth), None)
            record.backoff_until.pop((kind, growth), None)
            return
        self.restore_failure(now_ns)
        failures = record.failures.get((kind, growth), 0) + 1
        record.failures[kind, growth] = failures
        # 2^20 x 1 s is past any allowed maximum; the shift stays small whatever the count.
        wait_s = min(self.config.backoff_initial_s << min(failures - 1, 20), self.config.backoff_max_s)
        record.backoff_until[kind, growth] = now_ns + wait_s * NS_PER_S

    def gave_back(self, vm_id: str, kind: StepKind, now_ns: int) -> None:
        """A shrink is being taken back because the VM needs it: counts as a growth, so that the next shrink waits."""
        record = self.vms[vm_id]
        record.grown_at[kind] = now_ns
        record.turns.grew(kind)

    def _room_for(self, record: VmRecord, kind: StepKind) -> int | None:
        promise = PROMISE_OF.get(kind)
        if promise is None:
            return None
        if kind is StepKind.VCPUS:
            quotas = (record.in_force.get(StepKind.CPU_QUOTA), *record.pending.get(StepKind.CPU_QUOTA, ()))
            if UNLIMITED not in quotas:
                return None  # the quota is what is promised; more vCPUs change nothing of it
        return self.room(promise)

    def __iter__(self) -> Iterator[tuple[str, VmRecord]]:
        return iter(sorted(self.vms.items()))


def _forget_before(times: deque[int], since_ns: int) -> None:
    while times and times[0] <= since_ns:
        times.popleft()
