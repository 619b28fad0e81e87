"""When challengers have a turn, and who is asked about which series: every so many cycles, within a budget of CPU seconds. Pure.

What a series of each challenger costs is learned from the turns (selection.remembered). What fails is said once, not every turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from coordinator.forecast.challengers import MOST_STEPS, Report, Standing, Turn, find, remembered, select
from coordinator.model import F64, N_RESOURCES
from shared.model import Priority
from shared.units import BUCKET_S, HORIZON_STEPS

LATE: Final = 3  # buckets that an answer may take until it is there
STEPS_A_TURN: Final = MOST_STEPS - HORIZON_STEPS - LATE  # the longest time between turns that a forecast reaches over: 57 buckets
TOLD: Final = 1000  # failures remembered


class ChallengeSchedule:
    """Ask `due` once a cycle, take `turn`, give its reports to `heard`."""

    def __init__(self, names: Sequence[str], every_s: int, budget_s: float, seed: int) -> None:
        """`names`: challengers that can run here; none = never. `every_s`: from one turn to the next, in whole buckets.

        Raises ValueError, naming what is allowed, for an unknown name or a time that no forecast reaches over.
        """
        self.names = tuple(find(name).name for name in names)
        self._every = every_s // BUCKET_S
        if not 1 <= self._every <= STEPS_A_TURN:
            raise ValueError(f"every_s {every_s}: allowed {BUCKET_S} to {STEPS_A_TURN * BUCKET_S}")
        self._budget_s = budget_s
        self._seed = seed
        self._costs = dict.fromkeys(self.names, float("nan"))
        self._turns = 0
        self._told: set[tuple[str, str]] = set()

    def due(self, cycle: int) -> bool:
        """Whether a turn comes after this decision cycle (counted from 1): the first half a turn after the start, which trains."""
        return bool(self.names) and cycle % self._every == self._every // 2

    def turn(self, standing: Standing) -> Turn:
        """Who is asked about which series (rows as in `standing`) now; counts as a turn taken. The cheap come first: they finish."""
        chosen = select(standing, self._costs, self._budget_s, turn=self._turns, seed=self._seed)
        self._turns += 1
        order = sorted(self.names, key=lambda name: (np.nan_to_num(self._costs[name], nan=np.inf), name))
        return Turn(
            chosen={name: chosen[name] for name in order if len(chosen[name])},
            steps=min(MOST_STEPS, self._every + HORIZON_STEPS + LATE),
            budget_s=self._budget_s,
            seed=self._seed + self._turns,
        )

    def heard(self, reports: Sequence[Report]) -> list[tuple[str, str]]:
        """What came of a turn: learns the costs; returns (challenger, failure) of those kinds that were not told before."""
        news = []
        for report in reports:
            if report.asked and report.cpu_s > 0.0:
                self._costs[report.name] = remembered(self._costs[report.name], report.asked, report.cpu_s)
            for failure in report.failures:
                kind = (report.name, failure.partition(":")[0])
                if kind not in self._told and len(self._told) < TOLD:
                    self._told.add(kind)
                    news.append((report.name, failure))
        return news


def standing_of(vm_ids: Sequence[str], priorities: Mapping[str, Priority], capacity: Mapping[str, Sequence[float]], loss: F64) -> Standing:
    """How much each series (v * N_RESOURCES + r) matters; loss float64[v, r]: mean pinball loss of late in its unit, NaN = unknown.

    Size is the VM's share of what all VMs could have of the resource, the burden its loss as a share of that.
    """
    unknown = (np.nan,) * N_RESOURCES
    top: F64 = np.array([capacity.get(vm_id, unknown) for vm_id in vm_ids], dtype=np.float64).reshape(-1, N_RESOURCES)
    fleet = np.maximum(np.nansum(top, axis=0), 1e-9)
    priority = np.array([float(priorities[vm_id]) if vm_id in priorities else np.nan for vm_id in vm_ids])
    return Standing(priority=np.repeat(priority, N_RESOURCES), size=(top / fleet).reshape(-1), burden=(loss / fleet).reshape(-1))


def narrowed(turn: Turn, vm_ids: Sequence[str]) -> tuple[tuple[str, ...], Turn]:
    """The VMs that a turn asks about, and the same turn with rows of these alone: a history need hold no others."""
    rows = [row for asked in turn.chosen.values() for row in asked]
    kept = np.unique(np.array(rows, dtype=np.int64) // N_RESOURCES)
    place = np.full(len(vm_ids), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    chosen = {name: place[asked // N_RESOURCES] * N_RESOURCES + asked % N_RESOURCES for name, asked in turn.chosen.items()}
    return tuple(vm_ids[i] for i in kept), Turn(chosen=chosen, steps=turn.steps, budget_s=turn.budget_s, seed=turn.seed)
