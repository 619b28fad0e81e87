"""Consolidation tick by tick: few moves, cheap ones, at quiet moments. Repair often, empty hosts only when it pays.

Where the engines of placement look for the best place of everybody, this looks at what little must or should move now, and so runs at every
tick on the incumbent. Two halves. *Repair*: a host whose `sum(mean) + repair * z * root(sum(variance))` passes a capacity gives up VMs
until `relief * z` fits again, those first whose move is cheap for what it relieves; a closed host gives up all, and any host those that
their kind forbids there. *Empty*: a host is emptied whole or not at all, and only when the money saved until it is likely to be needed
again (`payback_hours`) is more than its moves cost. A move costs what it costs now (memory, present load), so a host whose VMs are busy is
left for a quieter tick. Targets are filled to z: between filling and repairing lies a margin in which nothing happens. That, a rest after
each move, and never going straight back, is the hysteresis. Dear capacity is emptied first and woken last, by the money of a unit of a full
host's CPU: a large new host beats two small old ones.

Sources: repair often and consolidate seldom, as measured on CloudSim's PlanetLab experiment (bench/planetlab.py); the margin on the host's
sum instead of each VM as "GPA" has it (SoCC 2017). Invariants: what fits with `relief` of the margin is not made not to fit; no rule is
broken further; fixed VMs stay; VMs that run nowhere are not this planner's to place; the same problem gives the same moves. Hot parts:
kernels.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from coordinator.placement.consolidate import kernels
from coordinator.placement.problem import I32, NOWHERE, Bool, Problem
from shared.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ConsolidationPolicy:
    """How eager. Hours are those of a full host's mean cost, so that no default depends on the currency.

    Raises ConfigError naming the field when a value is out of its range. Worked: hosts of .15 an hour when full; taking in VMs is then
    worth .03 a host and tick, and emptying one that idles at .09 is worth up to 5 x .09 - .03 = .42 of moves.
    """

    repair: float = 0.65  # share of the problem's z at which a host is repaired; below 1, or filling a host would call for its repair
    relief: float = 0.8  # share of z that fits after a repair; where no host has room for a mended VM at z, this much of z will do
    payback_hours: float = 5.0  # for how long an emptied host is expected to stay so
    receiver_hours: float = 0.2  # what a host's taking in VMs in one tick costs, however many: so they go to few hosts
    tightness_hours: float = 0.65  # by which a host with no room left is the better target than an empty one

    def __post_init__(self) -> None:
        for each in fields(self):
            value, top = getattr(self, each.name), 1.0 if each.name in ("repair", "relief") else float("inf")
            if not 0.0 <= value <= top or value == float("inf"):
                raise ConfigError(f"consolidation.{each.name} = {value}: allowed 0 to {top:g}")
        if self.relief < self.repair:
            raise ConfigError(f"consolidation.relief = {self.relief}: allowed repair ({self.repair}) to 1")


@dataclass(frozen=True, kw_only=True)
class Consolidation:
    """What should move now. `place` is where everybody is then; a VM that nothing has room for stays."""

    place: I32  # [v]
    repaired: I32  # VMs moved because their host is, or is about to be, short of something, or is closed, or not for them
    emptied: I32  # VMs moved to free their host
    freed: I32  # hosts emptied
    woken: I32  # hosts that had no VM and get one
    stuck: I32  # hosts that no repair could help

    @property
    def moves(self) -> I32:
        """All VMs that move, repairs first."""
        return np.concatenate([self.repaired, self.emptied])


@dataclass(frozen=True, kw_only=True)
class RecentMoves:
    """Who moved not long ago, and from where: so that one tick's plan is not taken back by the next. A value; `after` makes the next."""

    moves: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # VM id -> (when, in s; the host that it left)

    def after(self, problem: Problem, place: I32, now_s: int, rest_s: int) -> RecentMoves:
        """With the moves of a plan that was carried out at `now_s`, without those older than `rest_s`."""
        kept = {vm: told for vm, told in self.moves.items() if now_s - told[0] < rest_s}
        moved = np.flatnonzero((place != problem.home) & (problem.home != NOWHERE))
        return RecentMoves(moves=kept | {problem.vm_ids[v]: (now_s, problem.host_ids[problem.home[v]]) for v in moved})

    def of(self, problem: Problem, now_s: int, rest_s: int) -> tuple[Bool, I32]:
        """(resting [v], left [v]) as `consolidate` takes them; a host that is not in the problem any more is nobody's to go back to."""
        resting, left = np.zeros(len(problem.vm_ids), np.bool_), np.full(len(problem.vm_ids), NOWHERE, np.int32)
        if not self.moves:
            return resting, left
        host = {name: h for h, name in enumerate(problem.host_ids)}
        for v, name in enumerate(problem.vm_ids):
            told = self.moves.get(name)
            if told is not None and now_s - told[0] < rest_s:
                resting[v], left[v] = True, host.get(told[1], NOWHERE)
        return resting, left


def consolidate(
    problem: Problem,
    policy: ConsolidationPolicy | None = None,
    *,
    empty: bool = True,
    resting: Bool | None = None,
    left: I32 | None = None,
) -> Consolidation:
    """Moves of this tick from the incumbent. `empty` False: repairs only.

    `resting` [v]: moved not long ago, so not moved again just to save (a repair may). `left` [v]: the host that a VM left not long ago,
    where it is not sent back to; NOWHERE = none.
    """
    policy = policy or ConsolidationPolicy()
    v = len(problem.vm_ids)
    state = kernels.make_state(problem, np.full(v, NOWHERE, np.int32) if left is None else left.astype(np.int32))
    asleep = state.residents == 0
    hour = float(state.dear.mean()) if len(state.dear) else 0.0
    prices = kernels.Prices(
        hours=policy.payback_hours, receiver=policy.receiver_hours * hour, tightness=max(policy.tightness_hours * hour, 1e-9)
    )
    moved, stuck = kernels.repair(state, policy.repair, policy.relief, prices)
    emptied, freed = np.zeros(0, np.int32), np.zeros(0, np.int32)
    if empty:
        rest = np.zeros(v, np.bool_) if resting is None else resting.astype(np.bool_)
        rest |= state.place != problem.home
        emptied, freed = kernels.empty(state, rest, prices)
    return Consolidation(
        place=state.place,
        repaired=moved,
        emptied=emptied,
        freed=freed,
        woken=np.flatnonzero(asleep & (state.residents > 0)).astype(np.int32),
        stuck=stuck,
    )
