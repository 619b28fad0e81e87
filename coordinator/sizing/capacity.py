"""Every VM's wants against what its host may promise: the last step of sizing.

When all fits, nothing changes. When not, the linear program of shortage.py says who goes short, at the least expected SLA penalty; its
dual is the shadow price that receipts name. The pool of critical VMs (`SizingPolicy.critical_pool`, a share of the host's limit, on hosts
that have such VMs) is theirs at once: others may hold of it only what one step of a fast lever takes back.
Worked: limit 10,000 millicores, pool 20 %, others hold 9,000 of which one step takes back up to half: 4,500 are firm, which is no more
than 8,000, so they may keep them; a critical VM that needs 1,500 more gets them from the others within a second. Of memory a step takes
back nothing worth counting, so there others end at 8,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.model import F64, HostState
from coordinator.sizing.ahead import Outlook
from coordinator.sizing.draft import Draft
from coordinator.sizing.levers import FAST, GRAIN, GRAIN_NAME, commit_limits, held_by_others, round_down, round_up
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.room import climb, end_waits
from coordinator.sizing.shortage import Cell, Relief, relieve
from coordinator.sizing.turns import spent
from coordinator.sizing.unlimited import Ahead, needs_no_limit
from coordinator.sizing.weigh import MINUTES_PER_HOUR, Terms, money_weight
from shared.model import Priority
from shared.refusal import RefusalCode

# Of VMs without quantiles: the chance of a demand above the forecast mean, and above the target.
ROUGH: Final = (0.5, 0.05)


def fit_host(host: HostState, drafts: Sequence[Draft], r: int, outlook: Outlook, terms: Terms) -> None:
    """Cut the targets of one resource to what the host may promise; hand out spare room when the policy wants that.

    `drafts`: of every VM of the outlook, in its order.
    """
    policy = terms.policy
    limit = commit_limits(host)[r]
    rows = [i for i, draft in enumerate(drafts) if not math.isnan(draft.target)]
    sized = [drafts[i] for i in rows]
    if not sized or math.isnan(limit):
        return
    if needs_no_limit(host, sized, Ahead(outlook.peaks[rows, r], outlook.levels), limit, policy):
        return
    mine = {d.vm.domain.vm_id for d in sized}
    others = held_by_others(host, mine, r)
    # whoever waits for the host's need has to have ended before a ramp that the forecast sees
    ahead = within_the_hour(sized, outlook.hour[rows, r]) if policy.turn_waits[r] else 0.0
    end_waits(sized, limit * (1.0 - policy.wait_reserve) - others - ahead, policy)
    climb(sized, limit * (1.0 - policy.reserve_share) - others, policy)
    asked = np.array([d.settled for d in sized])
    # what is held already is not taken away for a host that may never fail
    held = sum(min(d.settled, d.allocation) for d in sized)
    room = max(limit * (1.0 - terms.kept_free[r]) - others, min(held, limit - others))
    pool = limit * policy.critical_pool[r] if any(critical(vm.domain.policy.priority) for vm in host.vms) else 0.0
    lent = [vm.domain.vm_id for vm in host.vms if critical(vm.domain.policy.priority)]
    firm_room = limit - pool - held_by_others(host, mine.union(lent), r)
    cell = cell_of(sized, outlook.peaks[rows, r], outlook.levels, terms)
    cell = replace(cell, room=room, firm_room=firm_room if pool > 0.0 else math.inf)
    if asked.sum() <= room and firm_of(cell, asked) <= cell.firm_room:
        if policy.spare_share > 0.0:
            hand_out_spare(sized, (room - asked.sum()) * policy.spare_share, r, policy)
        return
    (relief,) = relieve((cell,))
    for draft, grant, low in zip(sized, relief.grant, cell.least, strict=True):
        cut(draft, max(float(low), round_down(float(grant), draft.granule)), relief, limit, pool)


def within_the_hour(sized: Sequence[Draft], hour: F64) -> float:
    """What the next hour may need beyond where these drafts settle. `hour` [v]; NaN = not known."""
    return float(np.nansum(np.maximum(hour - np.array([draft.settled for draft in sized]), 0.0)))


def critical(priority: int) -> bool:
    """Who the pool is for."""
    return priority >= Priority.CRITICAL


def cell_of(sized: Sequence[Draft], peaks: F64, levels: tuple[float, ...], terms: Terms) -> Cell:
    """The program's view of drafts with these peak quantiles [v, q], without limits to their sum.

    A VM that may not shrink keeps its allocation; others give up `max_shrink` at most.
    """
    policy = terms.policy
    least, floor, most = np.array([bounds_of(draft, policy) for draft in sized]).T
    chance = np.broadcast_to(1.0 - np.asarray(levels), peaks.shape)
    rough = np.logical_not(np.isfinite(peaks).all(axis=1))
    size, exceed = np.where(rough[:, None], 0.0, peaks), chance.copy()
    for i in np.flatnonzero(rough).tolist():
        draft = sized[i]
        mean = min(draft.need, draft.target) if math.isfinite(draft.need) else 0.5 * draft.target
        size[i], exceed[i] = np.linspace(mean, draft.target, size.shape[1]), np.linspace(*ROUGH, size.shape[1])
    weight = np.array([money_weight(draft.vm, terms, wanted) for draft, wanted in zip(sized, size[:, -1], strict=True)])
    shares = np.array([firm_share(draft, policy) for draft in sized])
    return Cell(least=least, floor=floor, most=most, size=size, exceed=exceed, weight=weight, room=math.inf, firm_share=shares)


def bounds_of(draft: Draft, policy: SizingPolicy) -> tuple[float, float, float]:
    """(what cannot be taken, what comes first, what it is left with where there is room) of one draft."""
    settled = draft.settled
    if draft.may_shrink:
        least = round_up(draft.allocation * (1.0 - policy.max_shrink[draft.resource]), draft.granule)
        floor = min(settled, max(draft.floor, least))
    else:
        floor = min(settled, draft.allocation)
    return min(floor, draft.allocation), floor, settled


def firm_share(draft: Draft, policy: SizingPolicy) -> float:
    """Share of a VM's size that one step cannot take back, for the pool's account; NaN = critical, so not in that account."""
    if critical(draft.vm.domain.policy.priority):
        return math.nan
    r = draft.resource
    if r not in FAST or not draft.may_shrink or spent(draft.vm, r, policy):
        return 1.0
    return 1.0 - policy.max_shrink[r]


def firm_of(cell: Cell, size: F64) -> float:
    """How much of these sizes one step could not take back from those who are not critical."""
    assert cell.firm_share is not None
    lent = np.isfinite(cell.firm_share)
    return float(np.maximum(cell.firm_share[lent] * size[lent], np.minimum(cell.floor, size)[lent]).sum())


def cut(draft: Draft, grant: float, relief: Relief, limit: float, pool: float) -> None:
    """One VM's share of a shortage."""
    settled, r = draft.settled, draft.resource
    if grant >= settled:
        return
    price = (relief.price + relief.firm_price) * GRAIN[r] * MINUTES_PER_HOUR
    draft.clipped, draft.price = True, max(draft.price, price)
    whose = f", {pool:.0f} of it the pool of critical VMs" if pool > 0.0 else ""
    draft.refuse(
        RefusalCode.HOST_CAPACITY,
        f"host commit {limit:.0f}{whose} cuts {settled:.0f} to {grant:.0f}; {GRAIN_NAME[r]} more here would save {price:.3g} an hour",
    )
    draft.target = draft.upper = grant
    draft.lower = min(draft.lower, grant)


def hand_out_spare(sized: Sequence[Draft], spare: float, r: int, policy: SizingPolicy) -> None:
    """`spare` on top of the sizes, in proportion to them, up to the ceilings; whole granules."""
    total = sum(draft.settled for draft in sized)
    if spare <= 0.0 or total <= 0.0:
        return
    for draft in sized:
        settled = draft.settled
        grant = max(settled, min(draft.ceiling, round_down(settled + spare * settled / total, draft.granule)))
        if grant > settled:
            draft.note(f"spare room: {settled:.0f} to {grant:.0f}")
            draft.lower = max(draft.lower, grant * (1.0 - min(1.0, policy.dead_band[r])))
            draft.target, draft.upper = grant, max(draft.upper, grant * (1.0 + policy.upper_slack[r]))
