"""When each change happens: shrink before grow, vCPUs before the quota that needs them, growth done before the ramp and not long before.

A growth that only fits once others have shrunk waits for them; among growths the higher priority and the earlier ramp go first.
Times are wall nanoseconds. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from coordinator.model import HostState
from coordinator.planning.diff import WEIGHTS, Change
from coordinator.sizing.choice import strides
from coordinator.sizing.levers import commit_limits, lead_time_s, promised
from coordinator.sizing.policy import SizingPolicy
from shared.plan import StepKind
from shared.units import CPU, DISK, MEMORY, NET_RX, NET_TX, NS_PER_S

RESOURCE_OF: Mapping[StepKind, int] = {
    StepKind.VCPUS: CPU,
    StepKind.CPU_QUOTA: CPU,
    StepKind.CPU_SHARES: CPU,
    StepKind.VCPUS_ONLINE: CPU,
    StepKind.MEMORY: MEMORY,
    StepKind.VIRTIO_MEM: MEMORY,
    StepKind.MEMORY_HIGH: MEMORY,
    StepKind.DISK_BYTES: DISK,
    StepKind.DISK_OPS: DISK,
    StepKind.DISK_WEIGHT: DISK,
    StepKind.NET_RX: NET_RX,
    StepKind.NET_TX: NET_TX,
    StepKind.NET_TX_RATE: NET_TX,
}
# vCPUs are plugged, then brought online, then the quota follows; a memory.high is lifted before memory grows.
FIRST = (StepKind.VCPUS, StepKind.VCPUS_ONLINE, StepKind.MEMORY_HIGH)
KIND_RANK = {kind: i for i, kind in enumerate([*FIRST, *(kind for kind in StepKind if kind not in FIRST)])}


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A change with its place in the plan: number and time window."""

    n: int
    change: Change
    not_before_ns: int
    deadline_ns: int


def schedule(
    changes: Sequence[Change],
    room: Mapping[int, float],
    policy: SizingPolicy,
    *,
    now_ns: int,
    deadline_ns: int,
    measured_lead_s: Mapping[StepKind, float] | None = None,
) -> tuple[Slot, ...]:
    """All changes of one host in order. `room`: resource -> what the host may still promise now. Changes due after the deadline are
    left to a later plan.
    """
    left = dict(room)
    freed_ns: dict[int, int] = {}
    timed: list[tuple[int, Change]] = []
    for item in sorted((c for c in changes if not grows(c)), key=lambda c: (c.vm_id, KIND_RANK[c.kind], c.after_ns)):
        begin = now_ns + item.after_ns
        timed.append((begin, item))
        r = RESOURCE_OF[item.kind]
        if item.delta > 0.0:  # from unlimited to a number above what unlimited counts for
            left[r] = left.get(r, 0.0) - item.delta
        elif item.delta < 0.0:
            end = begin + int(lead_time_s(item.kind, policy, measured_lead_s) * NS_PER_S)
            freed_ns[r] = max(freed_ns.get(r, 0), end)
    for item in sorted((c for c in changes if grows(c)), key=lambda c: (-c.priority, c.ramp_ns, c.vm_id, KIND_RANK[c.kind])):
        r = RESOURCE_OF[item.kind]
        lead = lead_of(item, policy, measured_lead_s) + policy.early_s[r]
        begin = max(now_ns, item.ramp_ns - int(lead * NS_PER_S))
        if item.delta > left.get(r, 0.0) and r in freed_ns:
            begin = max(begin, freed_ns[r])
        else:
            left[r] = left.get(r, 0.0) - item.delta
        timed.append((begin, item))
    due = [(begin, item) for begin, item in timed if begin < deadline_ns]
    return tuple(Slot(n=n, change=item, not_before_ns=begin, deadline_ns=deadline_ns) for n, (begin, item) in enumerate(due))


def lead_of(item: Change, policy: SizingPolicy, measured: Mapping[StepKind, float] | None) -> float:
    """Seconds that a growth takes: measured times are those of one stride, the table's of the whole."""
    lead = lead_time_s(item.kind, policy, measured)
    return lead * strides(item.kind, item.before, item.value, policy.memory_stride) if item.kind in (measured or {}) else lead


def grows(item: Change) -> bool:
    """True when the change gives the VM more. From unlimited to a number is no growth."""
    return item.before is not None and item.before >= 0 and item.value > item.before and item.kind not in WEIGHTS


def room_of(host: HostState) -> dict[int, float]:
    """Resource -> commit limit less what is in force; an unknown limit counts as the most it could be."""
    limits = commit_limits(host)
    return {r: limits[r] - sum(promised(vm, r) for vm in host.vms if vm.domain.running) for r in (CPU, MEMORY, NET_RX, NET_TX)}
