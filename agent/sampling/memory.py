"""Memory of one VM: what its control group is charged with, and what the guest's balloon driver reports.

The guest writes the balloon figures itself: they are foreign input, bounded here and judged again in derive. libvirt gives KiB and seconds.
Source: Documentation/admin-guide/cgroup-v2.rst (memory.*), cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.sampling.cgroup import VmGroups
from agent.sampling.files import KernelFiles, Watched, field, whole_number
from shared.units import KIB, NS_PER_S, UNLIMITED

_LARGEST = 2**52  # bytes: nothing real is larger, and sums stay inside int64


class Balloon(msgspec.Struct, frozen=True, kw_only=True):
    """Balloon statistics of one domain in bytes; None where the guest (no driver yet) or the hypervisor does not say."""

    actual_bytes: int | None = None
    usable_bytes: int | None = None
    unused_bytes: int | None = None
    reading_wall_ns: int | None = None
    major_faults_total: int | None = None
    swap_bytes_total: int | None = None


class MemoryStat(msgspec.Struct, frozen=True, kw_only=True):
    """What sampling takes from a memory.stat, in bytes; None where this kernel has no such line."""

    anon_bytes: int | None = None
    file_bytes: int | None = None
    refaults: int | None = None  # pages that came back soon after they were reclaimed


class MemoryReading(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one VM's group. `high_bytes`: UNLIMITED = none; None on cgroup v1, which has no such limit."""

    current_bytes: int | None = None
    stat: MemoryStat = MemoryStat()
    high_events_total: int | None = None
    high_bytes: int | None = None


def parse_balloon(stats: Mapping[str, object]) -> Balloon:
    """From the `balloon.*` keys of libvirt's bulk statistics."""

    def number(key: str, unit: int = KIB) -> int | None:
        value = stats.get(key)
        return value * unit if isinstance(value, int) and 0 <= value <= _LARGEST // unit else None

    swap_in, swap_out = number("balloon.swap_in"), number("balloon.swap_out")
    written = number("balloon.last-update", 1)
    return Balloon(
        actual_bytes=number("balloon.current"),
        usable_bytes=number("balloon.usable"),
        unused_bytes=number("balloon.unused"),
        reading_wall_ns=written * NS_PER_S if written else None,  # 0 = the guest has never written
        major_faults_total=number("balloon.major_fault", 1),
        swap_bytes_total=None if swap_in is None or swap_out is None else swap_in + swap_out,
    )


def parse_stat_v2(text: bytes) -> MemoryStat:
    """memory.stat of cgroup v2. Linux before 5.9 counts refaults in one line."""
    anon, file = field(text, b"workingset_refault_anon"), field(text, b"workingset_refault_file")
    split = None if anon is None or file is None else anon + file
    return MemoryStat(
        anon_bytes=field(text, b"anon"),
        file_bytes=field(text, b"file"),
        refaults=field(text, b"workingset_refault") if split is None else split,
    )


def parse_stat_v1(text: bytes) -> MemoryStat:
    """memory.stat of cgroup v1: the `total_` lines, which include the groups below."""
    anon, file = field(text, b"total_workingset_refault_anon"), field(text, b"total_workingset_refault_file")
    split = None if anon is None or file is None else anon + file
    return MemoryStat(
        anon_bytes=field(text, b"total_rss"),
        file_bytes=field(text, b"total_cache"),
        refaults=field(text, b"total_workingset_refault") if split is None else split,
    )


def parse_high(text: bytes) -> int | None:
    """memory.high: bytes, or `max` for none."""
    return UNLIMITED if text.strip() == b"max" else whole_number(text)


def parse_high_events(text: bytes) -> int | None:
    """How often memory.high was passed, from memory.events."""
    return field(text, b"high")


class GroupMemory:
    """Kept files of one VM's memory groups."""

    def __init__(self, files: KernelFiles, groups: VmGroups) -> None:
        self._newest = MemoryStat()
        self._sign: tuple[int | None, int | None] = (None, None)  # what stood beside `_newest`
        self._current: Watched[int | None] | None = None
        self._stat: Watched[MemoryStat] | None = None
        self._events: Watched[int | None] | None = None
        self._high: tuple[Watched[int | None], ...] = ()
        if not groups.memory:
            return
        group = groups.memory[-1]  # the outermost counts everything below it
        name, parse = ("memory.current", parse_stat_v2) if groups.memory_is_v2 else ("memory.usage_in_bytes", parse_stat_v1)
        self._current = Watched(files.opened(group / name), whole_number, None)
        self._stat = Watched(files.opened(group / "memory.stat"), parse, MemoryStat())
        if groups.memory_is_v2:
            self._events = Watched(files.opened(group / "memory.events"), parse_high_events, None)
            self._high = tuple(Watched(files.opened(path / "memory.high"), parse_high, None) for path in groups.memory)

    def read(self, stalled_us_total: int | None = None) -> MemoryReading:
        """Everything, now. Of these memory.stat costs the kernel most, a walk over the group's counters: while the group's size has not
        changed by a byte and nobody has waited for memory (`stalled_us_total`, None = not known), it is taken for what it was.
        """
        if self._current is None or self._stat is None:
            return MemoryReading()
        current = self._current.read()
        sign = (current, stalled_us_total)
        if None in sign or sign != self._sign:
            self._newest, self._sign = self._stat.read(), sign
        limits = [limit for limit in (file.read() for file in self._high) if limit is not None]
        finite = [limit for limit in limits if limit != UNLIMITED]
        return MemoryReading(
            current_bytes=current,
            stat=self._newest,
            high_events_total=None if self._events is None else self._events.read(),
            high_bytes=min(finite) if finite else UNLIMITED if limits else None,
        )

    def retry(self) -> None:
        """Look again for files that were absent."""
        self._sign = (None, None)
        for file in (self._current, self._stat, self._events, *self._high):
            if file is not None:
                file.retry()

    def close(self) -> None:
        """Give all descriptors back."""
        for file in (self._current, self._stat, self._events, *self._high):
            if file is not None:
                file.close()
