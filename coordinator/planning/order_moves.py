"""From where VMs are to where they shall be, as stages of live migrations that keep every promise on the way.

While a VM moves it counts on both of its hosts. All moves of a stage may be under way at once, in any order; the next stage begins when
they have ended. Then at every moment: no hard cell of a host holds more than its capacity (or what it held at home, where that was too
much already), no rule is broken further than at home. The one thing no order can keep is a TOGETHER rule while its VMs change domain: they
move as one block of one stage, and only while that is under way are they apart.

Cycles are cut by parking: a VM goes to a third host first, smallest VMs first, one per full host and stage. Every move begins in the
valley: when its source and target are quiet, done before the source's ramp; where the source is over its capacity already, at once. Room
that shrinks under way will give back counts as taken until they are done (shrink before grow); a sleeping target takes nothing before it
is awake. What cannot be done in time or in order is dropped and named, and what hangs on it with it.

Sound, not complete: that a schedule of single transfers exists is NP-hard to decide with constrained hosts (Hall et al., SODA 2001, data
migration), so a dropped move may have had an order that this greedy one did not find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from coordinator.placement.problem import F64, I32, NOWHERE, SLACK, Problem, RuleKind
from coordinator.planning import move_kernel as kernel
from shared.units import BUCKET_S, HORIZON_STEPS

PARKED_SHARE: Final = 0.25  # of the moves, and MIN_PARKED more: a plan that parks more than that is not worth its trouble
MIN_PARKED: Final = 4
WHOLE_HOUR: Final = -1  # in Problem.step
NOT_SOFT: Final = -2
WHY: Final = {
    kernel.WAITS: "its target is not ready, or no quiet time comes, within the hour",
    kernel.NO_ROOM: "{target} has no room for it on the way",
    kernel.RULE: "a rule would be broken on the way",
    kernel.RAMP: "the ramp on {source} comes before it could be done",
    kernel.NO_CALM: "{target} has no quiet time for it within the hour",
}


@dataclass(frozen=True, kw_only=True)
class MovePolicy:
    """How many at a time, and what counts as quiet."""

    per_source: int = 2
    per_target: int = 2
    fleet: int = 20
    block: int = 10  # most VMs that may have to move as one
    calm: float = 0.8  # of a capacity
    margin_s: float = 60.0  # done this long before a ramp
    settle_s: float = 60.0  # from a stage's last end to the next stage: outcomes are verified


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What moves have to wait for. Times in seconds from now."""

    seconds: F64  # [v] length of its migration
    awake_s: F64  # [h] when a host can take VMs: 0 = now, a sleeper's lead time, inf = not to be woken
    held: F64  # [h, c] what shrinks that are under way have yet to give back
    held_until_s: F64  # [h]

    @classmethod
    def now(cls, problem: Problem, seconds: F64) -> Readiness:
        """Everything awake, nothing shrinking."""
        hosts = len(problem.host_ids)
        return cls(seconds=seconds, awake_s=np.zeros(hosts), held=np.zeros_like(problem.capacity), held_until_s=np.zeros(hosts))


@dataclass(frozen=True, kw_only=True)
class OrderedMove:
    """One migration. Seconds from now; hosts and VM as indices of the problem."""

    vm: int
    source: int
    target: int
    stage: int
    begin_s: float  # not before
    latest_s: float  # not after: the ramp; inf = none comes
    seconds: float
    block: int = -1  # moves of one block go together
    parking: bool = False
    after: tuple[int, ...] = ()  # earlier moves, by their place in the order, without which this one has no room or breaks a rule


@dataclass(frozen=True, kw_only=True)
class MoveOrder:
    """The moves, by stage and time; what is left out, by VM; and when hosts have to be awake."""

    moves: tuple[OrderedMove, ...] = ()
    dropped: dict[int, str] = field(default_factory=dict)
    awake_by_s: dict[int, float] = field(default_factory=dict)  # sleeping hosts that get VMs

    @property
    def stages(self) -> int:
        return 1 + max((move.stage for move in self.moves), default=-1)


def order_moves(problem: Problem, goal: I32, ready: Readiness, policy: MovePolicy | None = None) -> MoveOrder:
    """Stages that bring home to `goal` [v]; a VM whose goal is NOWHERE stays. Same input, same order."""
    policy = policy or MovePolicy()
    wanted = np.flatnonzero((goal != problem.home) & (goal != NOWHERE))
    dropped = {int(v): why for v in wanted if (why := _unmovable(problem, int(v), int(goal[v]), ready))}
    kept = np.array([v for v in wanted if int(v) not in dropped], np.int64)
    blocks = _blocks(problem, goal, kept)
    for block in [block for block in blocks if len(block) > policy.block]:
        dropped |= {v: f"{len(block)} VMs would have to move as one, {policy.block} may" for v in block}
        blocks.remove(block)
    return _Sequencer(problem, goal, ready, policy, blocks, dropped).run()


class _Sequencer:
    """The search itself: fill a stage, let it end, repeat; when nothing can begin, wait, then park, then give up."""

    def __init__(  # noqa: PLR0917
        self, problem: Problem, goal: I32, ready: Readiness, policy: MovePolicy, blocks: list[list[int]], dropped: dict[int, str]
    ) -> None:
        self._problem, self._policy, self._ready, self._dropped = problem, policy, ready, dropped
        moving = [v for block in blocks for v in block]
        self._fixed, self._sums = _arrays(problem, ready, policy, moving)
        sizes = [len(block) for block in blocks]
        vm = np.array(moving, np.int32)
        self._units = kernel.Units(
            vm=vm,
            source=problem.home[vm].astype(np.int32),
            target=goal[vm].astype(np.int32),
            seconds=np.ascontiguousarray(ready.seconds[vm], np.float64),
            ready=np.ascontiguousarray(ready.awake_s[goal[vm]], np.float64),
            start=np.cumsum([0, *sizes]).astype(np.int32),
            done=np.zeros(len(blocks), bool),
            code=np.zeros(len(blocks), np.int32),
            wait=np.zeros(len(blocks)),
            begin=np.zeros(len(vm)),
            latest=np.full(len(vm), np.inf),
        )
        self._block = np.repeat([i if size > 1 else -1 for i, size in enumerate(sizes)], sizes)
        self._order = _by_urgency(self._fixed, self._sums, self._units)
        self._parked: set[int] = set()
        self._out: list[OrderedMove] = []
        self._stage, self._t, self._closed = 0, 0.0, 0

    def run(self) -> MoveOrder:
        units = self._units
        while not units.done.all():
            self._give_back()
            begun = kernel.fill_stage(self._fixed, self._sums, units, self._order, self._t)
            if begun:
                self._end_stage([u for u in range(len(units.done)) if units.done[u] and units.code[u] == kernel.STARTED])
                continue
            later = units.wait[~units.done & (units.code == kernel.WAITS)]
            later = later[(later > self._t) & (later < HORIZON_STEPS * BUCKET_S)]
            held = self._ready.held_until_s[self._ready.held_until_s > self._t]
            blocked = bool((units.code[~units.done] == kernel.NO_ROOM).any())
            soonest = min([*later, *(held[np.isfinite(held)] if blocked else [])], default=np.inf)
            if np.isfinite(soonest):
                self._t = float(soonest)
            elif not self._park():
                break
        for u in np.flatnonzero(~units.done):
            self._name(int(u))
        return self._result()

    def _end_stage(self, begun: list[int]) -> None:
        units, ends = self._units, self._t
        for u in begun:
            units.code[u] = -1  # told
            for m in range(units.start[u], units.start[u + 1]):
                self._emit(m, int(units.target[m]), parking=False)
                ends = max(ends, float(units.begin[m]) + float(units.seconds[m]))
        self._close(ends)

    def _emit(self, m: int, target: int, *, parking: bool) -> None:
        units = self._units
        self._out.append(
            OrderedMove(
                vm=int(units.vm[m]),
                source=int(units.source[m]),
                target=target,
                stage=self._stage,
                begin_s=float(units.begin[m]),
                latest_s=float(units.latest[m]),
                seconds=float(units.seconds[m]),
                block=int(self._block[m]),
                parking=parking,
            )
        )

    def _give_back(self) -> None:
        """Shrinks that are done by now leave their room."""
        over = self._ready.held_until_s <= self._t
        self._sums.held[over] = 0.0

    def _park(self) -> bool:
        """A stage of parking moves, one per source at most; False when none helps."""
        fixed, sums, units, problem = self._fixed, self._sums, self._units, self._problem
        most = int(PARKED_SHARE * len(units.vm)) + MIN_PARKED
        if problem.moves_max is not None:
            most = min(most, problem.moves_max - len(units.vm))
        stuck = np.flatnonzero(~units.done & (units.code == kernel.NO_ROOM) & (np.diff(units.start) == 1))
        ms = units.start[stuck]
        size = (problem.mean[units.vm[ms]][:, problem.hard] / np.maximum(problem.capacity[:, problem.hard].max(axis=0), 1e-12)).max(
            axis=1, initial=0.0
        )
        usable = ~problem.closed & (self._ready.awake_s <= self._t)
        ends, sources = self._t, set()
        for m in ms[np.lexsort((units.vm[ms], size))]:
            v, source, goal = int(units.vm[m]), int(units.source[m]), int(units.target[m])
            waiting = units.vm[ms[units.target[ms] == source]]
            if v in self._parked or source in sources or len(self._parked) >= most or not len(waiting):
                continue
            if not kernel.frees(fixed, sums, v, source, waiting):
                continue
            host = kernel.find_parking(fixed, sums, v, source, goal, usable & np.isfinite(problem.kind_cost[problem.kind[v]]))
            if host < 0:
                continue
            kernel.put(fixed, sums, v, host, 1.0)
            kernel.member(fixed, sums, v, host, source, 1)
            units.begin[m], units.latest[m] = self._t, np.inf
            target, units.target[m] = units.target[m], host
            kernel.take_slots(sums, units, m)
            units.target[m] = target
            self._emit(m, host, parking=True)
            self._parked.add(v)
            sources.add(source)
            units.source[m] = host
            ends = max(ends, float(units.begin[m]) + float(units.seconds[m]))
        if not sources:
            return False
        self._close(ends)
        return True

    def _close(self, ends: float) -> None:
        """The stage's moves are done: their sources are free of them."""
        for move in self._out[self._closed :]:
            kernel.leave(self._fixed, self._sums, move.vm, move.source, move.target)
        self._closed = len(self._out)
        self._stage, self._t = self._stage + 1, ends + self._policy.settle_s

    def _name(self, u: int) -> None:
        """Why a unit is left out. A VM that is parked stays there until the next plan: what moved into its place has moved."""
        units, hosts = self._units, self._problem.host_ids
        for m in range(units.start[u], units.start[u + 1]):
            why = WHY[int(units.code[u])]
            self._dropped[int(units.vm[m])] = why.format(source=hosts[units.source[m]], target=hosts[units.target[m]])

    def _result(self) -> MoveOrder:
        moves = sorted(self._out, key=lambda move: (move.stage, move.begin_s, move.vm))
        after = _dependencies(self._problem, moves)
        ordered = tuple(replace(move, after=needs) if needs else move for move, needs in zip(moves, after, strict=True))
        awake: dict[int, float] = {}
        for move in ordered:
            if self._ready.awake_s[move.target] > 0.0:
                awake[move.target] = min(awake.get(move.target, np.inf), move.begin_s)
        return MoveOrder(moves=ordered, dropped=dict(sorted(self._dropped.items())), awake_by_s=dict(sorted(awake.items())))


def soft_steps(problem: Problem) -> tuple[I32, I32]:
    """(cells, start [s + 1]) of the soft cells of each 5-minute step of the hour: its own, and those that stand for the whole hour.

    By Problem.step; without it the CPU cells follow each other. No soft cell at all: no steps, all times are quiet.
    """
    step = problem.step
    if step is None:
        cells = np.flatnonzero(problem.cpu & ~problem.hard)
        begins = np.concatenate([[0.0], np.cumsum(problem.minutes[cells])[:-1]]) if len(cells) else np.zeros(0)
        step = np.full(len(problem.hard), NOT_SOFT, np.int32)
        step[cells] = (begins * 60 // BUCKET_S).astype(np.int32)
    step = np.where(problem.hard, NOT_SOFT, step)
    whole, timed = np.flatnonzero(step == WHOLE_HOUR), step[step >= 0]
    steps = max(int(timed.max()) + 1 if len(timed) else 0, HORIZON_STEPS if len(whole) else 0)
    found = [np.concatenate([np.flatnonzero(step == s), whole]) for s in range(steps)]
    start = np.cumsum([0, *map(len, found)]).astype(np.int32)
    return (np.concatenate(found) if found else np.zeros(0)).astype(np.int32), start


def _unmovable(problem: Problem, v: int, target: int, ready: Readiness) -> str:
    host = problem.host_ids[target]
    if problem.home[v] == NOWHERE:
        return "it runs nowhere: there is nothing to migrate"
    if problem.fixed[v]:
        return problem.why_fixed[v] or "it may not move"
    if problem.closed[target]:
        return f"{host} takes no VMs"
    if not np.isfinite(problem.kind_cost[problem.kind[v], target]):
        return f"{host} is not allowed for it"
    if not np.isfinite(ready.awake_s[target]):
        return f"{host} cannot be woken"
    return "" if np.isfinite(ready.seconds[v]) and ready.seconds[v] >= 0.0 else "its migration would not end"


def _blocks(problem: Problem, goal: I32, moving: np.ndarray) -> list[list[int]]:
    """The moving VMs, those that a TOGETHER rule ties and that change domain as one; ordered by their first VM."""
    parent = {int(v): int(v) for v in moving}

    def root(v: int) -> int:
        while parent[v] != v:
            parent[v] = v = parent[parent[v]]
        return v

    rules = problem.rules
    for r in np.flatnonzero(rules.kind == RuleKind.TOGETHER):
        domain = problem.domain[rules.level[r]]
        members = rules.members[rules.start[r] : rules.start[r + 1]]
        tied = [int(v) for v in members if int(v) in parent and domain[goal[v]] != domain[problem.home[v]]]
        for v in tied[1:]:
            first, second = sorted((root(tied[0]), root(v)))
            parent[second] = first
    blocks: dict[int, list[int]] = {}
    for v in parent:
        blocks.setdefault(root(v), []).append(v)
    return [sorted(block) for _, block in sorted(blocks.items())]


def _arrays(problem: Problem, ready: Readiness, policy: MovePolicy, moving: Sequence[int]) -> tuple[kernel.Fixed, kernel.Sums]:
    hosts, cells, hard = len(problem.host_ids), len(problem.hard), np.flatnonzero(problem.hard).astype(np.int32)
    soft, soft_start = soft_steps(problem)
    rules = _rules(problem, moving)
    grouped = bool((problem.z[hard] > 0.0).any()) and len(problem.rho) > 0
    sums = kernel.Sums(
        mean=np.zeros((hosts, cells)),
        variance=np.zeros((hosts, cells)),
        spread=np.zeros((hosts, len(problem.rho), cells) if grouped else (0, 0, 0)),
        held=np.array(ready.held, np.float64, order="C"),
        counts=rules.counts,
        used=rules.used,
        slots_out=np.zeros((hosts, policy.per_source)),
        slots_in=np.zeros((hosts, policy.per_target)),
        slots=np.zeros(policy.fleet),
    )
    fixed = kernel.Fixed(
        # one layout and type of each, or numba compiles once more
        mean=np.ascontiguousarray(problem.mean, np.float64),
        variance=np.ascontiguousarray(problem.variance, np.float64),
        z=np.ascontiguousarray(problem.z, np.float64),
        capacity=np.ascontiguousarray(problem.capacity, np.float64),
        allowed=np.full((hosts, cells), np.inf),
        hard=hard,
        soft=soft,
        soft_start=soft_start,
        group=problem.group.astype(np.int32),
        rho=np.ascontiguousarray(problem.rho, np.float64),
        rule_kind=rules.kind,
        rule_level=rules.level,
        rule_start=rules.start,
        rule_of=rules.of,
        domain=np.ascontiguousarray(problem.domain.astype(np.int32)),
        apart_most=rules.apart_most,
        domains_most=rules.domains_most,
        calm=float(policy.calm),
        margin_s=float(policy.margin_s),
    )
    kernel.settle(fixed, sums, problem.home.astype(np.int32))
    load = sums.mean + problem.z * np.sqrt(np.maximum(sums.variance, 0.0))
    fixed.allowed[:] = np.maximum(problem.capacity * (1.0 + SLACK), load * (1.0 + SLACK))
    return fixed, sums


@dataclass(frozen=True, kw_only=True)
class _RuleArrays:
    kind: I32
    level: I32
    start: I32
    of: I32
    counts: I32
    used: I32
    apart_most: I32
    domains_most: I32


def _rules(problem: Problem, moving: Sequence[int]) -> _RuleArrays:
    """APART and LICENSED rules of the VMs that move: where their members are now, and how far each may go on the way."""
    rules, moves = problem.rules, set(moving)
    spans = [rules.members[rules.start[r] : rules.start[r + 1]] for r in range(len(rules))]
    kept = [r for r, span in enumerate(spans) if rules.kind[r] != RuleKind.TOGETHER and not moves.isdisjoint(span.tolist())]
    domains = max(int(problem.domain.max(initial=0)) + 1, rules.outside.shape[1])
    counts = np.zeros((len(kept), domains), np.int32)
    for i, r in enumerate(kept):
        at = problem.home[spans[r]]
        counts[i] = np.bincount(problem.domain[rules.level[r]][at[at != NOWHERE]], minlength=domains)
        if rules.outside.size:
            counts[i, : rules.outside.shape[1]] += rules.outside[r]
    used = (counts > 0).sum(axis=1).astype(np.int32)
    limit = rules.limit[kept].astype(np.int32)
    pairs = sorted((int(v), i) for i, r in enumerate(kept) for v in spans[r] if int(v) in moves)
    owners = np.array([v for v, _ in pairs], np.int64)
    return _RuleArrays(
        kind=rules.kind[kept].astype(np.int32),
        level=rules.level[kept].astype(np.int32),
        start=np.searchsorted(owners, np.arange(len(problem.vm_ids) + 1)).astype(np.int32),
        of=np.array([i for _, i in pairs], np.int32),
        apart_most=np.maximum(counts, limit[:, None]).astype(np.int32),
        domains_most=np.maximum(used, limit).astype(np.int32),
        counts=counts,
        used=used,
    )


def _by_urgency(fixed: kernel.Fixed, sums: kernel.Sums, units: kernel.Units) -> I32:
    """Units by how soon the ramp at their source leaves no time for them; then those that leave the fullest hosts; then by VM."""
    late, latest, full = kernel.urgency(fixed, sums, units)
    return np.lexsort((units.vm[units.start[:-1]], -full, latest, late)).astype(np.int32)


def _dependencies(problem: Problem, moves: Sequence[OrderedMove]) -> list[tuple[int, ...]]:
    """For each move the earlier ones of other stages that left its target, moved its VM before, or share a rule with it."""
    rules = problem.rules
    of_vm: dict[int, list[int]] = {}
    for r in range(len(rules)):
        for v in rules.members[rules.start[r] : rules.start[r + 1]].tolist():
            of_vm.setdefault(v, []).append(r)
    left: dict[int, list[int]] = {}
    by_vm: dict[int, list[int]] = {}
    by_rule: dict[int, list[int]] = {}
    found = []
    for n, move in enumerate(moves):
        needs = {*left.get(move.target, ()), *by_vm.get(move.vm, ())}
        needs |= {other for r in of_vm.get(move.vm, ()) for other in by_rule.get(r, ())}
        found.append(tuple(sorted(other for other in needs if moves[other].stage < move.stage)))
        left.setdefault(move.source, []).append(n)
        by_vm.setdefault(move.vm, []).append(n)
        for r in of_vm.get(move.vm, ()):
            by_rule.setdefault(r, []).append(n)
    return found
