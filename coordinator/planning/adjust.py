"""An operator's order for one VM (adjust_resources): checked against domain, policy, working set and host, then a plan like any other.

All or nothing: the first value that is not allowed refuses the whole order with a code and the numbers. A dry run is the same call.
"""

from __future__ import annotations

import math

import msgspec

from coordinator.model import HostState, VmState
from coordinator.planning.diff import Change
from coordinator.planning.order import RESOURCE_OF, Slot, room_of, schedule
from coordinator.sizing.choice import devices
from coordinator.sizing.levers import SHORT, ceilings, floors, in_force
from coordinator.sizing.policy import SizingPolicy
from shared.errors import Refusal
from shared.plan import Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import CPU, MEMORY, NS_PER_S, UNLIMITED


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """What one VM shall get; None = leave alone. `cpu_quota_millicores` UNLIMITED removes the quota."""

    vcpus: int | None = None
    memory_bytes: int | None = None
    cpu_quota_millicores: int | None = None


DEFAULT_POLICY = SizingPolicy()


def adjust(
    vm: VmState,
    host: HostState,
    request: Adjustment,
    *,
    epoch: int,
    sequence: int,
    now_ns: int,
    deadline_s: float,
    policy: SizingPolicy = DEFAULT_POLICY,
) -> Plan:
    """A plan that carries out the order. Raises Refusal."""
    check_target(vm, host, request)
    changes = [*vcpus(vm, request), *quota(vm, request, policy), *memory(vm, request, policy)]
    if not changes:
        raise Refusal(RefusalCode.NOTHING_TO_DO, f"vm {vm.domain.vm_id!r} has these values already")
    check_room(host, changes)
    deadline_ns = now_ns + int(deadline_s * NS_PER_S)
    slots = schedule(changes, room_of(host), policy, now_ns=now_ns, deadline_ns=deadline_ns)
    steps = tuple(step_of(slot, f"{epoch}-{sequence}-{slot.n}") for slot in slots)
    return Plan(host_id=host.host_id, epoch=epoch, sequence=sequence, issued_ns=now_ns, deadline_ns=deadline_ns, steps=steps)


def check_target(vm: VmState, host: HostState, request: Adjustment) -> None:
    """Refuse what does not depend on the values."""
    vm_id = vm.domain.vm_id
    if not host.alive:
        raise Refusal(RefusalCode.HOST_UNKNOWN_STATE, f"host {host.host_id!r} is silent: nothing is changed on it")
    if not vm.domain.running:
        raise Refusal(RefusalCode.VM_NOT_RUNNING, f"vm {vm_id!r} is not running")
    if vm.domain.policy.excluded:
        raise Refusal(RefusalCode.VM_EXCLUDED, f"policy opts vm {vm_id!r} out")
    if request == Adjustment():
        raise Refusal(RefusalCode.INVALID_VALUE, "give at least one of vcpus, memory_bytes, cpu_quota_millicores")


def vcpus(vm: VmState, request: Adjustment) -> list[Change]:
    """vCPUs are only added, up to the domain's maximum."""
    wanted, now = request.vcpus, vm.allocation.vcpus
    if wanted is None:
        return []
    if wanted < 1:
        raise Refusal(RefusalCode.INVALID_VALUE, f"vcpus = {wanted}: allowed 1 to {vm.domain.vcpus_max}", {"asked": wanted})
    check_maximum("vcpus", wanted, vm.domain.vcpus_max)
    if now is None:
        raise Refusal(RefusalCode.READING_STALE, "vcpus in force are not known")
    if wanted < now:
        raise Refusal(
            RefusalCode.NOT_CAPABLE, f"vcpus = {wanted}: vCPUs are only added, {now} in force", {"asked": wanted, "in_force": now}
        )
    if wanted > now:
        check_capable("vcpus", vm.domain.capabilities.vcpu_hot_add)
    # Under no quota the vCPUs are the promise; a quota in the same order sets the promise itself.
    promises = vm.allocation.cpu_quota_millicores == UNLIMITED and request.cpu_quota_millicores is None
    delta = 1000.0 * (wanted - now) if promises else 0.0
    return [] if wanted == now else [order(vm, StepKind.VCPUS, wanted, now, delta)]


def quota(vm: VmState, request: Adjustment, policy: SizingPolicy) -> list[Change]:
    wanted, raw = request.cpu_quota_millicores, vm.allocation.cpu_quota_millicores
    if wanted is None:
        return []
    check_capable("cpu_quota_millicores", vm.domain.capabilities.cpu_quota)
    now = in_force(vm)[CPU]
    if math.isnan(now):
        raise Refusal(RefusalCode.READING_STALE, "the quota in force is not known")
    count = max(request.vcpus or 0, vm.allocation.vcpus or vm.domain.vcpus_max)
    charged = 1000.0 * count if wanted == UNLIMITED else float(wanted)
    if wanted != UNLIMITED:
        check_maximum("cpu_quota_millicores", wanted, 1000 * vm.domain.vcpus_max)
    own = vm.domain.policy.cpu_ceiling_millicores
    check_bounds("cpu_quota_millicores", charged, now, floors(vm, policy)[CPU], math.inf if own is None else float(own))
    return [] if wanted == raw else [order(vm, StepKind.CPU_QUOTA, wanted, raw, charged - now)]


def memory(vm: VmState, request: Adjustment, policy: SizingPolicy) -> list[Change]:
    """The balloon. No shrink without a fresh guest reading, none under pressure, none below the working set and its margin."""
    wanted, now = request.memory_bytes, vm.allocation.memory_bytes
    if wanted is None:
        return []
    check_capable("memory_bytes", vm.domain.capabilities.balloon)
    check_maximum("memory_bytes", wanted, vm.domain.memory_max_bytes)
    if now is None:
        raise Refusal(RefusalCode.READING_STALE, "memory in force is not known")
    if wanted < now:
        if vm.pressured:
            raise Refusal(RefusalCode.PRESSURE_VETO, "the VM is under memory pressure: no shrink")
        if math.isnan(vm.working_set_bytes):
            raise Refusal(RefusalCode.READING_STALE, "no fresh guest reading: memory is not shrunk")
        need = math.ceil(vm.working_set_bytes * (1.0 + policy.working_set_margin))
        if wanted < need:
            numbers = {"asked": wanted, "working_set_and_margin": need}
            raise Refusal(RefusalCode.BELOW_WORKING_SET, f"memory_bytes = {wanted}: the guest needs {need}", numbers)
    plugged = devices(vm.allocation)  # floors and ceilings hold for all of the VM's memory
    check_bounds("memory_bytes", float(wanted), float(now), floors(vm, policy)[MEMORY] - plugged, ceilings(vm)[MEMORY] - plugged)
    return [] if wanted == now else [order(vm, StepKind.MEMORY, wanted, now, float(wanted - now))]


def check_capable(name: str, why_not: str | None) -> None:
    """Refuse what the host's probe of the domain found impossible; None = possible."""
    if why_not is not None:
        raise Refusal(RefusalCode.NOT_CAPABLE, f"{name}: {why_not}")


def check_maximum(name: str, wanted: int, most: int) -> None:
    """Refuse more than the domain was defined with."""
    if wanted > most:
        numbers = {"asked": wanted, "allowed": most}
        raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"{name} = {wanted}: the domain was defined with at most {most}", numbers)


def check_bounds(name: str, wanted: float, now: float, low: float, high: float) -> None:
    """Refuse more than the policy's ceiling, and less than the floor unless it is a step up towards it."""
    numbers = {"asked": wanted, "floor": low, "ceiling": high}
    if wanted < min(low, now):
        raise Refusal(RefusalCode.BELOW_FLOOR, f"{name} = {wanted:.0f}: at least {low:.0f}", numbers)
    if wanted > high:
        raise Refusal(RefusalCode.ABOVE_CEILING, f"{name} = {wanted:.0f}: at most {high:.0f}", numbers)


def check_room(host: HostState, changes: list[Change]) -> None:
    """Refuse growth beyond the host's commit limits (an order does not wait for others to shrink)."""
    room = room_of(host)
    for r in (CPU, MEMORY):
        more = sum(change.delta for change in changes if RESOURCE_OF[change.kind] == r)
        if more > 0.0 and more > room[r]:
            numbers = {"need": more, "room": max(0.0, room[r])}
            raise Refusal(RefusalCode.HOST_COMMIT_LIMIT, f"{SHORT[r]}: {more:.0f} more asked, the host has room for {room[r]:.0f}", numbers)


def order(vm: VmState, kind: StepKind, value: int, before: int | None, delta: float) -> Change:
    return Change(
        vm_id=vm.domain.vm_id,
        priority=int(vm.domain.policy.priority),
        kind=kind,
        value=value,
        before=before,
        delta=delta,
        reason="operator",
    )


def step_of(slot: Slot, step_id: str) -> Step:
    """A slot as a step without a receipt."""
    item = slot.change
    return Step(
        id=step_id,
        vm_id=item.vm_id,
        kind=item.kind,
        value=item.value,
        before=item.before,
        reason=item.reason,
        not_before_ns=slot.not_before_ns,
        deadline_ns=slot.deadline_ns,
    )
