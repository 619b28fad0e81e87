"""Sizes to a plan for one host, with a receipt for every VM where there is something to explain.

Invariant: shadow and real take the same path; shadow only withholds the plan. A silent host gets neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.model import ForecastBlock, HostState, Receipt, VmSize, VmState
from coordinator.planning.diff import changes_of, facts_of
from coordinator.planning.order import Slot, room_of, schedule
from coordinator.planning.receipt import build_receipt, noteworthy
from coordinator.planning.weights import weights_of
from coordinator.sizing.ahead import rows_of
from coordinator.sizing.choice import lever_of
from coordinator.sizing.levers import KIND, WITH_DISK, in_force, lead_time_s
from coordinator.sizing.margin import HostLoads, host_loads
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.target import at_level, last_step
from shared.plan import Plan, StepKind
from shared.units import BUCKET_S, NS_PER_S, RESOURCES

MAX_STEPS = 4096  # of one plan (shared.plan); later changes wait for the next cycle
DEFAULT_POLICY = SizingPolicy()


def plan_host(
    host: HostState,
    sizes: Sequence[VmSize],
    forecast: ForecastBlock,
    *,
    epoch: int,
    sequence: int,
    now_ns: int,
    deadline_s: float,
    shadow: bool,
    policy: SizingPolicy = DEFAULT_POLICY,
    measured_lead_s: Mapping[StepKind, float] | None = None,
    loads: HostLoads | None = None,
) -> tuple[Plan | None, tuple[Receipt, ...]]:
    """The plan (None when there is nothing to do or in shadow) and the receipts, whose steps are those of the plan.

    `loads`: what hosts must carry, this one among them; None = as sums of independent VMs.
    """
    if not host.alive:
        return None, ()
    vms = {vm.domain.vm_id: vm for vm in host.vms}
    sized = sorted((size for size in sizes if size.vm_id in vms), key=lambda size: size.vm_id)
    rows = rows_of(forecast.vm_ids)
    known = loads or host_loads([host], forecast, None, policy.client_rho)
    weights = weights_of(host, [vms[size.vm_id] for size in sized], forecast, known, policy)
    facts = {
        size.vm_id: facts_of(
            vms[size.vm_id],
            size,
            policy,
            ramps(vms[size.vm_id], rows.get(size.vm_id), forecast, policy, measured_lead_s),
            weights[size.vm_id],
        )
        for size in sized
    }
    deadline_ns = now_ns + int(deadline_s * NS_PER_S)
    slots = schedule(
        [change for size in sized for change in changes_of(facts[size.vm_id])],
        room_of(host),
        policy,
        now_ns=now_ns,
        deadline_ns=deadline_ns,
        measured_lead_s=measured_lead_s,
    )[:MAX_STEPS]
    own: dict[str, list[Slot]] = {}
    for slot in slots:
        own.setdefault(slot.change.vm_id, []).append(slot)
    receipts = tuple(
        build_receipt(
            vms[size.vm_id],
            size,
            facts[size.vm_id],
            own.get(size.vm_id, ()),
            forecast,
            row=rows.get(size.vm_id),
            policy=policy,
            epoch=epoch,
            sequence=sequence,
            now_ns=now_ns,
            shadow=shadow,
        )
        for size in sized
        if noteworthy(size, own.get(size.vm_id, ()))
    )
    if shadow or not slots:
        return None, receipts
    steps = {step.id: step for receipt in receipts for step in receipt.steps}
    ordered = tuple(steps[f"{epoch}-{sequence}-{slot.n}"] for slot in slots)
    plan = Plan(host_id=host.host_id, epoch=epoch, sequence=sequence, issued_ns=now_ns, deadline_ns=deadline_ns, steps=ordered)
    return plan, receipts


def ramps(
    vm: VmState, row: int | None, forecast: ForecastBlock, policy: SizingPolicy, measured: Mapping[StepKind, float] | None
) -> tuple[int, ...]:
    """[r] start (wall ns) of the first bucket within the horizon whose peak passes what is in force; 0 = now (or not known)."""
    found = [0] * len(RESOURCES)
    if row is None:
        return tuple(found)
    priority, now = int(vm.domain.policy.priority), in_force(vm)
    for r in WITH_DISK:
        steps = last_step(policy, r, lead_time_s(lever_of(vm, r, KIND), policy, measured)) + 1
        level = min(forecast.levels[-1], policy.size_quantile[priority] + policy.quantile_offset[r])
        peaks = at_level(forecast.peak_quantiles[row, r, :steps].astype(np.float64), forecast.levels, level)
        over = np.flatnonzero(peaks * (1.0 + policy.margin[r]) > now[r])
        if len(over) and over[0] > 0:
            found[r] = (forecast.issued_s + BUCKET_S * int(over[0])) * NS_PER_S
    return tuple(found)
