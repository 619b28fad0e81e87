"""Makes reports from history, minutes and the site's prices: implements coordinator.service.reports.ReportsView.

One at a time, in a thread of its own; history is read a day and at most MAX_VMS VMs at once (100 MB), so that a report neither holds up
the loop nor fills memory. A second request meanwhile is refused, not queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

import numpy as np

from coordinator.cycle import DecisionCycle
from coordinator.fleet import VmRecord
from coordinator.learning.compliance_hours import HOUR_S
from coordinator.learning.compliance_series import minutes_by_vm
from coordinator.learning.costs import Meter, Rates, Taken
from coordinator.learning.shadow_week import ShadowWeek
from coordinator.model import F64
from coordinator.placement.fleet.site import Site, host_traits
from coordinator.service.problems import InvalidValue
from coordinator.service.report_build import Subject, build_report, build_shadow
from coordinator.service.reports import MOST_DAYS, Report, ShadowReport
from coordinator.store.compliance_store import ComplianceStore
from coordinator.store.history import ParquetHistory
from shared.clock import Clock
from shared.errors import Refusal
from shared.model import HostCapacity, Priority
from shared.refusal import RefusalCode
from shared.units import BUCKET_S, CPU, MEMORY, NS_PER_S

DAY_S: Final = 86_400
DAY_BUCKETS: Final = DAY_S // BUCKET_S
MAX_VMS: Final = 2000
MAX_VM_DAYS: Final = 20_000  # half a minute of a core
MAX_SHADOW_VMS: Final = 1000
LEAD_STEP: Final = 1  # steps 0..1 of a forecast: the ten minutes that the shadow's grants look ahead
_METERED: Final = ("mean", "peak", "usage", "allocation")
_SHADOWED: Final = ("peak", "censored", "allocation")

_T = TypeVar("_T")


class Reporting(Protocol):
    """What is asked of the process around it."""

    cycle: DecisionCycle
    clock: Clock
    history: ParquetHistory
    minutes: ComplianceStore

    @property
    def site(self) -> Site:
        """Pools and prices."""
        ...


class LiveReports:
    """Of one coordinator."""

    def __init__(self, running: Reporting) -> None:
        self._reporting = running
        self._thread = ThreadPoolExecutor(1, "report")
        self._busy = False

    async def report(self, client: str, from_s: int | None, until_s: int | None) -> Report | None:
        of = self._reporting
        now_s = of.clock.wall_ns() // NS_PER_S
        period = _period(from_s, until_s, now_s)
        here = {vm_id: vm for vm_id, vm in of.cycle.fleet.vms.items() if vm.domain.policy.client == client}
        vm_ids = sorted({*here, *of.cycle.compliance.members("client", client)})
        if not vm_ids:
            return None
        days = (period[1] - period[0]) / DAY_S
        if len(vm_ids) * days > MAX_VM_DAYS:
            most = MAX_VM_DAYS / len(vm_ids)
            raise InvalidValue("from, to", f"{days:.1f} days of {len(vm_ids)} VMs", f"at most {most:.2f} days of so many VMs")
        gone = [of.cycle.compliance.owner_of(vm_id) for vm_id in vm_ids]
        subjects = [_subject(vm_id, here.get(vm_id), owner) for vm_id, owner in zip(vm_ids, gone, strict=True)]
        static = np.array([_maxima(here.get(vm_id)) for vm_id in vm_ids])
        rates = _rates([each.host_id for each in subjects], of.site, self._capacities())
        accuracy = of.cycle.ledger.errors.accuracy.by_client("day").get(client)
        notes = [] if of.site.priced else ["There is no site file: no host has a price, and energy is by built-in watts and price."]
        if any(each.host_id is None for each in subjects):
            notes.append("VMs that are gone have minutes and use, but no size, cost or energy: nothing is known of their host any more.")

        def make() -> Report:
            taken = self._meter(vm_ids, period, static, rates)
            hours = of.minutes.hours(period[0] // HOUR_S * HOUR_S, period[1])
            return build_report(
                client=client,
                period=period,
                made_s=float(now_s),
                priced=of.site.priced,
                subjects=subjects,
                taken=taken,
                minutes=minutes_by_vm(hours, vm_ids, *period),
                accuracy=accuracy,
                notes=tuple(notes),
            )

        return await self._alone(make)

    async def shadow(self, days: int) -> ShadowReport:
        of = self._reporting
        newest_s = of.cycle.bucket.start_s if of.cycle.bucket else of.clock.wall_ns() // NS_PER_S // BUCKET_S * BUCKET_S - BUCKET_S
        until_s = newest_s + BUCKET_S
        period = (until_s - days * DAY_S, until_s)
        hosts: dict[str, list[str]] = {}
        for vm_id, vm in sorted(of.cycle.fleet.vms.items()):
            hosts.setdefault(vm.host_id, []).append(vm_id)
        taken: list[str] = []
        left_out = []
        for host_id, names in sorted(hosts.items()):
            if len(taken) + len(names) <= MAX_SHADOW_VMS:
                taken += names
            else:
                left_out.append(host_id)
        notes = [f"{len(left_out)} hosts from {left_out[0]} on are left out: at most {MAX_SHADOW_VMS} VMs"] if left_out else []
        static = np.array([_maxima(of.cycle.fleet.vms[vm_id]) for vm_id in taken]).reshape(-1, 2)
        week = ShadowWeek([of.cycle.fleet.vms[vm_id].host_id for vm_id in taken], static, self._capacities())
        made_s = of.clock.wall_ns() / NS_PER_S

        def make() -> ShadowReport:
            for start_s in range(period[0], period[1], DAY_S) if taken else ():
                end_s = start_s + DAY_S - BUCKET_S
                past = of.history.measures(taken, end_s, DAY_BUCKETS, _SHADOWED)
                week.take(past, of.history.issued_peaks(taken, end_s, DAY_BUCKETS, LEAD_STEP))
            return build_shadow(week.result(), period, made_s, tuple(notes))

        return await self._alone(make)

    async def _alone(self, make: Callable[[], _T]) -> _T:
        """In the reports' own thread. Refusal while another is being made."""
        if self._busy:
            raise Refusal(RefusalCode.RATE_LIMITED, "another report is being made: ask again when it is done")
        self._busy = True
        running = asyncio.get_running_loop().run_in_executor(self._thread, make)
        # whoever asked may go away: the thread is free when the work has ended
        running.add_done_callback(self._done)
        return await running

    def _done(self, _: object) -> None:
        self._busy = False

    def _capacities(self) -> dict[str, HostCapacity]:
        records = self._reporting.cycle.fleet.hosts
        return {host_id: record.capacity for host_id, record in records.items() if record.capacity is not None}

    def _meter(self, vm_ids: Sequence[str], period: tuple[int, int], static: F64, rates: Rates) -> Taken:
        """Of all VMs; MAX_VMS at a time."""
        parts = []
        for first in range(0, len(vm_ids), MAX_VMS):
            rows = slice(first, first + MAX_VMS)
            meter = Meter(static[rows], rates.of(rows))
            for start_s in range(period[0], period[1], DAY_S):
                until_s = min(start_s + DAY_S, period[1])
                past = self._reporting.history.measures(vm_ids[rows], until_s - BUCKET_S, (until_s - start_s) // BUCKET_S, _METERED)
                meter.take(start_s, past)
            parts.append(meter.taken())
        return Taken.joined(parts)


def _period(from_s: int | None, until_s: int | None, now_s: int) -> tuple[int, int]:
    until_s = now_s // BUCKET_S * BUCKET_S if until_s is None else until_s
    from_s = until_s - 7 * DAY_S if from_s is None else from_s
    if not 0 <= from_s < until_s:
        raise InvalidValue("from", from_s, f"a time before `to` ({until_s})")
    if until_s - from_s > MOST_DAYS * DAY_S:
        raise InvalidValue("from", from_s, f"at most {MOST_DAYS} days before `to`")
    return from_s, until_s


def _subject(vm_id: str, vm: VmRecord | None, owner: tuple[str, int]) -> Subject:
    if vm is None:
        application, priority = owner
        return Subject(vm_id=vm_id, name="", application=application, priority=Priority(priority).name.lower(), host_id=None)
    policy = vm.domain.policy
    return Subject(
        vm_id=vm_id,
        name=vm.domain.name,
        application=policy.application,
        priority=Priority(policy.priority).name.lower(),
        host_id=vm.host_id,
    )


def _maxima(vm: VmRecord | None) -> tuple[float, float]:
    """Static size: CPU and memory; NaN where the VM is gone."""
    return (np.nan, np.nan) if vm is None else (vm.domain.vcpus_max * 1000.0, float(vm.domain.memory_max_bytes))


def _rates(hosts: Sequence[str | None], site: Site, capacities: dict[str, HostCapacity]) -> Rates:
    known: dict[str | None, tuple[float, ...]] = {}
    prices: dict[str | None, list[float]] = {}
    for host_id in set(hosts):
        capacity = None if host_id is None else capacities.get(host_id)
        if host_id is None or capacity is None:
            known[host_id], prices[host_id] = (np.nan,) * 6, [np.nan] * 24
            continue
        pool, watts = site.pool_of(host_id), host_traits(site, host_id).watts
        assert watts is not None, "a host's traits leave nothing open"
        prices[host_id] = [pool.price_at(hour) for hour in range(24)]
        sizes = (capacity.cpu_millicores, capacity.cpu_commit_millicores, capacity.memory_commit_bytes)
        known[host_id] = (*sizes, pool.energy_price_per_kwh, watts[0], watts[-1])
    cpu, cpu_commit, memory_commit, energy, idle, full = np.array([known[host] for host in hosts], np.float64).T
    return Rates(
        cpu_millicores=cpu,
        cpu_commit_millicores=cpu_commit,
        memory_commit_bytes=memory_commit,
        price=np.array([prices[host] for host in hosts], np.float64),
        energy_price_per_kwh=energy,
        idle_watts=idle,
        full_watts=full,
    )


assert (CPU, MEMORY) == (0, 1), "the order of static sizes"
