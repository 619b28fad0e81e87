"""A placement problem as arrays: which VM runs where over the next hour. What every engine, bound and bench works on.

Axes: v = VM, h = host, c = cell, k = kind of VM, r = rule, p = point of a power curve. A cell is one thing that a host can run out of at
one time: CPU in bucket 3, memory through the whole hour, a promise. What does not change over the hour is one cell, not twelve.

A host's load in a cell is `sum(mean) + z * root(sum(variance) + what groups add)`: variances add as if independent, and the VMs of one
group (a client or application whose VMs peak together) add `rho * ((sum of their stddevs)^2 - sum of their variances)`.

Nothing here is infeasible by construction: what is already broken (a full host, a rule not kept, a VM on a closed host) costs and may be
left so, but no engine may break more of it than the incumbent does. So the incumbent is always a plan, and so is a search cut short.
Costs are money, see coordinator/placement/cost.py, which is also the reference that every engine's own sums are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Bool = NDArray[np.bool_]

NOWHERE: Final = -1  # home or place of a VM that runs on no host
CURVE_POINTS: Final = 11  # power at 0, 10, .. 100 % of a host's CPU, linear in between, as SPECpower tables give it
SLACK: Final = 1e-6  # share of a capacity that float sums may pass it by


class RuleKind(IntEnum):
    """What a rule asks of its VMs. `limit` and fault domains as Rules says."""

    APART = 0  # at most `limit` of them in any one fault domain: anti-affinity (limit 1) and spread
    TOGETHER = 1  # all in one fault domain: affinity; broken by every VM outside the fullest one
    LICENSED = 2  # in at most `limit` fault domains: licences are paid per host or cluster


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules over sets of VMs; members of rule r are `members[start[r]:start[r + 1]]`, VM indices, ascending."""

    kind: I32 = field(default_factory=lambda: np.zeros(0, np.int32))  # [r] RuleKind
    limit: I32 = field(default_factory=lambda: np.zeros(0, np.int32))  # [r] 1 or more; unused by TOGETHER
    level: I32 = field(default_factory=lambda: np.zeros(0, np.int32))  # [r] row of Problem.domain: 0 = host, 1 = rack, ...
    start: I32 = field(default_factory=lambda: np.zeros(1, np.int32))  # [r + 1]
    members: I32 = field(default_factory=lambda: np.zeros(0, np.int32))
    names: tuple[str, ...] = ()  # [r] for people
    outside: I32 = field(default_factory=lambda: np.zeros((0, 0), np.int32))  # [r, domain] members there that this problem lacks

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One fleet, or one shard of it. Raises ConfigError naming the field, the place and the value when an array is wrong."""

    vm_ids: tuple[str, ...]
    host_ids: tuple[str, ...]
    home: I32  # [v] host now, NOWHERE = none yet
    fixed: Bool  # [v] stays at home whatever it costs; `why_fixed` says why
    why_fixed: tuple[str, ...]  # [v] "" where it may move
    kind: I32  # [v]
    mean: F64  # [v, c]
    variance: F64  # [v, c]
    weight: F64  # [v] money a minute that this VM's client loses when the VM gets nothing at all
    move_cost: F64  # [v] money
    unplaced_cost: F64  # [v] money of leaving a VM nowhere, or on a closed host
    group: I32  # [v] VMs that peak together, -1 = by itself
    rho: F64  # [group] correlation within each group, 0..1
    capacity: F64  # [h, c]
    hard: Bool  # [c] may not be passed (promises, memory); the others may, at the price of `weight`
    z: F64  # [c] stddevs of the host's sum that are kept free
    minutes: F64  # [c] time that the cell stands for
    cpu: Bool  # [c] cells that the power curve looks at
    curve: F64  # [h, p] money of this host over the hour at 0, 10, .. 100 % mean CPU while it has VMs: energy and price
    empty_cost: F64  # [h] money of it while it has none: asleep, or idling where it may not sleep
    wake_cost: F64  # [h] money of waking it, once; 0 = awake
    closed: Bool  # [h] no VM may come or be left here: maintenance, draining
    kind_cost: F64  # [k, h] money of a VM of this kind on this host (preference, risk of interruption); inf = not allowed
    domain: I32  # [level, h] fault domain of each host; level 0 is the host itself
    rules: Rules = field(default_factory=Rules)
    arrivals_max: I32 | None = None  # [h] moves to each host; None = no limit
    departures_max: I32 | None = None  # [h]
    moves_max: int | None = None
    step: I32 | None = None  # [c] 5-minute bucket ahead of a soft cell, -1 = the whole hour; None = the CPU cells in their order
    broken_price: float = 1000.0  # money of one broken rule, or of passing one hard capacity by its whole size

    def __post_init__(self) -> None:
        v, h, c = len(self.vm_ids), len(self.host_ids), len(self.hard)
        shapes = {
            "home": (v,), "fixed": (v,), "kind": (v,), "mean": (v, c), "variance": (v, c), "weight": (v,), "move_cost": (v,),
            "unplaced_cost": (v,), "group": (v,), "capacity": (h, c), "z": (c,), "minutes": (c,), "cpu": (c,), "curve": (h, CURVE_POINTS),
            "empty_cost": (h,), "wake_cost": (h,), "closed": (h,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ConfigError(f"placement.{name} has shape {getattr(self, name).shape}: allowed {shape}")
        if self.step is not None and self.step.shape != (c,):
            raise ConfigError(f"placement.step has shape {self.step.shape}: allowed {(c,)}")
        if len(self.why_fixed) != v:
            raise ConfigError(f"placement.why_fixed has {len(self.why_fixed)} entries: allowed {v}, one a VM")
        if self.kind_cost.ndim != 2 or self.kind_cost.shape[1] != h or self.domain.ndim != 2 or self.domain.shape[1] != h:
            raise ConfigError(f"placement.kind_cost {self.kind_cost.shape} and domain {self.domain.shape}: allowed (any, {h} hosts)")
        for name in ("mean", "variance", "weight", "move_cost", "unplaced_cost", "capacity", "z", "minutes", "rho"):
            check_range(name, getattr(self, name), 0.0, np.inf)
        for name in ("curve", "empty_cost", "wake_cost"):
            check_range(name, getattr(self, name), -np.inf, np.inf)
        check_range("home", self.home, NOWHERE, h - 1)
        check_range("kind", self.kind, 0, len(self.kind_cost) - 1)
        check_range("group", self.group, -1, len(self.rho) - 1)
        check_range("rho", self.rho, 0.0, 1.0)
        check_range("rules.members", self.rules.members, 0, v - 1)
        check_range("rules.level", self.rules.level, 0, len(self.domain) - 1)
        check_range("rules.limit", self.rules.limit, 1, np.inf)

    @property
    def movable(self) -> I32:
        """Indices of the VMs that may move."""
        return np.flatnonzero(~self.fixed).astype(np.int32)


def allowed_hosts(problem: Problem) -> Bool:
    """[v, h] where each VM may stand in a plan: open hosts that its kind may use, and home; fixed VMs at home only."""
    found: Bool = np.isfinite(problem.kind_cost)[problem.kind] & ~problem.closed
    found[problem.fixed] = False
    placed = np.flatnonzero(problem.home != NOWHERE)
    found[placed, problem.home[placed]] = True
    return found


def check_range(name: str, values: F64 | I32, low: float, high: float) -> None:
    """Raise ConfigError at the first value that is not a number in [low, high]; infinite values are never numbers here."""
    bad = np.argwhere(~(np.isfinite(values) & (values >= low) & (values <= high)))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise ConfigError(f"placement.{name}[{', '.join(map(str, at))}] = {values[at]}: allowed numbers from {low:g} to {high:g}")


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What an engine found. `place` breaks nothing that the incumbent does not break, and costs no more."""

    place: I32  # [v]
    cost: float  # money, as cost.py counts it
    bound: float  # no assignment costs less; -inf = not known
    engine: str
    optimal: bool = False  # proven
    cut: bool = False  # the deadline ended the search before its effort was spent: another run may differ
    seconds: float = 0.0


class Engine(Protocol):
    """One way of solving. Pure but for the clock of its deadline: the same problem, seed and effort give the same place unless `cut`."""

    def __call__(self, problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
        """The best place found from `start` (default: home). effort 1 = the engine's usual amount of work; 0 = its first answer only."""
        ...
