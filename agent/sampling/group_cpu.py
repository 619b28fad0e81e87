"""CPU accounting and limits of one VM from its control groups: use, throttling, quota, period and shares.

libvirt puts `vcpu_quota` on each `vcpuN` group and `global_quota` on the domain's, so both are read, in every round: a change that
somebody else makes shows in the next sample. Only the list of the vCPUs' groups is kept, for as long as their number does not change.
What a group without a quota says of throttling stands still, and its period means nothing: neither is read until there is a quota, the
one period that is shown excepted. A read costs 2 to 4 µs, and a VM of 2 vCPUs has 3 groups.
Source: Documentation/admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from agent.sampling.cgroup import VmGroups, quota_millicores, shares_of_weight
from agent.sampling.files import KeptFile, KernelFiles, Watched, whole_number
from shared.units import UNLIMITED

_VCPU = re.compile(r"^vcpu\d+$")
_NO_LIMIT = float("inf")


class CpuReading(msgspec.Struct, frozen=True, kw_only=True):
    """CPU accounting and limits of one VM."""

    used_ns_total: int | None = None
    throttled_ns_total: int | None = None  # of the domain's groups and of each vCPU's; not of emulator and I/O threads
    periods_total: int | None = None  # over the same groups
    throttled_periods_total: int | None = None
    quota_millicores: int | None = None  # over all vCPUs; UNLIMITED = none
    period_us: int | None = None  # of the vCPUs' groups, or of the domain's where it has none
    shares: int | None = None  # v1 scale


class CpuStat(msgspec.Struct, frozen=True, kw_only=True):
    """One cpu.stat; None where it has no such line (v1: no usage; v2 without the cpu controller: usage only)."""

    used_ns: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None


def parse_cpu_stat(text: bytes) -> CpuStat:
    """cpu.stat of v1 (`throttled_time` in ns) or v2 (`usage_usec`, `throttled_usec`)."""
    fields = text.split()
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    used, microseconds, nanoseconds = values.get(b"usage_usec"), values.get(b"throttled_usec"), values.get(b"throttled_time")
    throttled = _number(microseconds, 1000) if nanoseconds is None else _number(nanoseconds)
    return CpuStat(
        used_ns=_number(used, 1000),
        periods=_number(values.get(b"nr_periods")),
        throttled_periods=_number(values.get(b"nr_throttled")),
        throttled_ns=throttled,
    )


def parse_cpu_max(text: bytes) -> tuple[float, int] | None:
    """v2 cpu.max, `max 100000` or `20000 100000`: (CPUs allowed, period in µs); infinity = no quota; None = another shape."""
    fields = text.split()
    if len(fields) != 2 or not fields[1].isdigit() or int(fields[1]) == 0:
        return None
    period = int(fields[1])
    if fields[0] == b"max":
        return _NO_LIMIT, period
    return (int(fields[0]) / period, period) if fields[0].isdigit() else None


class GroupCpu:
    """Kept files of one VM's CPU groups. `vcpu_groups` changes when libvirt adds or removes a vCPU."""

    def __init__(self, files: KernelFiles, groups: VmGroups) -> None:
        self._files = files
        self._groups = groups
        self._is_v2 = groups.cpu_is_v2
        self._domain = tuple(_Group(files, path, groups.cpu_is_v2) for path in groups.cpu)
        self._vcpus: tuple[_Group, ...] = ()
        self._directory = files.opened(groups.cpu[0]) if groups.cpu else None
        self._links: int | None = None
        self._used: Watched[int | None] | None = None
        self._unified: Watched[CpuStat] | None = None
        if groups.unified is not None and not (groups.cpu_is_v2 and groups.cpu):  # else the domain's own cpu.stat says it
            self._unified = Watched(files.opened(groups.unified / "cpu.stat"), parse_cpu_stat, _NOTHING)
        if groups.cpuacct is not None:
            self._used = Watched(files.opened(groups.cpuacct / "cpuacct.usage"), whole_number, None)
        outermost = (
            groups.cpu[-1] if groups.cpu else None
        )  # with systemd libvirt sets shares on the scope, which competes with other scopes
        self._shares: Watched[int | None] | None = None
        if outermost is not None:
            self._shares = Watched(files.opened(outermost / ("cpu.weight" if self._is_v2 else "cpu.shares")), whole_number, None)
        self._limit: tuple[tuple[object, ...], int | None, int | None] = ((), None, None)

    @property
    def vcpu_groups(self) -> int:
        """Number of vCPU groups in the newest reading."""
        return len(self._vcpus)

    def read(self) -> CpuReading:
        """Everything, now."""
        if self._directory is None:
            return CpuReading(used_ns_total=self._used_ns(None))
        self._list_vcpus(self._directory)
        quota, period = self._quota()
        stats = self._accounting()
        shares = None if self._shares is None else self._shares.read()
        return CpuReading(
            used_ns_total=self._used_ns(stats[0].used_ns),
            throttled_ns_total=_sum([stat.throttled_ns for stat in stats]),
            periods_total=_sum([stat.periods for stat in stats]),
            throttled_periods_total=_sum([stat.throttled_periods for stat in stats]),
            quota_millicores=quota,
            period_us=period,
            shares=shares_of_weight(shares) if self._is_v2 and shares is not None else shares,
        )

    def read_use(self, with_throttling: bool) -> tuple[int | None, int | None]:
        """(used ns, throttled ns) only, for looks between two rounds; throttling is None unless asked for."""
        if not with_throttling:
            own = self._domain[0].accounting(always=True).used_ns if self._is_v2 and self._domain else None
            return self._used_ns(own), None
        stats = self._accounting()
        return self._used_ns(stats[0].used_ns if stats else None), _sum([stat.throttled_ns for stat in stats])

    def retry(self) -> None:
        """Look again for files that were absent."""
        for file in self._files_kept():
            file.retry()
        for group in (*self._domain, *self._vcpus):
            group.renew()

    def _accounting(self) -> list[CpuStat]:
        """Of the domain's groups and the vCPUs'. The innermost's on v2 is read in any case: it says what was used."""
        return [group.accounting(always=self._is_v2 and i == 0) for i, group in enumerate((*self._domain, *self._vcpus))]

    def close(self) -> None:
        """Give all descriptors back."""
        for file in self._files_kept():
            file.close()

    def _files_kept(self) -> list[KeptFile | Watched[CpuStat] | Watched[int | None] | Watched[tuple[float, int] | None]]:
        kept: list[KeptFile | Watched[CpuStat] | Watched[int | None] | Watched[tuple[float, int] | None]] = [
            file for file in (self._directory, self._unified, self._used, self._shares) if file is not None
        ]
        for group in (*self._domain, *self._vcpus):
            kept.extend(group.kept())
        return kept

    def _list_vcpus(self, directory: KeptFile) -> None:
        links = directory.links()
        if links == self._links:
            return
        for group in self._vcpus:
            for file in group.kept():
                file.close()
        path = self._groups.cpu[0]
        self._vcpus = tuple(_Group(self._files, path / name, self._is_v2) for name in self._files.names(path) if _VCPU.match(name))
        self._links = links

    def _used_ns(self, own: int | None) -> int | None:
        if own is not None and self._is_v2:
            return own
        if self._unified is not None:
            used = self._unified.read().used_ns
            if used is not None:
                return used
        return None if self._used is None else self._used.read()

    def _quota(self) -> tuple[int | None, int | None]:
        """(millicores, period); worked out anew only when a limit has changed."""
        shown = (self._vcpus or self._domain)[0]
        overall = [group.limit(with_period=group is shown) for group in self._domain]
        per_vcpu = [group.limit(with_period=group is shown) for group in self._vcpus]
        seen = (*overall, None, *per_vcpu)
        if seen == self._limit[0]:
            return self._limit[1:]
        known = [limit for limit in per_vcpu if limit is not None]
        around = [limit for limit in overall if limit is not None]
        quota = None
        if len(known) == len(per_vcpu) and (known or around):
            quota = quota_millicores([cpus for cpus, _ in known], [cpus for cpus, _ in around])
        first = next(iter(known or around), None)
        self._limit = (seen, quota, None if first is None else first[1] or None)
        return self._limit[1:]


class _Group:
    """cpu.stat and the quota of one group."""

    __slots__ = ("_limited", "_maximum", "_newest", "_period", "_quota", "_stat", "_unsettled")

    def __init__(self, files: KernelFiles, path: Path, is_v2: bool) -> None:
        self._stat = Watched(files.opened(path / "cpu.stat"), parse_cpu_stat, _NOTHING)
        self._newest = _NOTHING
        self._limited = False
        self._unsettled = True  # `_newest` may be out of date: never read, or read while there was a quota
        self._maximum: Watched[tuple[float, int] | None] | None = None
        self._quota: Watched[int | None] | None = None
        self._period: Watched[int | None] | None = None
        if is_v2:
            self._maximum = Watched(files.opened(path / "cpu.max"), parse_cpu_max, None)
        else:
            self._quota = Watched(files.opened(path / "cpu.cfs_quota_us"), whole_number, None)
            self._period = Watched(files.opened(path / "cpu.cfs_period_us"), whole_number, None)

    def limit(self, *, with_period: bool) -> tuple[float, int] | None:
        """(CPUs allowed, period in µs); None where it cannot be read. The period is 0 where there is no quota and nobody wants it."""
        if self._maximum is not None:
            found = self._maximum.read()
            self._limited = found is None or found[0] != _NO_LIMIT
            return found
        quota = None if self._quota is None else self._quota.read()
        self._limited = quota is None or quota >= 0
        if not self._limited and not with_period:
            return _NO_LIMIT, 0
        period = None if self._period is None else self._period.read()
        if quota is None or not period:
            return None
        return (_NO_LIMIT if quota < 0 else quota / period), period

    def accounting(self, *, always: bool) -> CpuStat:
        """cpu.stat; while there is no quota (as `limit` found last), what it said after the last one."""
        if always or self._limited or self._unsettled:
            self._newest = self._stat.read()
            self._unsettled = self._limited
        return self._newest

    def renew(self) -> None:
        """Read cpu.stat next time, whatever the quota."""
        self._unsettled = True

    def kept(self) -> list[Watched[CpuStat] | Watched[int | None] | Watched[tuple[float, int] | None]]:
        optional = (self._maximum, self._quota, self._period)
        return [self._stat, *(file for file in optional if file is not None)]


_NOTHING = CpuStat()


def may_throttle(quota: int | None) -> bool:
    """Whether a quota could hold the VM back: not when there certainly is none."""
    return quota != UNLIMITED


def _number(text: bytes | None, unit: int = 1) -> int | None:
    return int(text) * unit if text is not None and text.isdigit() else None


def _sum(values: list[int | None]) -> int | None:
    """Sum of the known ones; None when there is none. A group that has just gone counts as absent."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
