"""The PerfEvents port on the kernel: perf_event_open(2) by ctypes, because libc has no wrapper and no Python library keeps one.

Counting only, no samples, no buffers. Descriptors are close-on-exec. The events of a target form one group: the first that can be opened
leads it, the rest follow it onto the CPU, and one read gives all. The leader is opened switched off and the group switched on as a whole:
a follower that is opened beside a running leader stands still until the thread is next scheduled (seen on Linux 6.18).
A target's cgroup must be a directory of cgroup v2 (or of v1 where perf_event is mounted there); v1's cpu hierarchy gives ENOENT.
Source: man 2 perf_event_open; linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.sampling.perf import GroupReading, PerfEvent, PerfTarget, PerfUnavailable, parse_group
from shared.errors import HostError

_SYSCALL: Final = {"x86_64": 298, "aarch64": 241, "ppc64le": 319, "s390x": 331, "riscv64": 241}  # where KVM runs
_READ_FORMAT: Final = 1 | 2 | 8  # TOTAL_TIME_ENABLED, TOTAL_TIME_RUNNING, GROUP
_DISABLED: Final = 1
_ENABLE: Final = 0x2400  # PERF_EVENT_IOC_ENABLE
_WHOLE_GROUP: Final = 1  # PERF_IOC_FLAG_GROUP
_PID_CGROUP: Final = 4
_CLOEXEC: Final = 8
_ABSENT: Final = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV})  # this event
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOSYS})  # every event
_GONE: Final = errno.ESRCH
_MOST_EVENTS: Final = 16  # of a group: bounds the buffer of a read


class _Attributes(ctypes.Structure):
    """struct perf_event_attr up to PERF_ATTR_SIZE_VER5 (Linux 4.1); older or newer kernels go by `size`."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
        ("config2", ctypes.c_uint64),
        ("branch_sample_type", ctypes.c_uint64),
        ("sample_regs_user", ctypes.c_uint64),
        ("sample_stack_user", ctypes.c_uint32),
        ("clockid", ctypes.c_int32),
        ("sample_regs_intr", ctypes.c_uint64),
        ("aux_watermark", ctypes.c_uint32),
        ("sample_max_stack", ctypes.c_uint16),
        ("reserved", ctypes.c_uint16),
    )


class KernelPerfGroup:
    """Open events of one target. Implements PerfGroup."""

    def __init__(self, opened: Sequence[tuple[PerfEvent, int]]) -> None:
        self.events = tuple(event for event, _ in opened)
        self._descriptors = [descriptor for _, descriptor in opened]

    def read(self) -> GroupReading:
        if not self._descriptors:
            raise HostError("perf: this group is closed")
        try:
            data = os.read(self._descriptors[0], (3 + _MOST_EVENTS) * 8)
        except OSError as error:
            raise HostError(f"perf: read: {error.strerror}") from error
        reading = parse_group(data)
        if reading is None or len(reading.values) != len(self.events):
            raise HostError(f"perf: a read of {len(data)} bytes for {len(self.events)} events")
        return reading

    def close(self) -> None:
        for descriptor in self._descriptors[::-1]:  # the leader last
            os.close(descriptor)
        self._descriptors = []


class KernelPerfEvents:
    """Implements PerfEvents. Raises nothing on construction: what is missing shows at the first `open`."""

    def __init__(self) -> None:
        self._number = _SYSCALL.get(platform.machine())
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._cpus: tuple[int, ...] = ()

    def cpus(self) -> Sequence[int]:
        count = os.sysconf("SC_NPROCESSORS_ONLN")
        if len(self._cpus) != count:
            self._cpus = _online_cpus() or tuple(range(count))
        return self._cpus

    def descriptors_most(self) -> int:
        """Half of the soft limit: the other half belongs to kept files, connections and the journal."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return 2**31 if soft == resource.RLIM_INFINITY else soft // 2

    def open(self, target: PerfTarget, events: Sequence[PerfEvent]) -> KernelPerfGroup:
        if self._number is None:
            raise PerfUnavailable(f"perf_event_open: no number known for {platform.machine()}", everything=True)
        if target.cgroup is None:
            return self._open_group(target.tid, target.cpu, 0, events)
        try:
            directory = os.open(target.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"perf: {target.cgroup}: {error.strerror}") from error
        try:
            return self._open_group(directory, target.cpu, _PID_CGROUP, events)
        finally:
            os.close(directory)  # the events hold the group themselves

    def _open_group(self, pid: int, cpu: int, flags: int, events: Sequence[PerfEvent]) -> KernelPerfGroup:
        opened: list[tuple[PerfEvent, int]] = []
        absent = 0
        try:
            for event in events:
                leader = opened[0][1] if opened else -1
                descriptor = self._open_event(event, pid, cpu, leader, flags | _CLOEXEC)
                if descriptor >= 0:
                    opened.append((event, descriptor))
                    continue
                absent = ctypes.get_errno()
                if absent not in _ABSENT:
                    raise _failure(absent, event)
        except HostError:
            KernelPerfGroup(opened).close()
            raise
        if not opened:
            raise PerfUnavailable(f"{os.strerror(absent)} ({errno.errorcode.get(absent, absent)})", everything=False)
        group = KernelPerfGroup(opened)
        try:
            fcntl.ioctl(opened[0][1], _ENABLE, _WHOLE_GROUP)
        except OSError as error:
            group.close()
            raise HostError(f"perf: the events could not be switched on: {error.strerror}") from error
        return group

    def _open_event(self, event: PerfEvent, pid: int, cpu: int, leader: int, flags: int) -> int:
        _, kind, config = event.value
        attributes = _Attributes(type=kind, size=ctypes.sizeof(_Attributes), config=config, read_format=_READ_FORMAT)
        attributes.flags = _DISABLED if leader < 0 else 0
        number, pointer = ctypes.c_long(self._number or 0), ctypes.byref(attributes)
        return int(self._syscall(number, pointer, ctypes.c_int(pid), ctypes.c_int(cpu), ctypes.c_int(leader), ctypes.c_ulong(flags)))


def _failure(number: int, event: PerfEvent) -> HostError:
    text = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    if number in _FORBIDDEN:
        return PerfUnavailable(f"{text}; it takes CAP_PERFMON, or a kernel.perf_event_paranoid that allows it", everything=True)
    return HostError(f"perf {event.name.lower()}: {'the thread is gone' if number == _GONE else text}")


def _online_cpus() -> tuple[int, ...]:
    """CPUs that are online, by number (`0-3,8`); empty where sysfs does not say."""
    try:
        text = Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip()
    except OSError:
        return ()
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)
