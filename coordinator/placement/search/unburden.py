"""The last look of a search at hard capacities: no host may pass one that it kept in the plan before.

A search prices a passed hard capacity and a broken rule alike, so where fleets are nearly full it now and then mends one with the other:
one rule kept more, one host a few percent too full. No checker lets such a plan through, and one host would cost the whole fleet its plan.
Here VMs that came to such a host go elsewhere: back where they stood, or to the host with most room, wherever no rule, cap or capacity is
broken more than in the plan before (a rule that the search mended may be broken again). Rare, so written plainly; bounded by TRIES. What
cannot be mended stays, and the checker decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from coordinator.placement.cost import host_loads
from coordinator.placement.problem import F64, I32, NOWHERE, Problem
from coordinator.placement.verdict import breaks, hard_over

TRIES: Final = 200  # looks at the whole fleet, some 20 ms each at 50,000 VMs
TARGETS: Final = 8  # roomiest hosts tried for a VM, beside the one that it stood on
TINY: Final = 1e-9


def unburden(problem: Problem, place: I32, start: I32) -> I32:
    """`place` with fewer hosts that pass hard capacities more than they do in `start`, where it can be. int32[v]; maybe `place` itself."""
    allowed = hard_over(problem, start) + TINY
    over = hard_over(problem, place)
    crowded = np.flatnonzero(over > allowed)
    found, tries = place, TRIES
    for h in crowded:
        while over[h] > allowed[h] and tries > 0:
            better = None
            for v, target in ways_out(problem, found, start, int(h)):
                tries -= 1
                tried = found.copy()
                tried[v] = target
                now = hard_over(problem, tried)
                fits = now[h] < over[h] - TINY and now[target] <= max(allowed[target], over[target])
                if fits and not breaks(problem, tried, start):
                    better, over = tried, now
                    break
                if tries <= 0:
                    break
            if better is None:
                break
            found = better
    return found


def ways_out(problem: Problem, place: I32, start: I32, h: int) -> Iterator[tuple[int, int]]:
    """(VM, other host) that may relieve host h, most promising first: VMs that came to it, those that take most of what is passed first."""
    load, _ = host_loads(problem, place)
    room: F64 = problem.capacity - load
    passed = problem.hard & (load[h] > problem.capacity[h])
    came = np.flatnonzero((place == h) & (start != h) & ~problem.fixed)
    share = (problem.mean[came][:, passed] / np.maximum(problem.capacity[h, passed], TINY)).sum(axis=1)
    for v in came[np.argsort(-share, kind="stable")]:
        need = problem.mean[v] + problem.z * np.sqrt(problem.variance[v])
        fits = (room >= need)[:, problem.hard].all(axis=1) & ~problem.closed & np.isfinite(problem.kind_cost[problem.kind[v]])
        fits[h] = False
        before = int(start[v])
        if before not in (NOWHERE, h) and fits[before]:
            yield int(v), before
        least = np.where(fits, ((room - need) / np.maximum(problem.capacity, TINY))[:, problem.hard].min(axis=1), -np.inf)
        for target in np.argsort(-least, kind="stable")[:TARGETS]:
            if fits[target] and target != before:
                yield int(v), int(target)
