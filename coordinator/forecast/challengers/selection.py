"""Which series each challenger gets this turn, within a budget of CPU seconds.

Half of a challenger's places go to the series that matter most: those whose mean rank by priority, size and error burden is highest. The
other half goes round the rest in a seeded random order, so that every series is tried once a round and nobody has to know beforehand where
a challenger shines. The budget is filled like water: challengers in order of cost get equal shares, and what a cheap one cannot use (it
already has every series) goes to the dearer ones. Pure: costs are measured elsewhere and handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64

I64 = NDArray[np.int64]

TOP_SHARE: Final = 0.5
PROBE: Final = 8  # series of a challenger whose cost is not known yet; its share of the budget waits until it is
COST_MEMORY: Final = 0.5  # of the old figure when a turn has been measured


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What makes each series matter, float64[n], NaN = unknown (counts as the middle).

    priority: the policy's; size: the share of the fleet that it holds; burden: what its errors cost of late, in the same unit for all.
    """

    priority: F64
    size: F64
    burden: F64

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("priority", "size", "burden")}
        if len(set(shapes.values())) != 1 or self.size.ndim != 1:
            raise ValueError(f"priority, size, burden of shapes {shapes}: must be one figure for each series")

    def importance(self) -> F64:
        """Mean of the ranks, 0 to 1."""
        ranks: F64 = np.mean([_rank(values) for values in (self.priority, self.size, self.burden)], axis=0)
        return ranks


def select(standing: Standing, costs: Mapping[str, float], budget_s: float, *, turn: int, seed: int = 0) -> dict[str, I64]:
    """Rows int64[m] of each challenger named in `costs`, ascending; empty where it can afford none.

    costs: CPU seconds a series, NaN = not measured yet. Raises ValueError when a cost or the budget is negative, or the turn is.
    """
    if not budget_s >= 0.0:
        raise ValueError(f"budget_s {budget_s}: must not be negative")
    if turn < 0:
        raise ValueError(f"turn {turn}: must not be negative")
    for name, cost in costs.items():
        if cost <= 0.0:
            raise ValueError(f"cost of {name} {cost}: must be above 0, or NaN")
    n = len(standing.size)
    by_importance = np.argsort(-standing.importance(), kind="stable")
    left, found = budget_s, {}
    measured = sorted((cost, name) for name, cost in costs.items() if not np.isnan(cost))
    fresh = sorted(name for name, cost in costs.items() if np.isnan(cost))
    places = len(costs)
    for name in fresh:
        found[name] = _chosen(by_importance, min(n, PROBE) if budget_s > 0.0 else 0, turn, seed)
        left -= budget_s / len(costs)
        places -= 1
    for cost, name in measured:
        count = min(n, int(left / places / cost))
        found[name] = _chosen(by_importance, count, turn, seed)
        left -= count * cost
        places -= 1
    return {name: found[name] for name in costs}


def remembered(cost: float, series: int, cpu_s: float) -> float:
    """The cost a series after a turn of `series` took `cpu_s`; `cost` is what was believed before (NaN = nothing)."""
    if series < 1 or not cpu_s >= 0.0:
        raise ValueError(f"series {series}, cpu_s {cpu_s}: a turn has at least one series and takes no negative time")
    measured = max(cpu_s / series, 1e-6)
    return measured if np.isnan(cost) else COST_MEMORY * cost + (1.0 - COST_MEMORY) * measured


def _rank(values: F64) -> F64:
    """Share of the known values below, ties sharing theirs; unknown = 0.5."""
    out = np.full(len(values), 0.5)
    known = np.isfinite(values)
    if known.any():
        ordered = np.sort(values[known])
        below, up_to = (np.searchsorted(ordered, values[known], side=side) for side in ("left", "right"))
        out[known] = (below + up_to) / (2.0 * len(ordered))
    return out


def _chosen(by_importance: I64, count: int, turn: int, seed: int) -> I64:
    n = len(by_importance)
    tops = min(count, int(np.ceil(count * TOP_SHARE)))
    some = count - tops
    if some < 1:
        return np.sort(by_importance[:tops])
    turns_a_round = -(-(n - tops) // some)
    a_round, place = divmod(turn, turns_a_round)
    order = np.random.default_rng((seed, a_round)).permutation(n)
    rest = order[~np.isin(order, by_importance[:tops])]
    places = np.arange(place * some, place * some + some) % len(rest)
    return np.sort(np.concatenate([by_importance[:tops], rest[places]]))
