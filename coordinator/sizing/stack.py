"""The stack of small steps that makes a size of one VM's forecast, before the host's capacity is looked at.

Each step reads and writes one Draft and adds a line to its trail: quantile at the price of capacity, or a fixed one (target) -> boost ->
margin -> floor -> ceiling -> trigger -> evidence -> vetoes -> turns -> largest cut.
"""

from __future__ import annotations

import math

from coordinator.model import N_RESOURCES, NoForecast, VmState
from coordinator.sizing.ahead import Outlook
from coordinator.sizing.choice import granule_of, only_grows
from coordinator.sizing.draft import Draft, VmEvidence
from coordinator.sizing.levers import GRAIN_NAME, NAN, WITH_DISK, ceilings, floors, in_force, incapable, round_up
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.target import UNUSABLE
from coordinator.sizing.trigger import confidence, fires
from coordinator.sizing.turns import precious, scarce, spent, turn_size
from shared.model import Mode
from shared.refusal import RefusalCode
from shared.units import MEMORY


def draft_vm(vm: VmState, i: int, outlook: Outlook, policy: SizingPolicy, evidence: VmEvidence) -> list[Draft]:
    """The stack up to the host's capacity, for every resource of one VM."""
    now, low, high, cannot = in_force(vm), floors(vm, policy), ceilings(vm), incapable(vm)
    drafts = [
        Draft(vm, r, now[r], low[r], high[r], granule=granule_of(vm, r, policy), need=float(outlook.mean[i, r])) for r in range(N_RESOURCES)
    ]
    for r in WITH_DISK:
        draft = drafts[r]
        if cannot[r] is not None:
            draft.refuse(RefusalCode.NOT_CAPABLE, f"left alone: {cannot[r]}")
            continue
        why_not = left_alone(vm, outlook, i, r)
        recent = held_reactive(vm) or outlook.reason[i, r] == NoForecast.OUT_OF_CALIBRATION
        if recent and math.isfinite(vm.peak_now[r]) and math.isfinite(now[r]):
            draft.note(held_reactive(vm) or "forecast out_of_calibration: reactive")
            follow_recent(draft, evidence.windows[r], policy)
            continue
        if why_not is not None:
            draft.note(f"left alone: {why_not}")
            continue
        take_quantile(draft, outlook, i, policy)
        boost(draft, policy)
        add_margin(draft, policy)
        clip(draft, policy)
        pull_trigger(draft, outlook, i, policy)
        weigh_evidence(draft, evidence.windows[r], policy, policy.shrink_evidence[r])
        veto_shrink(draft, cold=bool(outlook.reason[i, r] == NoForecast.COLD_START), policy=policy)
        spend_turn(draft, float(outlook.hour[i, r]), policy)
        limit_shrink(draft, policy)
    return drafts


def left_alone(vm: VmState, outlook: Outlook, i: int, r: int) -> str | None:
    """Why this resource of this VM is not sized, or None."""
    unknown = "limit in force unknown" if math.isnan(in_force(vm)[r]) else None
    return incapable(vm)[r] or held_reactive(vm) or no_forecast(outlook, i, r) or unknown


def held_reactive(vm: VmState) -> str | None:
    """Why a VM is not to follow its forecast, by its policy; None where it may."""
    return "policy allows reactive at most" if vm.domain.policy.mode is Mode.REACTIVE else None


def follow_recent(draft: Draft, window: tuple[float, ...], policy: SizingPolicy) -> None:
    """Out of calibration, the host's reactive rule grows the VM; as it may not shrink in this mode, the plan shrinks by that rule's own
    measure: the largest peak of the newest buckets and a margin. Otherwise such a VM would keep its largest burst for good.
    """
    r = draft.resource
    draft.target = draft.upper = draft.vm.peak_now[r] * (1.0 + policy.recent_margin)
    draft.lower = 0.0
    draft.note(f"peak {draft.vm.peak_now[r]:.0f} and {100 * policy.recent_margin:.0f} %")
    clip(draft, policy)
    draft.lower = draft.floor
    weigh_evidence(draft, window, policy, max(policy.recent_cycles, policy.shrink_evidence[r]))
    veto_shrink(draft, cold=False, policy=policy)
    spend_turn(draft, NAN, policy)
    limit_shrink(draft, policy)


def no_forecast(outlook: Outlook, i: int, r: int) -> str | None:
    """Why this series cannot be sized, or None."""
    reason = outlook.reason[i, r]
    if math.isnan(reason):
        return "no forecast for this VM: reactive"
    if reason in UNUSABLE:
        return f"forecast {NoForecast(int(reason)).name.lower()}: reactive"
    if math.isnan(outlook.size[i, r]) or math.isnan(outlook.lower[i, r]):
        return "forecast holds no value: reactive"
    return None


def take_quantile(draft: Draft, outlook: Outlook, i: int, policy: SizingPolicy) -> None:
    """Target and lower end from the forecast, as bought at the price of capacity where there is one."""
    r = draft.resource
    draft.target = draft.upper = float(outlook.size[i, r])
    draft.lower = min(float(outlook.lower[i, r]), draft.target)
    price = outlook.price[r]
    promised = draft.vm.domain.policy.size_quantile_permille is not None
    at = " by its policy" if promised else "" if math.isnan(price) else f" at price {price:.3g}"
    draft.note(f"quantile {outlook.quantile[i, r]:.3g} of peak in {outlook.steps[r]} steps = {draft.target:.0f}{at}")
    if outlook.short[r]:
        draft.clipped, draft.price = True, outlook.worth[r]
        what = f"; {GRAIN_NAME[r]} more here would save {outlook.worth[r]:.3g} an hour" if outlook.worth[r] > 0.0 else ""
        draft.refuse(RefusalCode.HOST_CAPACITY, f"price {price:.3g} asks for more than the host has{what}")


def boost(draft: Draft, policy: SizingPolicy) -> None:
    """A VM that has just booted or moved gets more than its steady state for a while: its caches are cold and its work has waited."""
    vm, r = draft.vm, draft.resource
    for what, since_s, lasts_s, shares in (
        ("booted", vm.since_start_s, policy.boot_boost_s, policy.boot_boost),
        ("moved", vm.since_move_s, policy.move_boost_s, policy.move_boost),
    ):
        if since_s < lasts_s and shares[r] > 0.0:
            draft.target *= 1.0 + shares[r]
            draft.lower = max(draft.lower, draft.target / (1.0 + shares[r]))
            draft.note(f"{what} {since_s:.0f} s ago: {100 * shares[r]:.0f} % more = {draft.target:.0f}")


def add_margin(draft: Draft, policy: SizingPolicy) -> None:
    """Margin on all three; `lower` gives way by the dead band, `upper` by the slack."""
    r = draft.resource
    factor = 1.0 + policy.margin[r]
    draft.target *= factor
    # grown already, or turns without end: growing costs nothing but the room
    free = draft.vm.turns[r].turning or not precious(policy)
    band = policy.dead_band[r] if free else max(policy.dead_band[r], policy.turn_band[r])
    draft.lower = min(draft.lower * factor, draft.target * (1.0 - min(1.0, band)))
    draft.upper = draft.target * (1.0 + policy.upper_slack[r])
    if policy.margin[r]:
        draft.note(f"margin {100 * policy.margin[r]:.0f} % = {draft.target:.0f}")


def clip(draft: Draft, policy: SizingPolicy) -> None:
    """Whole granules within [floor, ceiling]. A floor in force makes everything under it a reason to act."""
    wanted = draft.target
    draft.target = min(max(round_up(draft.target, draft.granule), draft.floor), draft.ceiling)
    draft.lower = min(max(draft.lower, draft.floor), draft.target)
    draft.upper = max(draft.upper, draft.target)
    if wanted < draft.floor:
        draft.note(f"floor = {draft.floor:.0f}")
    elif wanted > draft.ceiling:
        draft.refuse(RefusalCode.ABOVE_CEILING, f"{wanted:.0f} wanted, ceiling = {draft.ceiling:.0f}")
    if draft.allocation > draft.ceiling:
        draft.upper = min(draft.upper, draft.ceiling)


def pull_trigger(draft: Draft, outlook: Outlook, i: int, policy: SizingPolicy) -> None:
    r = draft.resource
    k = confidence(policy, int(draft.vm.domain.policy.priority))
    mean, stddev = float(outlook.mean[i, r]), float(outlook.stddev[i, r])
    if draft.target > draft.allocation and fires(mean, stddev, draft.allocation, k):
        draft.lower = draft.target
        draft.note(f"trigger: mean {mean:.0f} > allocation {draft.allocation:.0f} {k:+.3g} x stddev {stddev:.0f}")
    elif draft.allocation < draft.lower:
        draft.note(f"allocation {draft.allocation:.0f} < lower {draft.lower:.0f}: grow")


def weigh_evidence(draft: Draft, window: tuple[float, ...], policy: SizingPolicy, needed: int) -> None:
    """Remember the target; shrink only once `needed` cycles are remembered, and then to the largest target among them."""
    r = draft.resource
    draft.window = (*window, draft.target)[-needed:]
    if draft.allocation <= draft.upper:
        return
    largest = min(max(draft.window), draft.ceiling)
    above = largest * (1.0 + policy.upper_slack[r])
    if draft.allocation > draft.ceiling:
        draft.target = largest
        draft.note(f"above the ceiling: shrink to {largest:.0f}")
    elif len(draft.window) < needed:
        draft.upper = draft.allocation
        draft.note(f"shrink waits: {len(draft.window)} of {needed} cycles of evidence")
    elif draft.allocation <= above:
        draft.upper = draft.allocation
        draft.note(f"shrink waits: a target of {largest:.0f} within the last {needed} cycles")
    else:
        draft.target, draft.upper = largest, above
        draft.note(f"shrink to {largest:.0f}, the largest target of {needed} cycles")


def veto_shrink(draft: Draft, *, cold: bool, policy: SizingPolicy) -> None:
    """Vetoes hold whether or not a shrink is wanted now: the host's capacity step respects them too."""
    vm, r = draft.vm, draft.resource
    censored = float(vm.censored_now[r])
    if censored > policy.censored_threshold:
        code, veto = RefusalCode.PRESSURE_VETO, f"censored: {100 * censored:.0f} % of samples at the limit"
    elif vm.pressured:
        code, veto = RefusalCode.PRESSURE_VETO, "under memory pressure"
    elif vm.since_grow_s < policy.shrink_cooldown_s:
        code, veto = RefusalCode.COOLDOWN, f"grown {vm.since_grow_s:.0f} s ago"
    elif r == MEMORY and math.isnan(vm.working_set_bytes):
        code, veto = RefusalCode.READING_STALE, "no fresh guest reading"
    elif cold:
        code, veto = RefusalCode.READING_STALE, "cold start, too little history"
    elif min(vm.since_start_s - policy.boot_boost_s, vm.since_move_s - policy.move_boost_s) < 0.0:
        code, veto = RefusalCode.COOLDOWN, "just booted or moved"
    elif (grows := only_grows(vm, r)) is not None:
        code, veto = RefusalCode.NOT_CAPABLE, grows
    else:
        return
    draft.may_shrink = False
    if draft.allocation > draft.target:
        draft.upper = max(draft.upper, draft.allocation)
        draft.refuse(code, f"no shrink: {veto}")


def spend_turn(draft: Draft, hour: float, policy: SizingPolicy) -> None:
    """A shrink that would be a turn leaves what an hour behind and an hour ahead (`hour`) need, or waits; a full host may still cut."""
    vm, r = draft.vm, draft.resource
    if draft.allocation > draft.ceiling or not scarce(vm, r, policy):
        return
    draft.hour = hour
    wanted = draft.allocation > draft.upper
    if spent(vm, r, policy):
        draft.may_shrink = False
        if wanted:
            draft.upper = draft.allocation
            draft.refuse(RefusalCode.FLAP_BUDGET, "no shrink: no turn left")
        return
    if not wanted:
        return
    lasting = max(draft.target, round_up(turn_size(vm, r, hour), draft.granule))
    above = lasting * (1.0 + policy.upper_slack[r])
    if policy.turn_waits[r]:
        draft.upper = draft.allocation
        draft.note("shrink waits: a turn, and the host has no need of the room")
    elif draft.allocation <= above:
        draft.upper = draft.allocation
        draft.note(f"shrink waits: {lasting:.0f} within an hour, a turn would not last")
    else:
        draft.target, draft.upper = lasting, above
        draft.note(f"turns: shrink to {lasting:.0f}, enough for an hour behind and ahead")


def limit_shrink(draft: Draft, policy: SizingPolicy) -> None:
    """At most `max_shrink` of the allocation per cycle."""
    least = round_up(draft.allocation * (1.0 - policy.max_shrink[draft.resource]), draft.granule)
    if draft.settled < least < draft.allocation:
        draft.target = least
        draft.upper = max(draft.upper, least)
        draft.note(f"at most {100 * policy.max_shrink[draft.resource]:.0f} % off in one cycle = {least:.0f}")
