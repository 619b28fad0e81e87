"""Whose a value is: ours, or somebody else's who changed it while no step of ours could explain it. Pure.

Every lever of a VM has a believed value: what a step of ours left there, or what was found at first sight. A reading that differs from it
beyond the lever's rounding is explained by a step of ours (in flight; one that ended a moment ago; one that was never seen in force, which
may still come) or by a lever that moves others (a vCPU added changes the quota), or else it is foreign: an operator's virsh, another
controller, an edited domain. The VM is then left to them for a while. The first sight of a run of a VM is no change: a VM that was
restarted, or came here by migration, is new. How many vCPUs a guest keeps online is the guest's own matter and never foreign.
Nor is it a change that a guest which is just starting fills its balloon down to the defined size: while the balloon of a run that was seen
for the first time has not stood still with a driver that answers, what is believed of it follows it.
A guest that reboots inside its QEMU keeps its limits on the host, so what is believed of them stays; but its balloon and its virtio-mem
begin empty and are filled again by a driver of the new run, if it has one: whatever they show on that way is the guest's. Nobody tells
which balloon target was set last, so a balloon that opens by itself (deflate on OOM, driver unloaded) looks like an operator's `setmem`.
It is taken for the guest's only where it shows exactly the domain's maximum and the VM was just short of memory (`own`): an operator who
helps a VM in need all the way wants what we want, and with any other value, or without need, it is theirs.
Invariant: the believed value follows only explained readings and foreign ones, each of which is told once.
Also kept per run: the value before our first touch of each lever, the owner's default that decay returns to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from agent.acting.levers import grows, shows
from agent.events import Closed, Intent, JournalEntry, Owned
from agent.ports import REBOOTS
from shared.plan import OutcomeState, StepKind
from shared.units import NS_PER_S

# Two samples: one that was begun before a step was seen in force may still show the value of before.
SETTLE_NS: Final = 10 * NS_PER_S
# A submit call that hung, a balloon that the guest follows only when it frees memory: an hour covers its hourly jobs.
LATE_NS: Final = 3600 * NS_PER_S
# A guest whose balloon driver has told nothing by then tells nothing ever (some have no such service); drivers are loaded within minutes.
BOOT_NS: Final = 600 * NS_PER_S
# Levers that pass through the values between: anything on the way is the step's.
GRADUAL: Final = frozenset({StepKind.MEMORY, StepKind.VIRTIO_MEM, StepKind.VCPUS, StepKind.DIMM})
# A step counts as seen within 1 % and the balloon then does the rest: twice that is still its own way to rest, and no operator's change.
BALLOON_DRIFT_PERMILLE: Final = 20
GUESTS_OWN: Final = frozenset({StepKind.VCPUS_ONLINE})
# lever -> the levers whose change may move it as well
MOVED_BY: Final = {
    StepKind.CPU_QUOTA: (StepKind.VCPUS, StepKind.CPU_PERIOD),  # kept per vCPU, in microseconds of the period
    StepKind.CPU_PERIOD: (StepKind.CPU_QUOTA,),
    StepKind.MEMORY: (StepKind.DIMM, StepKind.VIRTIO_MEM),  # the balloon's actual size counts plugged memory
    StepKind.DISK_BYTES: (StepKind.DISK_OPS,),  # one throttle group
    StepKind.DISK_OPS: (StepKind.DISK_BYTES,),
    StepKind.NET_TX: (StepKind.NET_TX_RATE,),  # one class
    StepKind.NET_TX_RATE: (StepKind.NET_TX,),
}
# A host has at most 4096 domains (shared.messages.Inventory); as many that left are remembered in the journal.
MAX_VMS: Final = 8192


class Sight(StrEnum):
    """What a sample says of a VM's run."""

    KNOWN = "known"
    REBOOTED = "rebooted"  # the same QEMU, another run of its guest
    RESTARTED = "restarted"  # another QEMU


@dataclass(frozen=True, slots=True)
class Foreign:
    """A lever that somebody else changed."""

    kind: StepKind
    believed: int
    found: int


@dataclass(slots=True)
class Reach:
    """Values that steps of ours may bring about. `until_ns` None = one is in flight; `doubtful`: it may still take effect late."""

    points: set[int]
    until_ns: int | None = None
    doubtful: bool = False

    def explains(self, kind: StepKind, value: int, now_ns: int) -> bool:
        """The value is one of them, or on the way between them."""
        if not self.active(now_ns):
            return False
        if any(shows(kind, point, value) for point in self.points):
            return True
        if kind not in GRADUAL and self.until_ns is not None:
            return False
        return any(grows(point, value) for point in self.points) and any(grows(value, point) for point in self.points)

    def active(self, now_ns: int) -> bool:
        """In flight, or not yet over."""
        return self.until_ns is None or now_ns < self.until_ns


@dataclass(slots=True)
class _Vm:
    run: str = ""
    met: bool = False  # seen in a sample by this process: until then nobody knows whether it is still the same run
    believed: dict[StepKind, int] = field(default_factory=dict)
    defaults: dict[StepKind, int] = field(default_factory=dict)
    held: dict[StepKind, int] = field(default_factory=dict)
    reach: dict[StepKind, Reach] = field(default_factory=dict)
    yielded_until_ns: int = 0
    oom_at_ns: int | None = None
    unsaved: bool = False  # another run of the guest, not in the journal yet
    filling_since_ns: int | None = None  # first sight of a balloon that may still be filled, or its newest move; None = it stood still


class Ownership:
    """All VMs of the host, by id."""

    def __init__(self, owned: Iterable[Owned] = ()) -> None:
        """`owned`: what the journal holds (`fold`)."""
        self._vms: dict[str, _Vm] = {}
        for entry in owned:
            self._vms[entry.vm_id] = _Vm(
                run=entry.run,
                believed=dict(entry.believed),
                defaults=dict(entry.defaults),
                held=dict(entry.held),
                yielded_until_ns=entry.yielded_until_ns,
                oom_at_ns=entry.oom_at_ns,
            )

    def meet(self, vm_id: str, run: str, emptied: Mapping[StepKind, int], now_ns: int) -> Sight:
        """A sample shows this run of the VM ("" = not known). RESTARTED: nothing of before counts.

        `emptied`: levers that a guest's reboot moves by itself -> the value that they begin with.
        """
        vm = self._vms.setdefault(vm_id, _Vm())
        vm.met = True
        if not run or run == vm.run:
            return Sight.KNOWN
        before, vm.run = vm.run, run
        if not before:
            return Sight.KNOWN
        if before.partition(REBOOTS)[0] != run.partition(REBOOTS)[0]:
            self._vms[vm_id] = _Vm(met=True, run=run)
            return Sight.RESTARTED
        for kind, value in emptied.items():
            if vm.believed.get(kind, value) != value:
                self._loosen(vm, kind, value, now_ns)
        vm.unsaved = True
        return Sight.REBOOTED

    def forget(self, vm_id: str) -> bool:
        """The VM stopped or left; True when something was known of it."""
        return self._vms.pop(vm_id, None) is not None

    def begun(self, vm_id: str, kind: StepKind, *values: int, now_ns: int | None = None) -> None:
        """A step (or its undo) is being submitted; `values`: before and after. The first one of a run takes the owner's default down.

        Strides follow each other faster than samples do, and QEMU tells libvirt of its balloon once a second: what an earlier stride, not
        settled at `now_ns`, began with may still be shown after the last one.
        """
        vm = self._vms.setdefault(vm_id, _Vm())
        vm.defaults.setdefault(kind, values[0])
        if kind is StepKind.MEMORY:
            vm.filling_since_ns = None
        reach = vm.reach.get(kind)
        settling = reach is not None and now_ns is not None and reach.active(now_ns) and not reach.doubtful
        if reach is not None and (reach.until_ns is None or settling):
            reach.points.update(values)
            reach.until_ns = None
        else:
            vm.reach[kind] = Reach(set(values))

    def ended(self, vm_id: str, kind: StepKind, value: int | None, *, sure: bool, now_ns: int) -> None:
        """A step is over and left `value`; not `sure`: it was not seen as it should be, and may come about late."""
        vm = self._vms.get(vm_id)
        if vm is None or (reach := vm.reach.get(kind)) is None:
            return
        reach.doubtful = not sure
        reach.until_ns = now_ns + (SETTLE_NS if sure else LATE_NS)
        if value is not None:
            vm.believed[kind] = value

    def doubt(self, vm_id: str, kind: StepKind, points: Iterable[int], until_ns: int) -> None:
        """A step of an earlier process that was never seen in force."""
        vm = self._vms.setdefault(vm_id, _Vm())
        vm.reach.setdefault(kind, Reach(set(points), until_ns, doubtful=True))

    def judge(
        self,
        vm_id: str,
        in_force: Mapping[StepKind, int],
        now_ns: int,
        own: Mapping[StepKind, int] = MappingProxyType({}),
        *,
        answers: bool = True,
    ) -> tuple[list[Foreign], bool]:
        """Compare what is in force with what is believed: what somebody else changed, and whether there is news for the journal.

        `own`: lever -> the one value that the guest may have brought about by itself. `answers`: its balloon driver has told something.
        """
        vm = self._vms.get(vm_id)
        if vm is None or not vm.met:
            return [], False
        foreign: list[Foreign] = []
        first = vm.unsaved
        vm.unsaved = False
        if vm.filling_since_ns is not None:
            first |= self._filled(vm, in_force.get(StepKind.MEMORY), now_ns, answers)
        if vm.believed == in_force:  # nearly always, and three quarters of a round's cost when looked at one by one
            return foreign, first
        for kind, value in in_force.items():
            believed = vm.believed.get(kind)
            if believed is None:
                vm.believed[kind], first = value, True
                if kind is StepKind.MEMORY:
                    vm.filling_since_ns = now_ns
                continue
            if value == believed or kind in GUESTS_OWN or shows(kind, believed, value):
                continue
            if kind is StepKind.MEMORY and abs(value - believed) * 1000 <= BALLOON_DRIFT_PERMILLE * believed:
                continue
            reach = vm.reach.get(kind)
            if reach is not None and reach.explains(kind, value, now_ns):
                if reach.doubtful:  # news: whoever starts after this process knows no reach that explains it
                    vm.believed[kind], first = value, True
                continue
            if any(other in vm.reach and vm.reach[other].active(now_ns) for other in MOVED_BY.get(kind, ())):
                vm.believed[kind], first = value, True
                continue
            if value == own.get(kind):
                self._loosen(vm, kind, value, now_ns)
                vm.believed[kind], first = value, True
                continue
            vm.believed[kind] = value
            vm.reach.pop(kind, None)
            vm.defaults.pop(kind, None)  # their value is the owner's newer word
            foreign.append(Foreign(kind, believed, value))
        return foreign, first

    @staticmethod
    def _filled(vm: _Vm, value: int | None, now_ns: int, answers: bool) -> bool:
        """Follow a balloon that is being filled for the first time; whether it moved."""
        assert vm.filling_since_ns is not None
        believed = vm.believed[StepKind.MEMORY]
        if value is not None and not shows(StepKind.MEMORY, believed, value):
            vm.believed[StepKind.MEMORY], vm.filling_since_ns = value, now_ns
            return True
        if now_ns - vm.filling_since_ns >= (SETTLE_NS if answers else BOOT_NS):
            vm.filling_since_ns = None
        return False

    @staticmethod
    def _loosen(vm: _Vm, kind: StepKind, value: int, now_ns: int) -> None:
        """The guest moves this lever between what is believed and `value` by itself; a step in flight goes on."""
        points = {vm.believed[kind], value}
        reach = vm.reach.get(kind)
        if reach is not None and reach.active(now_ns):
            reach.points |= points
            reach.doubtful = True
            reach.until_ns = None if reach.until_ns is None else now_ns + LATE_NS
        else:
            vm.reach[kind] = Reach(points, now_ns + LATE_NS, doubtful=True)

    def yield_to(self, vm_id: str, until_ns: int) -> None:
        """Leave the whole VM to somebody else."""
        self._vms.setdefault(vm_id, _Vm()).yielded_until_ns = until_ns

    def hold(self, vm_id: str, kind: StepKind, until_ns: int) -> None:
        """Nobody but the owner touches this lever until then."""
        self._vms.setdefault(vm_id, _Vm()).held[kind] = until_ns

    def yielded(self, now_ns: int) -> dict[str, int]:
        """VM -> until when it is left to somebody else."""
        return {vm_id: vm.yielded_until_ns for vm_id, vm in sorted(self._vms.items()) if vm.yielded_until_ns > now_ns}

    def yielded_until(self, vm_id: str) -> int:
        """Until when the VM is left to somebody else; 0 = it never was."""
        vm = self._vms.get(vm_id)
        return 0 if vm is None else vm.yielded_until_ns

    def note_oom(self, vm_id: str, at_ns: int | None) -> bool:
        """The newest sample in which the guest had killed for want of memory; True when that is news."""
        vm = self._vms.get(vm_id)
        if vm is None or at_ns is None or at_ns == vm.oom_at_ns:
            return False
        vm.oom_at_ns = at_ns
        return True

    def defaults(self, vm_id: str) -> Mapping[StepKind, int]:
        """The owner's values of the levers that we have touched in this run."""
        vm = self._vms.get(vm_id)
        return {} if vm is None else vm.defaults

    def owned(self, vm_id: str, now_ns: int, foreign: Iterable[Foreign] = ()) -> Owned:
        """The VM as the journal keeps it; holds that are over are left out."""
        vm = self._vms.get(vm_id) or _Vm()
        return Owned(
            vm_id=vm_id,
            at_ns=now_ns,
            run=vm.run,
            believed=dict(vm.believed),
            defaults=dict(vm.defaults),
            held={kind: until for kind, until in vm.held.items() if until > now_ns},
            yielded_until_ns=vm.yielded_until_ns if vm.yielded_until_ns > now_ns else 0,
            oom_at_ns=vm.oom_at_ns,
            foreign=tuple(change.kind for change in foreign),
        )


def fold(owned: dict[str, Owned], entry: JournalEntry) -> None:
    """Keep `owned` (by VM) up to date with one journal entry: intents bring the owner's defaults, outcomes what is believed."""
    if isinstance(entry, Owned):
        owned.pop(entry.vm_id, None)
        if entry.believed or entry.defaults:
            _keep(owned, msgspec.structs.replace(entry, believed=dict(entry.believed), defaults=dict(entry.defaults)))
    elif isinstance(entry, Intent):
        step = entry.step
        if step.kind is StepKind.MIGRATE:
            return  # no value of the VM changes by it
        if step.vm_id not in owned:  # a journal of an earlier release
            _keep(owned, Owned(vm_id=step.vm_id, at_ns=entry.at_ns, believed={}, defaults={}))
        if not entry.undo_of:
            owned[step.vm_id].defaults.setdefault(step.kind, entry.before)
    elif isinstance(entry, Closed):
        outcome = entry.outcome
        known = owned.get(outcome.step.vm_id)
        if outcome.step.kind is StepKind.MIGRATE:
            return
        if known is not None and outcome.value is not None and outcome.state not in (OutcomeState.REFUSED, OutcomeState.SHADOWED):
            asked, kind = outcome.step.value, outcome.step.kind
            known.believed[kind] = asked if shows(kind, asked, outcome.value) else outcome.value


def _keep(owned: dict[str, Owned], entry: Owned) -> None:
    owned[entry.vm_id] = entry
    while len(owned) > MAX_VMS:
        del owned[next(iter(owned))]
