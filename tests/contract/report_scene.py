"""A small fleet with a past: Parquet history, minutes in a real SQLite registry, a site with prices, and the real LiveReports over them."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from coordinator.cycle import DecisionCycle
from coordinator.fleet import HostRecord, VmRecord
from coordinator.learning.compliance_hours import HOUR_S, HourBits, Owner
from coordinator.live_reports import LiveReports, Reporting
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock
from coordinator.placement.fleet.site import Pool, Site
from coordinator.service.reports import Report, ShadowReport
from coordinator.settings import sizing_policy
from coordinator.store.compliance_store import ComplianceStore
from coordinator.store.history import ParquetHistory
from coordinator.store.registry import SqlRegistry
from shared.clock import ManualClock
from shared.config import CycleConfig, SizingConfig
from shared.model import Domain, HostCapacity, Mode, Policy, Priority
from shared.units import BUCKET_S, CPU, GIB, MEMORY, NS_PER_S

T0 = 1_790_000_400 // 86_400 * 86_400  # a midnight
BUCKETS = 24
CAPACITY = HostCapacity(
    cpu_millicores=16_000,
    memory_bytes=64 * GIB,
    net_bits_per_s=10**10,
    cpu_commit_millicores=16_000,
    memory_commit_bytes=64 * GIB,
    net_commit_bits_per_s=10**10,
)
SITE = Site(pools=(Pool(name="main", price_by_hour=(1.0, *(2.0,) * 23), energy_price_per_kwh=0.5, watts=(100.0, *(150.0,) * 9, 300.0)),))
VMS = {"vm-a": ("acme", '=HYPERLINK("http://x")'), "vm-b": ("acme", "shop & co <b>"), "vm-c": ("zeta", "other")}


def scene(folder: Path, forecasts: bool = True) -> tuple[LiveReports, Any]:
    """(reports, what they run on): two hours of three VMs of 4 vCPUs and 8 GiB, half of it granted, a rising demand of CPU."""
    history = ParquetHistory(folder / "history")
    registry = SqlRegistry(f"sqlite:///{folder / 'registry.sqlite'}")
    minutes = ComplianceStore(registry.engine)
    cycle = DecisionCycle(CycleConfig(), sizing_policy(SizingConfig()), 1)
    record = HostRecord(host_id="kvm-1", capacity=CAPACITY, mode=Mode.OBSERVE, alive=True)
    cycle.fleet.hosts["kvm-1"] = record
    for vm_id, (client, name) in VMS.items():
        policy = Policy(client=client, application="shop", priority=Priority.HIGH)
        domain = Domain(vm_id=vm_id, name=name, vcpus_max=4, memory_max_bytes=8 * GIB, policy=policy)
        cycle.fleet.vms[vm_id] = VmRecord(domain=domain, host_id="kvm-1")
        record.vm_ids.add(vm_id)
    names = tuple(VMS)
    for b in range(BUCKETS):
        block = bucket(names, T0 + b * BUCKET_S, 400.0 + 50.0 * b)
        history.append_buckets(block)
        if forecasts:
            history.append_forecast(forecast(names, block.start_s, 500.0 + 60.0 * b))
        cycle.bucket = block
        for hour in cycle.compliance.close(block.start_s, None, cycle.owners()):
            minutes.save(hour)
    clock = ManualClock((T0 + BUCKETS * BUCKET_S) * NS_PER_S)
    running = SimpleNamespace(cycle=cycle, clock=clock, history=history, minutes=minutes, site=SITE, registry=registry)
    return LiveReports(cast(Reporting, running)), running


def bucket(vm_ids: tuple[str, ...], start_s: int, cpu: float) -> BucketBlock:
    v = len(vm_ids)
    mean = np.full((v, N_RESOURCES), 1000.0)
    mean[:, CPU], mean[:, MEMORY] = cpu, 2.0 * GIB
    allocation = np.full((v, N_RESOURCES), np.nan)
    allocation[:, CPU], allocation[:, MEMORY] = 2000.0, 4.0 * GIB
    peak = mean * 1.2
    censored = np.zeros((v, N_RESOURCES))
    censored[:, CPU] = 0.1 if peak[0, CPU] > 1800 else 0.0
    return BucketBlock(
        start_s=start_s,
        vm_ids=vm_ids,
        host_ids=("kvm-1",) * v,
        mean=mean,
        peak=peak,
        usage=mean * 0.9,
        censored=censored,
        allocation=allocation,
        samples=np.full(v, 60),
    )


def forecast(vm_ids: tuple[str, ...], issued_s: int, cpu: float) -> ForecastBlock:
    shape = (len(vm_ids), N_RESOURCES, 12)
    mean = np.full(shape, 1000.0, np.float32)
    mean[:, CPU], mean[:, MEMORY] = cpu, 2.0 * GIB
    quantiles = np.repeat((1.3 * mean)[..., None], len(LEVELS), axis=-1)
    return ForecastBlock(
        issued_s=issued_s,
        vm_ids=vm_ids,
        mean=mean,
        stddev=mean * 0.1,
        quantiles=quantiles,
        peak_quantiles=quantiles,
        model=np.zeros(shape[:2], np.int8),
        models=("naive",),
        reason=np.zeros(shape[:2], np.int8),
        coverage=np.full(shape[:2], np.nan, np.float32),
    )


def gone_vm(running: Any, vm_id: str, client: str) -> None:
    """One that was counted in the newest hour and is no longer in the fleet."""
    hour = running.cycle.compliance.hours()[T0 + HOUR_S].copy()
    other = HourBits(hour_s=hour.hour_s)
    whose = {vm_id: Owner(client=client, application="old", priority=0)}
    other.see(3, [vm_id], list(whose.values()), running.cycle.compliance.promise_of(whose))
    hour.join(other)
    running.minutes.save(hour)
    running.cycle.compliance.counted(hour)


class ReportsDouble:
    """ReportsView of the API's double fleet: the real reports over the scene."""

    async def report(self, client: str, from_s: int | None, until_s: int | None) -> Report | None:
        return await _shared().report(client, from_s, until_s)

    async def shadow(self, days: int) -> ShadowReport:
        return await _shared().shadow(days)


@cache
def _shared() -> LiveReports:
    """One scene for all doubles of a test process: it is only read."""
    folder = mkdtemp(prefix="tidegate-reports-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return scene(Path(folder))[0]
