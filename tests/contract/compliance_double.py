"""Service objectives of the API's double fleet: the real book and the real view over an hour of invented samples, without a database."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import cast

from coordinator.demand.buckets import BucketFolder
from coordinator.learning.compliance import ComplianceBook, Kind
from coordinator.learning.compliance_hours import HourBits, Owner
from coordinator.live_compliance import Counting, LiveCompliance
from coordinator.service.compliance import ComplianceDetail, CompliancePage
from shared.model import HostSample, VmSample
from shared.units import BUCKET_S, NS_PER_S

CLIENTS = ("aurora", "borealis", "")


class _NothingStored:
    def hours(self, from_s: int, until_s: int) -> Iterator[HourBits]:
        return iter(())


class ComplianceDouble:
    """ComplianceView over an hour that ends with the double's clock as it was first asked."""

    home: dict[str, str]
    now_s: int
    _live: LiveCompliance | None = None

    def compliance(self, kind: Kind, cursor: str | None, limit: int, among: Collection[str] | None = None) -> CompliancePage:
        return self._counted().compliance(kind, cursor, limit, among)

    async def compliance_of(self, kind: Kind, name: str, resolution_s: int, hours: int) -> ComplianceDetail | None:
        return await self._counted().compliance_of(kind, name, resolution_s, hours)

    def _counted(self) -> LiveCompliance:
        if self._live is None:
            running = SimpleNamespace(cycle=SimpleNamespace(compliance=_book(tuple(self.home), self.now_s)), minutes=_NothingStored())
            self._live = LiveCompliance(cast(Counting, running))
        return self._live


def _book(vm_ids: tuple[str, ...], now_s: int) -> ComplianceBook:
    """Every fifth VM waits for the CPU for two minutes of each quarter of an hour; the sixth is not read in one bucket."""
    book, folder = ComplianceBook(), BucketFolder()
    owners = {vm_id: Owner(client=CLIENTS[i % 3], application=f"app-{i % 4}", priority=i % 4) for i, vm_id in enumerate(vm_ids)}
    first_s = now_s // BUCKET_S * BUCKET_S - 12 * BUCKET_S
    for start_s in range(first_s, first_s + 12 * BUCKET_S, BUCKET_S) if vm_ids else ():
        for at_s in range(start_s + 20, start_s + BUCKET_S, 20):
            waits = (at_s // 60) % 15 < 2
            seen = {vm_id: _sample(waits and i % 5 == 0) for i, vm_id in enumerate(vm_ids) if i != 6 or start_s != first_s + BUCKET_S}
            folder.add("kvm", HostSample(wall_ns=at_s * NS_PER_S, monotonic_ns=at_s * NS_PER_S, period_ns=20 * NS_PER_S, vms=seen))
        folder.close(start_s)
        book.close(start_s, folder.minutes(start_s), owners)
    return book


def _sample(waits: bool) -> VmSample:
    return VmSample(
        cpu_used_millicores=400,
        cpu_ready_permille=180 if waits else 4,
        cpu_throttled_permille=0,
        psi_memory_some_permille=2,
        net_rx_dropped_per_s=0,
        vcpus=2,
        cpu_quota_millicores=1500,
    )
