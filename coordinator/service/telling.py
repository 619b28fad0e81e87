"""From an application's report to readings of VMs: whom a reading is for, and whether its time may be taken. Pure.

A value told of a client or an application is a reading of each of its VMs, undivided: the models learn per VM what it means for that VM.
Invariant: all of a report is taken or none of it, and a refusal names the reading, the field, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from coordinator.demand.signals import SignalReading
from coordinator.forecast.events.model import Labels
from coordinator.model import SIGNALS
from coordinator.service.problems import InvalidValue, NotFound
from coordinator.service.signals import MAX_VALUES, SignalBatch, SignalReport
from shared.refusal import RefusalCode


def readings_of(
    batch: SignalBatch, known: Container[str], labels: Callable[[], Mapping[str, Labels]], span_s: tuple[int, int]
) -> tuple[SignalReading, ...]:
    """One reading per report, for the VMs of its scope.

    `known`: every VM of the fleet; `labels`: client and application of each, asked for only where a report names one; `span_s`: oldest and
    newest time allowed. Raises InvalidValue and NotFound.
    """
    groups = _Groups(labels)
    readings, values = [], 0
    for i, report in enumerate(batch.readings):
        place = f"readings[{i}]"
        if not span_s[0] <= report.time_s <= span_s[1]:
            raise InvalidValue(f"{place}.time_s", report.time_s, f"{span_s[0]} to {span_s[1]}, by the coordinator's clock")
        told = tuple(getattr(report, name) for name in SIGNALS)
        if all(value is None for value in told):
            raise InvalidValue(place, "a reading of nothing", f"at least one of {', '.join(SIGNALS)}")
        vm_ids = _scope(report, place, known, groups)
        values += len(vm_ids)
        if values > MAX_VALUES:
            raise InvalidValue("readings", f"readings of {values} VMs in all", f"at most {MAX_VALUES} in one request")
        readings.append(SignalReading(report.time_s, vm_ids, told))
    return tuple(readings)


class _Groups:
    """VMs by client and by application, made when first asked for."""

    def __init__(self, labels: Callable[[], Mapping[str, Labels]]) -> None:
        self._labels = labels
        self._members: dict[tuple[str, str], list[str]] | None = None

    def members(self, kind: str, name: str) -> tuple[str, ...]:
        if self._members is None:
            self._members = {}
            for vm_id, label in self._labels().items():
                self._members.setdefault(("client", label.client), []).append(vm_id)
                self._members.setdefault(("application", label.app), []).append(vm_id)
        return tuple(self._members.get((kind, name), ()))


def _scope(report: SignalReport, place: str, known: Container[str], groups: _Groups) -> tuple[str, ...]:
    named = {"vm_id": report.vm_id, "client": report.client, "application": report.application}
    chosen = [(kind, name) for kind, name in named.items() if name is not None]
    if len(chosen) != 1:
        raise InvalidValue(
            place, f"{', '.join(kind for kind, _ in chosen) or 'no VM, client or application'}", f"one of {', '.join(named)}"
        )
    ((kind, name),) = chosen
    if kind == "vm_id":
        if name not in known:
            raise NotFound(RefusalCode.UNKNOWN_VM, f"{place}.vm_id", name, "an id of /api/v1/vms")
        return (name,)
    vm_ids = groups.members(kind, name)
    if not vm_ids:
        raise NotFound(RefusalCode.UNKNOWN_VM, f"{place}.{kind}", name, f"the {kind} of a VM of /api/v1/vms")
    return vm_ids
