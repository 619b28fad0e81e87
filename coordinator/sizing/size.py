"""What every VM of one host should get: a stack of small steps, each adding a line to the trail.

forecast → peak at the price of capacity, or a fixed quantile of it (target) → margin → floor → ceiling → trigger → evidence → vetoes →
turns → host capacity.
lower, target and upper travel together and are the hysteresis: up fast (any allocation under `lower` is acted on at once), down slow (only
after `shrink_evidence` cycles in a row whose targets all lay below, and then to the largest of them).
Invariants: no shrink of a censored, pressured, just-grown or (memory) unread VM; floors hold; sums stay within the host's commit limits
unless floors and things we may not touch already pass them. Pure; the evidence comes in and goes out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

import numpy as np

from coordinator.model import F64, N_RESOURCES, ForecastBlock, HostState, NoForecast, VmSize, VmState
from coordinator.sizing.levers import (
    KIND,
    NAN,
    SHORT,
    SIZED,
    ceilings,
    commit_limits,
    floors,
    in_force,
    incapable,
    lead_time_s,
    promised,
    round_up,
)
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.price import buy, curves_of
from coordinator.sizing.room import climb, end_waits
from coordinator.sizing.share import Claim, share_capacity, spare_grants
from coordinator.sizing.target import UNUSABLE, interpolate, last_step, raised
from coordinator.sizing.trigger import bucket_that_matters, confidence, fires
from coordinator.sizing.turns import scarce, spent, turn_size
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MEMORY, RESOURCES

# The reserve is kept in full, by half or not at all: what it costs those who have forecasts must stay below so many times the price.
RESERVE_GIVEN: Final = (1.0, 0.5, 0.0)
RESERVE_WORTH: Final = 10.0
NO_WINDOWS: Final[tuple[tuple[float, ...], ...]] = ((),) * N_RESOURCES


@dataclass(frozen=True, kw_only=True)
class VmEvidence:
    """What sizing remembers of one VM between cycles: the last targets per resource [r], oldest first; cleared by a cycle without one."""

    windows: tuple[tuple[float, ...], ...] = NO_WINDOWS


Evidence = dict[str, VmEvidence]  # by vm_id


@dataclass(slots=True)
class Draft:
    """One (VM, resource) on its way through the stack. Mutable, never leaves this module."""

    vm: VmState
    resource: int
    allocation: float
    floor: float
    ceiling: float
    need: float = NAN
    lower: float = NAN
    target: float = NAN
    upper: float = NAN
    may_shrink: bool = True
    window: tuple[float, ...] = ()
    clipped: bool = False
    price: float = 0.0
    hour: float = NAN  # what the next hour may need, where a shrink would be a turn
    trail: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.trail.append(f"{SHORT[self.resource]} {text}")

    def refuse(self, code: RefusalCode, text: str) -> None:
        """An alternative that was not taken: receipts list these lines as refused."""
        self.trail.append(f"{code}: {SHORT[self.resource]} {text}")

    @property
    def settled(self) -> float:
        """Where the resource ends if nothing cuts it: the target when it is acted on, else what is in force."""
        return self.allocation if self.lower <= self.allocation <= self.upper else self.target


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The figures of the forecast that matter for one host. Arrays [v, r] in the order of the host's VMs; NaN where there is none."""

    mean: F64
    stddev: F64
    lower: F64
    size: F64
    quantile: F64  # level of `size`
    steps: tuple[int, ...]  # [r] how many steps the peak covers
    reason: F64  # NoForecast, as float so that a missing VM is NaN
    peaks: F64  # [v, r, q] all quantiles of the same peaks
    levels: tuple[float, ...]  # [q]
    hour: F64  # what a turning shrink must leave for the next hour
    price: tuple[float, ...] = (NAN,) * N_RESOURCES  # [r] at which the sizes fit the host; NaN = fixed quantiles, inf = at none


@lru_cache(maxsize=4)  # all hosts of a cycle are sized from one block
def rows_of(vm_ids: tuple[str, ...]) -> Mapping[str, int]:
    """vm_id -> row of a forecast block."""
    return {vm_id: i for i, vm_id in enumerate(vm_ids)}


def size_host(
    host: HostState,
    forecast: ForecastBlock,
    policy: SizingPolicy,
    evidence: Mapping[str, VmEvidence],
    *,
    measured_lead_s: Mapping[StepKind, float] | None = None,
    burn_rate: Mapping[str, float] | None = None,
) -> tuple[tuple[VmSize, ...], Evidence]:
    """Sizes of all VMs of a live host (none of a silent one, none of excluded or stopped VMs) and the evidence to pass in next cycle.

    `burn_rate`: vm_id -> speed at which its error budget is used (1 = just enough for the period).
    """
    if not host.alive:
        return (), {vm.domain.vm_id: evidence[vm.domain.vm_id] for vm in host.vms if vm.domain.vm_id in evidence}
    vms = [vm for vm in host.vms if vm.domain.running and not vm.domain.policy.excluded]
    outlook = look_ahead(vms, forecast, policy, measured_lead_s, burn_rate or {})
    outlook = at_price(host, vms, outlook, policy, burn_rate or {})
    drafts = [draft_vm(vm, i, outlook, policy, evidence.get(vm.domain.vm_id, VmEvidence())) for i, vm in enumerate(vms)]
    for r in SIZED:
        fit_host(host, [per_vm[r] for per_vm in drafts], r, policy)
    sizes = tuple(finished(vm, host.host_id, per_vm) for vm, per_vm in zip(vms, drafts, strict=True))
    kept = {vm.domain.vm_id: VmEvidence(windows=tuple(d.window for d in per_vm)) for vm, per_vm in zip(vms, drafts, strict=True)}
    return sizes, kept


def look_ahead(
    vms: list[VmState],
    forecast: ForecastBlock,
    policy: SizingPolicy,
    measured: Mapping[StepKind, float] | None,
    burn_rate: Mapping[str, float],
) -> Outlook:
    """Read the block once for all VMs of the host: mean and stddev at the trigger's bucket, peak quantiles at the horizon's end."""
    rows = rows_of(forecast.vm_ids)
    found = np.array([rows.get(vm.domain.vm_id, -1) for vm in vms], np.int64)
    missing = found < 0
    shape = (len(vms), N_RESOURCES)
    if missing.all():
        blank = np.full(shape, np.nan)
        none = np.full((*shape, len(forecast.levels)), np.nan)
        return Outlook(
            mean=blank,
            stddev=blank,
            lower=blank,
            size=blank,
            quantile=blank,
            reason=blank,
            peaks=none,
            steps=(0,) * N_RESOURCES,
            levels=forecast.levels,
            hour=blank,
        )
    leads = [lead_time_s(KIND[r], policy, measured) if r in KIND else 0.0 for r in range(N_RESOURCES)]
    axis = np.arange(N_RESOURCES)
    near = np.array([bucket_that_matters(lead) for lead in leads])
    far = np.array([last_step(policy, r, leads[r]) for r in range(N_RESOURCES)])
    top = forecast.levels[-1]
    size_level = np.empty(shape)
    lower_level = np.empty(shape)
    for i, vm in enumerate(vms):
        p, burn = int(vm.domain.policy.priority), burn_rate.get(vm.domain.vm_id, NAN)
        for r in range(N_RESOURCES):
            size_level[i, r] = raised(min(top, policy.size_quantile[p] + policy.quantile_offset[r]), burn, policy, top)
            lower_level[i, r] = min(size_level[i, r], raised(policy.lower_quantile[p] + policy.quantile_offset[r], burn, policy, top))
    index = found[:, None]
    peaks = forecast.peak_quantiles[index, axis, far].astype(np.float64)
    size, lower = interpolate(peaks, forecast.levels, size_level), interpolate(peaks, forecast.levels, lower_level)
    mean = forecast.mean[index, axis, near].astype(np.float64)
    stddev = forecast.stddev[index, axis, near].astype(np.float64)
    reason = forecast.reason[index, axis].astype(np.float64)
    farthest = forecast.peak_quantiles[index, axis, -1].astype(np.float64)
    hour = interpolate(farthest, forecast.levels, np.full(shape, policy.turn_quantile))
    for array in (mean, stddev, lower, size, reason, peaks, hour):
        array[missing] = np.nan
    steps = tuple(int(step) + 1 for step in far)
    return Outlook(
        mean=mean,
        stddev=stddev,
        lower=lower,
        size=size,
        quantile=size_level,
        reason=reason,
        peaks=peaks,
        steps=steps,
        levels=forecast.levels,
        hour=hour,
    )


def at_price(host: HostState, vms: list[VmState], outlook: Outlook, policy: SizingPolicy, burn_rate: Mapping[str, float]) -> Outlook:
    """The outlook with its sizes bought at the price of capacity, for every resource that has one: all VMs of the host at once."""
    size, lower, quantile = outlook.size.copy(), outlook.lower.copy(), outlook.quantile.copy()
    price = list(outlook.price)
    low, high = np.array([floor_to_buy(vm, policy) for vm in vms]), np.array([ceilings(vm) for vm in vms])
    weight = np.array([weight_of(vm, policy, burn_rate) for vm in vms])
    for r in SIZED:
        limit = commit_limits(host)[r]
        whole = [bool(np.isfinite(curve).all()) for curve in outlook.peaks[:, r]]  # a curve with a hole keeps its fixed quantile
        priced = policy.price[r] > 0.0 and limit > 0.0
        rows = [i for i, vm in enumerate(vms) if priced and whole[i] and left_alone(vm, outlook, i, r) is None]
        if not rows:
            continue
        mine = {vms[i].domain.vm_id for i in rows}
        held = held_by_others(host, mine, r)
        curves = curves_of(outlook.peaks[rows, r], outlook.levels)
        for share in RESERVE_GIVEN:
            room = limit * (1.0 - policy.reserve_share * share) - held
            bought = buy(
                curves, weight=weight[rows], floor=low[rows, r], top=high[rows, r], price=policy.price[r], capacity=limit, room=room
            )
            if bought.price <= policy.price[r] * RESERVE_WORTH:
                break
        size[rows, r] = lower[rows, r] = bought.size
        quantile[rows, r] = 1.0 - bought.exceed
        price[r] = bought.price
    return replace(outlook, size=size, lower=lower, quantile=quantile, price=tuple(price))


def floor_to_buy(vm: VmState, policy: SizingPolicy) -> tuple[float, ...]:
    """The least each resource may get, [r]; a lever without a turn keeps what it holds, so that the others share the room that is there."""
    levels = zip(floors(vm, policy), ceilings(vm), in_force(vm), strict=True)
    return tuple(min(max(low, now), top) if spent(vm, r, policy) and now > low else low for r, (low, top, now) in enumerate(levels))


def weight_of(vm: VmState, policy: SizingPolicy, burn_rate: Mapping[str, float]) -> float:
    """How much this VM's shortage counts: its priority, and how fast it uses up its error budget (unknown changes nothing)."""
    burn = burn_rate.get(vm.domain.vm_id, NAN)
    return policy.priority_weight[int(vm.domain.policy.priority)] * (min(burn, policy.burn_full) if burn > 1.0 else 1.0)


def draft_vm(vm: VmState, i: int, outlook: Outlook, policy: SizingPolicy, evidence: VmEvidence) -> list[Draft]:
    """The stack up to the host's capacity, for every resource of one VM."""
    now, low, high, cannot = in_force(vm), floors(vm, policy), ceilings(vm), incapable(vm)
    drafts = [Draft(vm, r, now[r], low[r], high[r], need=float(outlook.mean[i, r])) for r in range(N_RESOURCES)]
    for r in SIZED:
        draft = drafts[r]
        if cannot[r] is not None:
            draft.refuse(RefusalCode.NOT_CAPABLE, f"left alone: {cannot[r]}")
            continue
        why_not = left_alone(vm, outlook, i, r)
        if outlook.reason[i, r] == NoForecast.OUT_OF_CALIBRATION and math.isfinite(vm.peak_now[r]) and math.isfinite(now[r]):
            follow_recent(draft, evidence.windows[r], policy)
            continue
        if why_not is not None:
            draft.note(f"left alone: {why_not}")
            continue
        take_quantile(draft, outlook, i, policy)
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
    return incapable(vm)[r] or no_forecast(outlook, i, r) or ("limit in force unknown" if math.isnan(in_force(vm)[r]) else None)


def follow_recent(draft: Draft, window: tuple[float, ...], policy: SizingPolicy) -> None:
    """Out of calibration, the host's reactive rule grows the VM; as it may not shrink in this mode, the plan shrinks by that rule's own
    measure: the largest peak of the newest buckets and a margin. Otherwise such a VM would keep its largest burst for good.
    """
    r = draft.resource
    draft.target = draft.upper = draft.vm.peak_now[r] * (1.0 + policy.recent_margin)
    draft.lower = 0.0
    draft.note(f"forecast out_of_calibration: reactive, peak {draft.vm.peak_now[r]:.0f} and {100 * policy.recent_margin:.0f} %")
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
    """Target and lower end from the forecast. A price above the policy's says that the host is short."""
    r = draft.resource
    draft.target = draft.upper = float(outlook.size[i, r])
    draft.lower = min(float(outlook.lower[i, r]), draft.target)
    price, wanted = outlook.price[r], policy.price[r]
    at = "" if math.isnan(price) else f" at price {price:.3g}"
    draft.note(f"quantile {outlook.quantile[i, r]:.3g} of peak in {outlook.steps[r]} steps = {draft.target:.0f}{at}")
    if price > wanted:
        draft.clipped, draft.price = True, 1.0 - wanted / price
        draft.refuse(RefusalCode.HOST_CAPACITY, f"price {wanted:.3g} asks for more than the host has")


def add_margin(draft: Draft, policy: SizingPolicy) -> None:
    """Margin on all three; `lower` gives way by the dead band, `upper` by the slack."""
    r = draft.resource
    factor = 1.0 + policy.margin[r]
    draft.target *= factor
    draft.lower = min(draft.lower * factor, draft.target * (1.0 - min(1.0, policy.dead_band[r])))
    draft.upper = draft.target * (1.0 + policy.upper_slack[r])
    if policy.margin[r]:
        draft.note(f"margin {100 * policy.margin[r]:.0f} % = {draft.target:.0f}")


def clip(draft: Draft, policy: SizingPolicy) -> None:
    """Whole granules within [floor, ceiling]. A floor in force makes everything under it a reason to act."""
    wanted = draft.target
    draft.target = min(max(round_up(draft.target, policy.granule[draft.resource]), draft.floor), draft.ceiling)
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
    lasting = max(draft.target, round_up(turn_size(vm, r, hour), policy.granule[r]))
    above = lasting * (1.0 + policy.upper_slack[r])
    if draft.allocation <= above:
        draft.upper = draft.allocation
        draft.note(f"shrink waits: {lasting:.0f} within an hour, a turn would not last")
    else:
        draft.target, draft.upper = lasting, above
        draft.note(f"turns: shrink to {lasting:.0f}, enough for an hour behind and ahead")


def limit_shrink(draft: Draft, policy: SizingPolicy) -> None:
    """At most `max_shrink` of the allocation per cycle."""
    least = round_up(draft.allocation * (1.0 - policy.max_shrink[draft.resource]), policy.granule[draft.resource])
    if draft.settled < least < draft.allocation:
        draft.target = least
        draft.upper = max(draft.upper, least)
        draft.note(f"at most {100 * policy.max_shrink[draft.resource]:.0f} % off in one cycle = {least:.0f}")


def fit_host(host: HostState, drafts: list[Draft], r: int, policy: SizingPolicy) -> None:
    """Cut the targets of one resource to what the host may promise; hand out spare room when the policy wants that."""
    limit = commit_limits(host)[r]
    sized = [d for d in drafts if not math.isnan(d.target)]
    open_room = limit - held_by_others(host, {d.vm.domain.vm_id for d in sized}, r)
    end_waits(sized, open_room - policy.wait_reserve * limit, policy)
    climb(sized, open_room - policy.reserve_share * limit, policy)
    asked = sum(d.settled for d in sized)
    claims = [claim_of(d, policy) for d in sized]
    grants = share_capacity(claims, open_room, strict_from=policy.strict_from, granule=policy.granule[r])
    if policy.spare_share > 0.0 and asked < open_room:
        grants = spare_grants(grants, [d.ceiling for d in sized], (open_room - asked) * policy.spare_share, policy.granule[r])
    for draft, grant in zip(sized, grants, strict=True):
        if grant > draft.settled:
            draft.note(f"spare room: {draft.settled:.0f} to {grant:.0f}")
            draft.lower = max(draft.lower, grant * (1.0 - min(1.0, policy.dead_band[r])))
            draft.target, draft.upper = grant, max(draft.upper, grant * (1.0 + policy.upper_slack[r]))
        elif grant < draft.settled:
            draft.clipped, draft.price = True, max(draft.price, 1.0 - open_room / asked)
            draft.refuse(RefusalCode.HOST_CAPACITY, f"host commit {limit:.0f} cuts {draft.settled:.0f} to {grant:.0f}")
            draft.target = draft.upper = grant
            draft.lower = min(draft.lower, grant)


def claim_of(draft: Draft, policy: SizingPolicy) -> Claim:
    """What this draft asks of the host. A VM that may not shrink keeps its allocation as floor; others give up `max_shrink` at most."""
    settled = draft.settled
    target = min(draft.target, settled)
    if draft.may_shrink:
        least = round_up(draft.allocation * (1.0 - policy.max_shrink[draft.resource]), policy.granule[draft.resource])
        floor = min(settled, max(draft.floor, least))
    else:
        floor = min(settled, draft.allocation)
    need = draft.need if draft.need > floor else floor  # NaN compares false
    base = min(floor, draft.allocation)
    return Claim(priority=int(draft.vm.domain.policy.priority), base=base, floor=floor, need=need, target=target, hold=settled)


def held_by_others(host: HostState, taken: Collection[str], r: int) -> float:
    """What VMs hold that are not sized here."""
    return sum(promised(vm, r) for vm in host.vms if vm.domain.running and vm.domain.vm_id not in taken)


def finished(vm: VmState, host_id: str, drafts: Iterable[Draft]) -> VmSize:
    """Freeze one VM's drafts."""
    listed = list(drafts)
    return VmSize(
        vm_id=vm.domain.vm_id,
        host_id=host_id,
        target=np.array([d.target for d in listed]),
        lower=np.array([d.lower for d in listed]),
        upper=np.array([d.upper for d in listed]),
        trail=tuple(line for d in listed for line in d.trail),
        clipped=tuple(RESOURCES[d.resource] for d in listed if d.clipped),
        shadow_price={RESOURCES[d.resource]: d.price for d in listed if d.clipped},
    )
