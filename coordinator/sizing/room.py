"""Which VMs that wait to shrink have to give way: the fewest whose surplus brings a host back to its reserve. Pure.

Shrinks wait because a turn is precious (turns.py). Waiting is free while the host has room and dear when it has none: what waiting VMs hold
is what a ramp elsewhere lacks, and a balloon takes minutes to give it back. So when the host's sum passes its limit less the reserve, waits
end, largest surplus first, until it no longer does; each costs one turn, so few large ones are better than all a little.
Invariant: nobody falls below its target, and who may not shrink keeps what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coordinator.sizing.levers import round_up
from coordinator.sizing.policy import SizingPolicy

if TYPE_CHECKING:
    from coordinator.sizing.size import Draft


def end_waits(drafts: Sequence[Draft], open_room: float, policy: SizingPolicy) -> None:
    """Let drafts of one resource shrink that wait, until all of them settle within `open_room` or nobody waits."""
    over = sum(draft.settled for draft in drafts) - open_room
    waiting = [draft for draft in drafts if draft.may_shrink and draft.target < draft.allocation <= draft.upper]
    for draft in sorted(waiting, key=lambda draft: draft.target - draft.allocation):
        if over <= 0.0:
            return
        granule = policy.granule[draft.resource]
        least = round_up(draft.allocation * (1.0 - policy.max_shrink[draft.resource]), granule)
        goal = max(draft.target, least)
        gain = draft.allocation - goal
        if gain <= policy.upper_slack[draft.resource] * goal:
            continue
        over -= gain
        draft.target = draft.upper = goal
        draft.lower = min(draft.lower, goal)
        draft.note(f"shrink waits no longer: the host needs its room, to {goal:.0f}")
