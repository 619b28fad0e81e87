"""The fleet as one client may see it: its own VMs, and what is of them alone. Everything else of a FleetView is not there.

`seen` is the handlers' only way to the view. A foreign VM is as unknown as one that does not exist, in the same words. Methods that sum or
name others are not implemented at all: access.py hides their routes, and a route that was let through by mistake fails here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final, cast

import msgspec

from coordinator.learning.alerts import Alert
from coordinator.learning.compliance import Kind
from coordinator.model import Receipt
from coordinator.service.alerts import AlertFilter, AlertPage
from coordinator.service.callers import CALLER, Caller
from coordinator.service.compliance import ComplianceDetail, CompliancePage
from coordinator.service.explained import ForecastWhyView
from coordinator.service.forecasts import ForecastView
from coordinator.service.operations import Operation
from coordinator.service.outlooks import OutlookView
from coordinator.service.problems import InvalidValue, NotFound
from coordinator.service.reports import Report
from coordinator.service.signals import SignalBatch, SignalsTaken
from coordinator.service.view import (
    FleetView,
    GroupForecastView,
    GroupKind,
    GroupList,
    HistoryView,
    OutcomeView,
    VmAccuracy,
    VmView,
    Window,
)
from shared.refusal import RefusalCode
from shared.roles import Role

MAX_VMS: Final = 10_000  # of one client in one question to the registry; databases bind some 32,000 values
OF_THE_HOST: Final = frozenset(
    {RefusalCode.HOST_CAPACITY, RefusalCode.HOST_COMMIT_LIMIT, RefusalCode.BLAST_RADIUS, RefusalCode.CIRCUIT_OPEN}
)
MAX_GROUPS: Final = 1_000_000


def seen(view: FleetView, caller: Caller | None = None) -> FleetView:
    """What the caller (None = of the request under way) may see of the fleet."""
    caller = CALLER.get() if caller is None else caller
    if caller.role is not Role.CLIENT:
        return view
    return cast(FleetView, OwnView(view, caller.client or ""))  # by design not all of one


class OwnView:
    """The part of FleetView that is one client's."""

    def __init__(self, view: FleetView, client: str) -> None:
        self._view = view
        self._client = client

    def vm_ids(self, host_id: str | None = None, client: str | None = None) -> Sequence[str]:
        """Its own."""
        if not self._client or client not in (None, self._client):
            return ()
        return self._view.vm_ids(host_id, self._client)

    def vm(self, vm_id: str) -> VmView | None:
        """None = unknown, or another's."""
        found = self._view.vm(vm_id)
        return found if found is not None and self._client and found.client == self._client else None

    def forecast(self, vm_id: str, horizon_minutes: int) -> ForecastView:
        """Of an own VM."""
        return self._view.forecast(self._own(vm_id), horizon_minutes)

    async def why(self, vm_id: str) -> ForecastWhyView:
        """Of an own VM."""
        return await self._view.why(self._own(vm_id))

    def outlook(self, vm_id: str) -> OutlookView:
        """Of an own VM."""
        return self._view.outlook(self._own(vm_id))

    async def history(self, vm_id: str, hours: int) -> HistoryView:
        """Of an own VM."""
        return await self._view.history(self._own(vm_id), hours)

    def vm_accuracy(self, vm_id: str, window: Window) -> VmAccuracy:
        """Of an own VM."""
        return self._view.vm_accuracy(self._own(vm_id), window)

    def groups(self, kind: GroupKind | None, limit: int) -> GroupList:
        """The client's own sum; applications may be shared with others, hosts and the fleet are."""
        found = self._view.groups("client", MAX_GROUPS)
        own = tuple(group for group in found.items if group.name == self._client and kind in (None, "client") and self._client)
        return GroupList(issued_s=found.issued_s, total=len(own), items=own[:limit])

    def group_forecast(self, kind: GroupKind, name: str, horizon_minutes: int) -> GroupForecastView | None:
        """None = not the client's own sum."""
        own = kind == "client" and name == self._client and self._client
        return self._view.group_forecast(kind, name, horizon_minutes) if own else None

    async def receipts(self, limit: int, vm_id: str | Sequence[str] | None = None) -> Sequence[Receipt]:
        """Of own VMs."""
        chosen = self._chosen(vm_id)
        return [_unhosted(receipt) for receipt in await self._view.receipts(limit, chosen)] if chosen else ()

    async def receipt(self, receipt_id: str) -> Receipt | None:
        """None = unknown, pruned, or of another's VM."""
        found = await self._view.receipt(receipt_id)
        return _unhosted(found) if found is not None and self.vm(found.vm_id) is not None else None

    async def outcomes(self, limit: int, vm_id: str | Sequence[str] | None = None) -> Sequence[OutcomeView]:
        """Of own VMs."""
        chosen = self._chosen(vm_id)
        return await self._view.outcomes(limit, chosen) if chosen else ()

    async def operations(self, limit: int, vm_ids: Sequence[str] | None = None) -> Sequence[Operation]:
        """Of own VMs."""
        chosen = self._chosen(vm_ids)
        return await self._view.operations(limit, chosen) if chosen else ()

    async def operation(self, operation_id: str) -> Operation | None:
        """None = unknown, pruned, or of another's VM."""
        found = await self._view.operation(operation_id)
        return found if found is not None and self.vm(found.vm_id) is not None else None

    def compliance(self, kind: Kind, cursor: str | None, limit: int, among: Collection[str] | None = None) -> CompliancePage:
        """Of the client itself and of own VMs; applications may be shared with others, priorities are."""
        own = {"client": {self._client} - {""}, "vm": set(self.vm_ids())}.get(kind, set())
        return self._view.compliance(kind, cursor, limit, own if among is None else own & set(among))

    async def compliance_of(self, kind: Kind, name: str, resolution_s: int, hours: int) -> ComplianceDetail | None:
        """None = neither the client itself nor an own VM."""
        own = (kind == "client" and name == self._client and self._client) or (kind == "vm" and self.vm(name) is not None)
        return await self._view.compliance_of(kind, name, resolution_s, hours) if own else None

    def alerts(self, wanted: AlertFilter, limit: int, cursor: str | None) -> AlertPage:
        """That name the client. Those that found no room are not told by client."""
        if not self._client or wanted.client not in (None, self._client):
            return AlertPage(items=(), total=0, next_cursor=None, hidden=0)
        found = self._view.alerts(msgspec.structs.replace(wanted, client=self._client), limit, cursor)
        return msgspec.structs.replace(found, hidden=0)

    def alert(self, alert_id: str) -> Alert | None:
        """None = unknown, or it does not name the client."""
        found = self._view.alert(alert_id)
        return found if found is not None and self._client and found.labels.get("client") == self._client else None

    async def report(self, client: str, from_s: int | None, until_s: int | None) -> Report | None:
        """None = another's."""
        return await self._view.report(client, from_s, until_s) if self._client and client == self._client else None

    async def tell_signals(self, batch: SignalBatch) -> SignalsTaken:
        """Of own VMs, or of the client itself. An application is named by its VMs: others may call theirs the same."""
        for i, report in enumerate(batch.readings):
            if report.application is not None:
                raise InvalidValue(f"readings[{i}].application", report.application, "vm_id or client, for a caller of role client")
            foreign = report.client not in (None, self._client) or (report.vm_id is not None and self.vm(report.vm_id) is None)
            if foreign:
                field, value = ("vm_id", report.vm_id) if report.vm_id is not None else ("client", report.client)
                raise NotFound(RefusalCode.UNKNOWN_VM, f"readings[{i}].{field}", str(value), "an id of /api/v1/vms, or your own client")
        return await self._view.tell_signals(batch)

    def ready(self) -> tuple[bool, str]:
        """Of the service; it names nobody."""
        return self._view.ready()

    def _own(self, vm_id: str) -> str:
        if self.vm(vm_id) is None:
            raise NotFound(RefusalCode.UNKNOWN_VM, "vm_id", vm_id, "an id of /api/v1/vms")
        return vm_id

    def _chosen(self, asked: str | Sequence[str] | None) -> Sequence[str]:
        """Those of the VMs asked for (None = all) that are its own."""
        if asked is None:
            own = self.vm_ids()
            if len(own) > MAX_VMS:
                raise InvalidValue("vm", "no VM", f"one VM, for a client with more than {MAX_VMS}")
            return own
        named = (asked,) if isinstance(asked, str) else asked
        return tuple(vm_id for vm_id in named if self.vm(vm_id) is not None)


def _unhosted(receipt: Receipt) -> Receipt:
    """A receipt without what tells of the others on its host: prices of its capacity, and the numbers behind refusals for its room."""
    inputs = {name: value for name, value in receipt.inputs.items() if name != "shadow_price"}
    return replace(receipt, inputs=inputs, trail=tuple(map(_code_alone, receipt.trail)), refused=tuple(map(_code_alone, receipt.refused)))


def _code_alone(line: str) -> str:
    code = line.partition(":")[0]
    return code if code in OF_THE_HOST else line
