"""Per-VM series of /metrics, written as text straight from the newest sample: nothing is kept, so a series dies with its VM. Pure.

Why not prometheus-client: 100 VMs x 60 series would be 6,000 live objects for values that change all at once.
Invariant: at most MAX_VMS VMs are written (the gauge tidegate_agent_vms_not_exported counts the rest); what is not known has no line;
label values are escaped, so a VM's name cannot add lines of its own.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from agent.sampling.detail import VmDetail
from shared.metrics import AGENT_VM_KVM, AGENT_VM_METRICS, VmMetric
from shared.model import VmSample
from shared.units import UNLIMITED

# Ten times the VMs of a large host: 60,000 lines, 6 MB. More is a mistake somewhere, and Prometheus would drop the scrape.
MAX_VMS: Final = 1000
_OF_DETAIL: Final = frozenset(VmDetail.__struct_fields__)


def render_vms(samples: Mapping[str, VmSample], details: Mapping[str, VmDetail], names: Mapping[str, str]) -> bytes:
    """The exposition of every VM of one sample. `details`: what is not shipped; `names`: VM id -> name, for the label."""
    chosen = sorted(samples)[:MAX_VMS]
    labels = {vm_id: f'{{vm_id="{_escape(vm_id)}",name="{_escape(names.get(vm_id, ""))}"}}' for vm_id in chosen}
    lines: list[str] = []
    for row in AGENT_VM_METRICS:
        source: Mapping[str, VmSample | VmDetail] = details if row.field in _OF_DETAIL else samples
        lines += _family(row, ((labels[vm_id], _value(row, source.get(vm_id))) for vm_id in chosen))
    lines += _kvm(details, {vm_id: labels[vm_id] for vm_id in chosen if vm_id in details})
    return "".join(f"{line}\n" for line in lines).encode()


def _family(row: VmMetric, values: Iterable[tuple[str, float | None]]) -> list[str]:
    lines = [f"{row.name}{label} {_number(value)}" for label, value in values if value is not None]
    return [f"# HELP {row.name} {row.help}", f"# TYPE {row.name} gauge", *lines] if lines else []


def _kvm(details: Mapping[str, VmDetail], labels: Mapping[str, str]) -> list[str]:
    """KVM's counters under their own names: the set is libvirt's and bounded (agent.sampling.kvm)."""
    lines = [
        f'{AGENT_VM_KVM.name}{label[:-1]},counter="{_escape(name)}"}} {value}'
        for vm_id, label in labels.items()
        for name, value in sorted(details[vm_id].kvm_per_s.items())
    ]
    return [f"# HELP {AGENT_VM_KVM.name} {AGENT_VM_KVM.help}", f"# TYPE {AGENT_VM_KVM.name} gauge", *lines] if lines else []


def _value(row: VmMetric, source: VmSample | VmDetail | None) -> float | None:
    value: int | None = getattr(source, row.field, None)
    if value is None:
        return None
    # what nothing limits is +Inf: a panel of use over limit stays right
    return float("inf") if row.limit and value == UNLIMITED else value / row.per


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else f"{value:.15g}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
