"""A VM that stands at its host's growth budget does not wait for the next cycle: the plan that lifts it comes at once. Pure.

A host lets a VM only double what it began with while no plan says so (docs/adr/0007), and tells of the growth that it refused. What such
a VM needs is hidden behind its limit, so it is lent what sizing lends one that ran into its limit (`SizingPolicy.climb` times what it
holds), of the room beyond the reserve alone; the next cycle sizes it by what it then shows. Measured: VMs stood at the budget for up to
five minutes with a third of their host's memory free, a sixth of all violations (docs/sizing.md).
Of CPU and memory only: traffic comes in bursts that are over before a plan is there, and what was lent them is missing for hours.
Invariant: never above the owner's ceiling or the domain's maximum, never out of the reserve, and only what a predictive host asks for.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.model import HostState, VmState
from coordinator.planning.order import RESOURCE_OF, room_of
from coordinator.sizing.choice import devices
from coordinator.sizing.levers import KIND, ceilings, commit_limits, round_down
from coordinator.sizing.policy import SizingPolicy
from shared.plan import Outcome, Step
from shared.refusal import RefusalCode
from shared.units import CPU, MEMORY, NS_PER_S

LEVERS = frozenset({KIND[CPU], KIND[MEMORY]})
# Of news older than this the next cycle knows more.
FRESH_NS = 60 * NS_PER_S
# Less than this share more is not worth a plan.
LEAST = 0.1


def stands_at_budget(outcome: Outcome, now_ns: int) -> bool:
    """The host refused this growth of its own for want of a plan, just now."""
    fresh = now_ns - outcome.finished_ns <= FRESH_NS
    return outcome.code is RefusalCode.GROWTH_BUDGET and outcome.step.kind in LEVERS and (outcome.value or 0) > 0 and fresh


def lifts(host: HostState, refused: Iterable[Outcome], policy: SizingPolicy, *, name: str, deadline_ns: int) -> tuple[Step, ...]:
    """Growth for those at their budget, the more important VM first; ids begin with `name`. Empty where there is no room."""
    limits, vms = commit_limits(host), {vm.domain.vm_id: vm for vm in host.vms}
    room = {r: left - limits[r] * policy.reserve_share for r, left in room_of(host).items()}
    wanted = {(each.step.vm_id, each.step.kind): each for each in refused if each.step.vm_id in vms}
    steps: list[Step] = []
    for (vm_id, kind), outcome in sorted(wanted.items(), key=lambda each: (-int(vms[each[0][0]].domain.policy.priority), each[0])):
        vm, now, r = vms[vm_id], outcome.value or 0, RESOURCE_OF[kind]
        if vm.domain.policy.excluded:
            continue
        value = int(round_down(min(now * policy.climb, highest(vm, r), now + max(0.0, room[r])), policy.granule[r]))
        if value < now * (1.0 + LEAST):
            continue
        room[r] -= value - now
        step_id = f"{name}{len(steps)}"
        steps.append(Step(id=step_id, vm_id=vm_id, kind=kind, value=value, before=now, reason="growth_budget", deadline_ns=deadline_ns))
    return tuple(steps)


def highest(vm: VmState, r: int) -> float:
    """The most that the lever itself may be set to: a quota within the vCPUs in force, a balloon beside what devices hold."""
    top = ceilings(vm)[r]
    if r == CPU and vm.allocation.vcpus is not None:
        return min(top, 1000.0 * vm.allocation.vcpus)
    return top - devices(vm.allocation) if r == MEMORY else top
