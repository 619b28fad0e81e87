"""Counters of perf_event_open(2) per VM: what is counted, on what, and for how long. The syscall itself is behind the PerfEvents port.

What is measured. A VM's vCPU threads, one pair of groups each, while it has no more of them than the host has CPUs (every sane VM):
100 VMs with 2 vCPUs are 200 threads x 4 software events = 800 descriptors (1,400 with the PMU's three) and 200 to 400 reads a round.
Per control group the kernel wants every event on every CPU: on 64 CPUs that would be 25,600 descriptors, and each switch between groups
would cost on every CPU. So the group is taken only for a VM with more vCPUs than CPUs; it counts QEMU's other threads as well.
A group of events is read by one read(2). Software and hardware events are apart: events of one group are on the CPU together or not at all,
and a PMU that others have taken must not stop the software counters.

Invariant: a VM's totals never fall while it is the same process. A vCPU that was unplugged leaves its last values in them.
Source: man 2 perf_event_open; kernel/events/core.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from agent.ports import PerfCounts
from shared.errors import HostError

# Of all VMs together. 100 VMs with 8 vCPUs and 7 events need 5,600; what the process may open at all is asked of the port.
MOST_DESCRIPTORS: Final = 8192
_log = structlog.get_logger(__name__)


class PerfEvent(Enum):
    """An event: the field of PerfCounts it fills, and its (type, config) of linux/perf_event.h."""

    TASK_CLOCK = ("task_clock_ns_total", 1, 1)
    CONTEXT_SWITCHES = ("context_switches_total", 1, 3)
    CPU_MIGRATIONS = ("cpu_migrations_total", 1, 4)
    PAGE_FAULTS = ("page_faults_total", 1, 2)
    CYCLES = ("cycles_total", 0, 0)
    INSTRUCTIONS = ("instructions_total", 0, 1)
    CACHE_MISSES = ("cache_misses_total", 0, 3)

    @property
    def column(self) -> str:
        """Field of PerfCounts."""
        return self.value[0]


SOFTWARE: Final = (PerfEvent.TASK_CLOCK, PerfEvent.CONTEXT_SWITCHES, PerfEvent.CPU_MIGRATIONS, PerfEvent.PAGE_FAULTS)
HARDWARE: Final = (PerfEvent.CYCLES, PerfEvent.INSTRUCTIONS, PerfEvent.CACHE_MISSES)


class PerfTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One thread on whatever CPU it runs, or (with `cgroup`) one CPU while it runs the group's threads."""

    tid: int = 0
    cgroup: Path | None = None
    cpu: int = -1


class GroupReading(msgspec.Struct, frozen=True, kw_only=True):
    """One read of a group: nanoseconds it was wanted and was on the CPU's counters, and a value for each of its events."""

    enabled_ns: int
    running_ns: int
    values: tuple[int, ...]


class PerfUnavailable(HostError):
    """This event (ENOENT, EOPNOTSUPP) or all of perf (EACCES, EPERM, ENOSYS: `everything`) cannot be had here."""

    def __init__(self, reason: str, *, everything: bool) -> None:
        super().__init__(reason)
        self.everything = everything


class PerfGroup(Protocol):
    """Open events of one target."""

    @property
    def events(self) -> tuple[PerfEvent, ...]:
        """Those that could be opened, in the order of a reading's values."""
        ...

    def read(self) -> GroupReading:
        """Values now; after the thread's end its last ones. Raises HostError."""
        ...

    def close(self) -> None:
        """Give the descriptors back; twice is once."""
        ...


class PerfEvents(Protocol):
    """The kernel's counters."""

    def cpus(self) -> Sequence[int]:
        """CPUs that are online."""
        ...

    def descriptors_most(self) -> int:
        """How many descriptors may be opened here without taking them from the rest of the process."""
        ...

    def open(self, target: PerfTarget, events: Sequence[PerfEvent]) -> PerfGroup:
        """Count from now on those of `events` that exist here.

        Raises PerfUnavailable when none does or perf is forbidden, HostError otherwise (thread gone, descriptors used up).
        """
        ...


def parse_group(data: bytes) -> GroupReading | None:
    """A read with PERF_FORMAT_GROUP and both times: u64 each of count, enabled, running, values. None = another shape."""
    words = memoryview(data).cast("Q") if len(data) >= 24 and len(data) % 8 == 0 else None
    if words is None or words[0] != len(words) - 3:
        return None
    return GroupReading(enabled_ns=words[1], running_ns=words[2], values=tuple(words[3:]))


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Running totals of one group, corrected for the time in which others had the counters. `known`: the newest interval was measured."""

    totals: tuple[int, ...]
    seen: GroupReading  # up to where the totals go
    known: bool = True


def advance(counted: Counted | None, now: GroupReading) -> Counted:
    """Totals at `now`. Events that shared the PMU ran for a part of the time: growth of 100 in 1 of 4 ms counts 400.

    Without any running time since, nothing is known of the interval; it is made up for when the events run again.
    """
    if counted is None:
        start = GroupReading(enabled_ns=0, running_ns=0, values=(0,) * len(now.values))
        counted = Counted(totals=start.values, seen=start)
    if counted.known and now == counted.seen:  # the thread has not run
        return counted
    enabled, running = now.enabled_ns - counted.seen.enabled_ns, now.running_ns - counted.seen.running_ns
    if running <= 0:
        return Counted(totals=counted.totals, seen=counted.seen, known=enabled <= 0)
    grown = (max(0, value - before) for value, before in zip(now.values, counted.seen.values, strict=True))
    if running < enabled:
        grown = (growth * enabled // running for growth in grown)
    return Counted(totals=tuple(total + growth for total, growth in zip(counted.totals, grown, strict=True)), seen=now)


class _Open:
    """One open group and its running totals."""

    def __init__(self, group: PerfGroup) -> None:
        self.group = group
        self.columns = tuple(event.column for event in group.events)
        self.counted: Counted | None = None

    def read(self) -> Counted:
        self.counted = advance(self.counted, self.group.read())
        return self.counted


class _Vm:
    """What is open for one VM. `retired`: totals of targets that are gone."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.wanted: tuple[tuple[int, ...], Path | None] | None = None
        self.open: dict[PerfTarget, list[_Open]] = {}
        self.retired: dict[str, int] = {}  # by field of PerfCounts


class PerfReader:
    """Counters of every VM. One caller at a time."""

    def __init__(self, events: PerfEvents) -> None:
        self._events = events
        self._vms: dict[str, _Vm] = {}
        self._missing: dict[PerfEvent, str] = {}
        self._said: set[str] = set()
        self._forbidden: str | None = None
        self._full: set[str] = set()
        self._descriptors = 0

    @property
    def descriptors(self) -> int:
        """Open now."""
        return self._descriptors

    def read(self, vm_id: str, pid: int, tids: Sequence[int], cgroup_dir: Path | None) -> PerfCounts | None:
        """Totals of the VM's vCPU threads `tids` (of its v2 group `cgroup_dir` where the host has fewer CPUs) since they were opened.

        None where nothing is counted; `obstacle` says why. Another `pid` begins anew; a pid that was used again is the caller's to
        `forget`. Never raises: what fails is left out and said once.
        """
        vm = self._vms.get(vm_id)
        if vm is None or vm.pid != pid:
            self.forget(vm_id)
            vm = self._vms[vm_id] = _Vm(pid)
        elif vm_id in self._full and self._descriptors + len(PerfEvent) * len(tids) <= self._most():
            self.forget(vm_id)  # others have left room for it
            vm = self._vms[vm_id] = _Vm(pid)
        wanted = (tuple(tids), cgroup_dir)
        if vm.wanted != wanted:
            vm.wanted = wanted
            self._follow(vm_id, vm, self._targets(tids, cgroup_dir))
        return _sum(vm)

    def forget(self, vm_id: str) -> None:
        """The VM is gone: close its descriptors."""
        vm = self._vms.pop(vm_id, None)
        self._full.discard(vm_id)
        for opened in [] if vm is None else list(vm.open.values()):
            self._close(opened)

    def close(self) -> None:
        """Forget every VM."""
        for vm_id in list(self._vms):
            self.forget(vm_id)

    def obstacle(self, vm_id: str) -> str | None:
        """Why counters of this VM are missing, all or some; None = all are there, or nobody has asked for them yet."""
        if self._forbidden is not None:
            return f"perf is not available: {self._forbidden}"
        if vm_id in self._full:
            return f"perf: the {self._most()} descriptors for it are used up"
        if self._missing:
            return f"perf: no {', '.join(event.name.lower() for event in self._missing)}: {next(iter(self._missing.values()))}"
        return None

    def _targets(self, tids: Sequence[int], cgroup_dir: Path | None) -> set[PerfTarget]:
        cpus = self._events.cpus() if cgroup_dir is not None and len(tids) > 1 else ()
        if cgroup_dir is not None and 0 < len(cpus) < len(tids):
            return {PerfTarget(cgroup=cgroup_dir, cpu=cpu) for cpu in cpus}
        return {PerfTarget(tid=tid) for tid in tids}

    def _follow(self, vm_id: str, vm: _Vm, targets: set[PerfTarget]) -> None:
        for gone in vm.open.keys() - targets:
            self._retire(vm, gone)
        for target in sorted(targets - vm.open.keys(), key=lambda target: (target.tid, target.cpu)):
            self._open(vm_id, vm, target)

    def _most(self) -> int:
        return min(MOST_DESCRIPTORS, self._events.descriptors_most())

    def _open(self, vm_id: str, vm: _Vm, target: PerfTarget) -> None:
        opened: list[_Open] = []
        for wanted in (SOFTWARE, HARDWARE):
            events = [event for event in wanted if event not in self._missing]
            if not events:
                continue
            if self._descriptors + len(events) > self._most():
                self._full.add(vm_id)
                self._say("perf descriptors are used up", f"{self._most()} are allowed")
                break
            try:
                group = self._events.open(target, events)
            except PerfUnavailable as error:
                if error.everything:
                    self._forbidden = str(error)
                    self._say("perf is not available", str(error))
                    break
                if target.cgroup is not None:  # says nothing about other targets: perhaps it is the group that will not do
                    self._say("perf event could not be opened", f"{target.cgroup}: {error}")
                    break
                self._miss(events, str(error))
                continue
            except HostError as error:  # the thread is gone, say: the next round asks for others
                self._say("perf event could not be opened", str(error))
                break
            self._forbidden = None
            self._miss([event for event in events if event not in group.events], "this kernel or CPU has no such event")
            opened.append(_Open(group))
            self._descriptors += len(group.events)
        vm.open[target] = opened  # also when empty: not tried again each round, but with the VM's next process

    def _miss(self, events: Sequence[PerfEvent], reason: str) -> None:
        for event in events:
            self._missing[event] = reason
            self._say(f"perf event {event.name.lower()} is not available", reason)

    def _say(self, what: str, reason: str) -> None:
        """Once in the life of this process: the same is true for every VM."""
        if what not in self._said:
            self._said.add(what)
            _log.info(what, reason=reason)

    def _retire(self, vm: _Vm, target: PerfTarget) -> None:
        opened = vm.open.pop(target)
        _totals(opened)  # a thread that has ended still gives its last values
        for each in opened:
            for column, total in zip(each.columns, each.counted.totals if each.counted else (), strict=False):
                vm.retired[column] = vm.retired.get(column, 0) + total
        self._close(opened)

    def _close(self, opened: Sequence[_Open]) -> None:
        for each in opened:
            self._descriptors -= len(each.group.events)
            each.group.close()


def _sum(vm: _Vm) -> PerfCounts | None:
    sums: dict[str, int | None] = {}
    complete = [opened for opened in vm.open.values() if opened]
    if not complete or len(complete) < len(vm.open):
        return None  # one vCPU that is not counted would make the sum a lie
    for opened in complete:
        for column, total in _totals(opened).items():
            before = sums.get(column, vm.retired.get(column, 0))
            sums[column] = None if before is None or total is None else before + total
    return PerfCounts(**sums)


def _totals(opened: Sequence[_Open]) -> Mapping[str, int | None]:
    """Field of PerfCounts -> total; None where the newest interval could not be measured."""
    totals: dict[str, int | None] = {}
    for each in opened:
        try:
            counted = each.read()
        except HostError:  # its descriptor is of no use any more: unknown, until the VM's threads are listed anew
            counted = None
        if counted is not None and counted.known:
            totals.update(zip(each.columns, counted.totals, strict=True))
        else:
            totals.update(dict.fromkeys(each.columns))
    return totals
