"""Room on a host: who has to make it, and who is lent what is left. Pure.

Shrinks wait because a turn is precious (turns.py). Waiting is free while the host has room and dear when it has none: what waiting VMs hold
is what a ramp elsewhere lacks, and a balloon takes minutes to give it back. So when the host's sum passes its limit less the reserve, waits
end, largest surplus first, until it no longer does; each costs one turn, so few large ones are better than all a little. What is left
holds for the next hour (its 0.75 quantile): only the look back is given up.
A VM that runs into its limit shows the limit, not what it needs: its forecast climbs no faster than its limit does. Where the host has room
beyond its reserve, such a VM gets a multiple of what it holds, so that a demand of eighty times the limit is reached in three cycles and
not in ten (measured: a VM that woke up from 30 to 8000 millicores).
Invariant: nobody falls below its target, who may not shrink keeps what it has, and what is lent comes from free room alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.sizing.draft import Draft
from coordinator.sizing.levers import round_down, round_up
from coordinator.sizing.policy import SizingPolicy


def end_waits(drafts: Sequence[Draft], open_room: float, policy: SizingPolicy) -> None:
    """Let drafts of one resource shrink that wait, until all of them settle within `open_room` or nobody waits."""
    over = sum(draft.settled for draft in drafts) - open_room
    waiting = [(_goal(draft, policy), draft) for draft in drafts if draft.may_shrink and draft.target < draft.allocation <= draft.upper]
    for goal, draft in sorted(waiting, key=lambda each: each[0] - each[1].allocation):
        if over <= 0.0:
            return
        gain = draft.allocation - goal
        if gain <= policy.upper_slack[draft.resource] * goal:
            continue
        over -= gain
        draft.target = draft.upper = goal
        draft.lower = min(draft.lower, goal)
        draft.note(f"shrink waits no longer: the host needs its room, to {goal:.0f}")


def _goal(draft: Draft, policy: SizingPolicy) -> float:
    """What a wait that ends leaves: the target, and what the next hour may need, so that the turn is not lost at once."""
    granule = draft.granule
    least = round_up(draft.allocation * (1.0 - policy.max_shrink[draft.resource]), granule)
    ahead = round_up(draft.hour, granule)
    return min(draft.allocation, max(draft.target, least, ahead if ahead > 0.0 else 0.0))  # NaN compares false


def climb(drafts: Sequence[Draft], open_room: float, policy: SizingPolicy) -> None:
    """Lend free room to drafts of one resource whose demand hides behind their limit: the important first, then the small."""
    spare = open_room - sum(draft.settled for draft in drafts)
    hidden = [draft for draft in drafts if draft.vm.censored_now[draft.resource] >= policy.climb_from]  # NaN compares false
    for draft in sorted(hidden, key=lambda draft: (-int(draft.vm.domain.policy.priority), draft.allocation)):
        settled = draft.settled
        wanted = min(draft.allocation * policy.climb, draft.ceiling, settled + max(0.0, spare))
        goal = round_down(wanted, draft.granule)
        if goal <= max(settled, draft.allocation):
            continue
        spare -= goal - settled
        draft.target = draft.upper = goal
        draft.lower = goal * (1.0 - min(1.0, policy.dead_band[draft.resource]))
        draft.note(f"demand hides behind the limit: climb to {goal:.0f}")
