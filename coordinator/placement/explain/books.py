"""Running sums of one assignment, so that what a change of one VM's host is worth is a handful of array operations over all hosts.

The same objective as cost.py (tests compare them), taken apart by cause, and the limits that no search may pass: hard cells, rules and
kinds beyond what the incumbent breaks already, closed hosts, caps on moves. For explanations, gains of single moves and the plain search;
engines that look at millions of moves keep sums of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.placement.cost import broken_rules, host_loads
from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, SLACK, Bool, Problem, RuleKind

CAUSES: Final = ("hosts", "overload", "moves", "kinds", "unplaced", "broken")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One VM to each host: money by cause [h, cause] against where it is (negative = saves), and who may not be chosen, by why [h]."""

    money: F64
    closed: Bool
    barred: Bool  # its kind may not be there
    hard: Bool  # a hard cell would be passed by more than the incumbent passes it
    ruled: Bool  # a rule would be broken that is not broken now, or more than it is
    capped: Bool  # a cap on moves

    @property
    def total(self) -> F64:
        """Money [h]."""
        return np.asarray(self.money.sum(axis=1))

    @property
    def allowed(self) -> Bool:
        """Hosts that may be chosen, [h]."""
        return ~(self.closed | self.barred | self.hard | self.ruled | self.capped)


class Books:
    """Sums of an assignment; `put` changes them. Raises nothing: the problem was checked when it was made."""

    def __init__(self, problem: Problem, place: I32) -> None:
        self.problem = problem
        self.place = place.astype(np.int32, copy=True)
        hosts = len(problem.host_ids)
        self.mean = np.zeros((hosts, len(problem.hard)))
        self.variance = np.zeros_like(self.mean)  # of VMs as if independent
        self.joint = np.zeros_like(self.mean)  # what groups add to it
        self.count = np.zeros(hosts, np.int64)
        self.weight = np.zeros(hosts)
        self.arrivals = np.zeros(hosts, np.int64)
        self.departures = np.zeros(hosts, np.int64)
        order = np.argsort(problem.group, kind="stable")
        grouped, starts = np.unique(problem.group[order], return_index=True)
        self._members = dict(zip(grouped.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
        self._rules_of: dict[int, list[int]] = {}
        rules = problem.rules
        self._count_in = [np.zeros(max(int(problem.domain[level].max()) + 1, rules.outside.shape[1]), np.int64) for level in rules.level]
        for r in range(len(rules)):
            if rules.outside.size:
                self._count_in[r][: rules.outside.shape[1]] += rules.outside[r]
            for v in rules.members[rules.start[r] : rules.start[r + 1]].tolist():
                self._rules_of.setdefault(v, []).append(r)
        self.limit = np.maximum(problem.capacity * (1.0 + SLACK), host_loads(problem, problem.home)[0] * (1.0 + 1e-12))
        self._broken_home = broken_rules(problem, problem.home)
        self._fill()
        self.money = self.host_money(np.arange(hosts), self.mean, self.variance + self.joint, self.count, self.weight)

    def put(self, v: int, h: int) -> None:
        """Change where a VM is (NOWHERE = nowhere)."""
        before = int(self.place[v])
        for host, sign in ((before, -1), (h, 1)):
            if host != NOWHERE:
                self._add(v, host, sign)
        self.place[v] = h
        rows = np.array([host for host in (before, h) if host != NOWHERE], np.int64)
        self.money[rows] = self.host_money(
            rows, self.mean[rows], self.variance[rows] + self.joint[rows], self.count[rows], self.weight[rows]
        )

    def change(self, v: int) -> Change:
        """What moving one VM to each host would change; its own host costs and breaks nothing more."""
        problem, here = self.problem, int(self.place[v])
        hosts = np.arange(len(problem.host_ids))
        mean, variance = self.mean + problem.mean[v], self.variance + self.joint + self._joins(v)
        after = self.host_money(hosts, mean, variance, self.count + 1, self.weight + problem.weight[v])
        money = np.zeros((len(hosts), len(CAUSES)))
        money[:, [0, 1, 5]] = after - self.money
        if here != NOWHERE:
            money[:, [0, 1, 5]] += self._gone(v, here)
        home = int(problem.home[v])
        money[:, 2] = problem.move_cost[v] * ((hosts != home).astype(float) - float(here != home))
        kinds = problem.kind_cost[problem.kind[v]]
        money[:, 3] = np.where(np.isfinite(kinds), kinds, 0.0) - (kinds[here] if here != NOWHERE else 0.0)
        missing = here == NOWHERE or bool(problem.closed[here])
        money[:, 4] = problem.unplaced_cost[v] * (problem.closed.astype(float) - float(missing))
        rules, ruled = self._rules(v)
        money[:, 5] += rules * problem.broken_price
        load = mean[:, problem.hard] + problem.z[problem.hard] * np.sqrt(np.maximum(variance[:, problem.hard], 0.0))
        found = Change(
            money=money,
            closed=problem.closed & (hosts != home),
            barred=~np.isfinite(kinds),
            hard=(load > self.limit[:, problem.hard]).any(axis=1),
            ruled=ruled,
            capped=self._capped(v),
        )
        if here != NOWHERE:
            money[here] = 0.0
            for mask in (found.closed, found.barred, found.hard, found.ruled, found.capped):
                mask[here] = False
        return found

    def change_to(self, v: int, h: int) -> F64:
        """As change(v).money[h], for one host alone: two rows instead of all."""
        problem, here = self.problem, int(self.place[v])
        if h == here:
            return np.zeros(len(CAUSES))
        row = np.array([h])
        variance = self.variance[row] + self.joint[row] + self._joins_at(v, h)
        money = np.zeros(len(CAUSES))
        came = self.host_money(row, self.mean[row] + problem.mean[v], variance, self.count[row] + 1, self.weight[row] + problem.weight[v])
        money[[0, 1, 5]] = came[0] - self.money[h]
        if here != NOWHERE:
            money[[0, 1, 5]] += self._gone(v, here)
        home, kinds = int(problem.home[v]), problem.kind_cost[problem.kind[v]]
        money[2] = problem.move_cost[v] * (float(h != home) - float(here != home))
        money[3] = kinds[h] - (kinds[here] if here != NOWHERE else 0.0)
        missing = here == NOWHERE or bool(problem.closed[here])
        money[4] = problem.unplaced_cost[v] * (float(problem.closed[h]) - float(missing))
        if v in self._rules_of:
            money[5] += self._rules(v)[0][h] * problem.broken_price
        return money

    def back_money(self, vms: np.ndarray) -> F64:
        """change_to(v, its home) of many VMs at once, [n, cause], each alone; all of them have a home and are on another host."""
        problem = self.problem
        home, here = problem.home[vms], self.place[vms]
        mean, weight = problem.mean[vms], problem.weight[vms]
        comes, goes = self._mates_of(vms, home), self._mates_of(vms, here)
        own, stddev = problem.variance[vms], np.sqrt(problem.variance[vms])
        rho = np.where(problem.group[vms] >= 0, problem.rho[problem.group[vms]] if len(problem.rho) else 0.0, 0.0)[:, None]
        whole = self.variance + self.joint
        money = np.zeros((len(vms), len(CAUSES)))
        came = whole[home] + own + rho * 2.0 * comes * stddev
        left = whole[here] - own - rho * 2.0 * goes * stddev
        parts = self.host_money(home, self.mean[home] + mean, came, self.count[home] + 1, self.weight[home] + weight) - self.money[home]
        parts += self.host_money(here, self.mean[here] - mean, left, self.count[here] - 1, self.weight[here] - weight) - self.money[here]
        money[:, [0, 1, 5]] = parts
        money[:, 2] = -problem.move_cost[vms]
        money[:, 3] = problem.kind_cost[problem.kind[vms], home] - problem.kind_cost[problem.kind[vms], here]
        money[:, 4] = problem.unplaced_cost[vms] * (problem.closed[home].astype(float) - problem.closed[here])
        for i, v in enumerate(vms.tolist()):
            if v in self._rules_of:
                money[i, 5] += self._rules(v)[0][home[i]] * problem.broken_price
        return money

    def gone(self, v: int) -> F64:
        """Money (hosts, overload, broken) that its own host saves (negative) when this VM goes."""
        return self._gone(v, int(self.place[v]))

    def rules_broken(self, v: int, h: int) -> list[tuple[int, float]]:
        """(rule, by how many) of the rules that this VM on that host would break beyond the incumbent."""
        out = []
        for r in self._rules_of.get(v, ()):
            change, after = self._rule(v, r)
            if change[h] > 0 and after[h] > self._broken_home[r]:
                out.append((r, float(change[h])))
        return out

    def load_with(self, v: int, h: int) -> F64:
        """Load [c] of a host with this VM on it."""
        variance = self.variance[h] + self.joint[h]
        if self.place[v] == h:
            return np.asarray(self.mean[h] + self.problem.z * np.sqrt(np.maximum(variance, 0.0)))
        variance = variance + self._joins_at(v, h)
        return np.asarray(self.mean[h] + self.problem.mean[v] + self.problem.z * np.sqrt(np.maximum(variance, 0.0)))

    def host_money(self, rows: np.ndarray, mean: F64, variance: F64, count: np.ndarray, weight: F64) -> F64:
        """Money [n, (hosts, overload, broken)] of these hosts with such sums."""
        problem = self.problem
        capacity = np.maximum(problem.capacity[rows], 1e-12)
        load = mean + problem.z * np.sqrt(np.maximum(variance, 0.0))
        over = np.maximum(load - problem.capacity[rows] * (1.0 + SLACK), 0.0) / capacity
        share = (mean[:, problem.cpu] / capacity[:, problem.cpu]).mean(axis=1) if problem.cpu.any() else np.zeros(len(rows))
        at = np.clip(share, 0.0, 1.0) * (CURVE_POINTS - 1)
        below = np.minimum(at.astype(np.int64), CURVE_POINTS - 2)
        low, high = problem.curve[rows, below], problem.curve[rows, below + 1]
        used = low + (at - below) * (high - low) + problem.wake_cost[rows]
        soft = ~problem.hard
        out = np.empty((len(rows), 3))
        out[:, 0] = np.where(count > 0, used, problem.empty_cost[rows])
        out[:, 1] = (over[:, soft] @ problem.minutes[soft]) * weight
        out[:, 2] = problem.broken_price * over[:, problem.hard].sum(axis=1)
        return out

    def _fill(self) -> None:
        """All sums of `place` at once."""
        problem, place = self.problem, self.place
        on = np.flatnonzero(place != NOWHERE)
        at = place[on]
        np.add.at(self.mean, at, problem.mean[on])
        np.add.at(self.variance, at, problem.variance[on])
        self.count += np.bincount(at, minlength=len(self.count))
        self.weight += np.bincount(at, weights=problem.weight[on], minlength=len(self.count))
        of = on[problem.group[on] >= 0]
        keys, inverse = np.unique(np.stack([place[of], problem.group[of]]), axis=1, return_inverse=True)
        spread, alone = np.zeros((2, keys.shape[1], self.mean.shape[1]))
        np.add.at(spread, inverse.ravel(), np.sqrt(problem.variance[of]))
        np.add.at(alone, inverse.ravel(), problem.variance[of])
        np.add.at(self.joint, keys[0], problem.rho[keys[1]][:, None] * (spread**2 - alone))
        away = on[at != problem.home[on]]
        self.arrivals += np.bincount(place[away], minlength=len(self.count))
        left = problem.home[away]
        self.departures += np.bincount(left[left != NOWHERE], minlength=len(self.count))
        for v, rules in self._rules_of.items():
            if place[v] != NOWHERE:
                for r in rules:
                    self._count_in[r][problem.domain[problem.rules.level[r], place[v]]] += 1

    def _add(self, v: int, h: int, sign: int) -> None:
        problem = self.problem
        self.mean[h] += sign * problem.mean[v]
        self.variance[h] += sign * problem.variance[v]
        self.count[h] += sign
        self.weight[h] += sign * problem.weight[v]
        g = int(problem.group[v])
        if g >= 0:
            # (S + d)^2 - (A + d^2) - (S^2 - A) = 2 S d
            self.joint[h] += sign * problem.rho[g] * 2.0 * self._mates(v, h) * np.sqrt(problem.variance[v])
        if self.count[h] == 0:  # no dust of floats on an empty host
            self.mean[h], self.variance[h], self.joint[h], self.weight[h] = 0.0, 0.0, 0.0, 0.0
        if h != problem.home[v]:
            self.arrivals[h] += sign
            if problem.home[v] != NOWHERE:
                self.departures[problem.home[v]] += sign
        for r in self._rules_of.get(v, ()):
            self._count_in[r][problem.domain[problem.rules.level[r], h]] += sign

    def _joins(self, v: int) -> F64:
        """Variance [h, c] that a VM adds where it comes."""
        problem, g = self.problem, int(self.problem.group[v])
        if g < 0:
            return np.asarray(np.broadcast_to(problem.variance[v], self.mean.shape))
        mates = self._members[g]
        mates = mates[(mates != v) & (self.place[mates] != NOWHERE)]
        spread = np.zeros_like(self.mean)
        np.add.at(spread, self.place[mates], np.sqrt(problem.variance[mates]))
        return np.asarray(problem.variance[v] + problem.rho[g] * 2.0 * spread * np.sqrt(problem.variance[v]))

    def _joins_at(self, v: int, h: int) -> F64:
        """The same [c] for one host; where the VM is, what it takes along when it goes."""
        problem, g = self.problem, int(self.problem.group[v])
        if g < 0:
            return np.asarray(problem.variance[v])
        return np.asarray(problem.variance[v] + problem.rho[g] * 2.0 * self._mates(v, h) * np.sqrt(problem.variance[v]))

    def _mates_of(self, vms: np.ndarray, at: np.ndarray) -> F64:
        """_mates(v, h) [n, c] of many VMs, one host for each."""
        problem, groups = self.problem, max(1, len(self.problem.rho))
        on = np.flatnonzero((self.place != NOWHERE) & (problem.group >= 0))
        found = np.zeros((len(vms), self.mean.shape[1]))
        of = np.flatnonzero(problem.group[vms] >= 0)
        if not len(of) or not len(on):
            return found
        keys, inverse = np.unique(self.place[on].astype(np.int64) * groups + problem.group[on], return_inverse=True)
        spread = np.zeros((len(keys), self.mean.shape[1]))
        np.add.at(spread, inverse, np.sqrt(problem.variance[on]))
        wanted = at[of].astype(np.int64) * groups + problem.group[vms[of]]
        slot = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found[of] = np.where((keys[slot] == wanted)[:, None], spread[slot], 0.0)
        own = of[self.place[vms[of]] == at[of]]
        found[own] -= np.sqrt(problem.variance[vms[own]])
        return found

    def _mates(self, v: int, h: int) -> F64:
        """Sum of the stddevs [c] of the others of a VM's group on one host."""
        mates = self._members[int(self.problem.group[v])]
        mates = mates[(self.place[mates] == h) & (mates != v)]
        return np.asarray(np.sqrt(self.problem.variance[mates]).sum(axis=0))

    def _gone(self, v: int, here: int) -> F64:
        problem, row = self.problem, np.array([here])
        left = self.variance[row] + self.joint[row] - self._joins_at(v, here)
        after = self.host_money(row, self.mean[row] - problem.mean[v], left, self.count[row] - 1, self.weight[row] - problem.weight[v])
        return np.asarray(after[0] - self.money[here])

    def _rules(self, v: int) -> tuple[F64, Bool]:
        """(how much more is broken [h], where a rule is broken beyond the incumbent [h])."""
        more = np.zeros(len(self.problem.host_ids))
        ruled = np.zeros(len(self.problem.host_ids), bool)
        for r in self._rules_of.get(v, ()):
            change, after = self._rule(v, r)
            more += change
            ruled |= (change > 0) & (after > self._broken_home[r])
        return more, ruled

    def _rule(self, v: int, r: int) -> tuple[F64, F64]:
        """(how much more of one rule is broken, how much then) with the VM on each host [h]."""
        problem, here = self.problem, int(self.place[v])
        level = problem.domain[problem.rules.level[r]]
        kind, limit = int(problem.rules.kind[r]), int(problem.rules.limit[r])
        counts = self._count_in[r].copy()
        now = broken_by(counts, kind, limit)
        if here != NOWHERE:
            counts[level[here]] -= 1
        by_domain: F64
        if kind == RuleKind.APART:
            by_domain = broken_by(counts, kind, limit) + (counts >= limit).astype(np.float64)
        elif kind == RuleKind.TOGETHER:
            by_domain = counts.sum() + 1.0 - np.maximum(counts.max(initial=0), counts + 1).astype(np.float64)
        else:
            by_domain = np.maximum((counts > 0).sum() + (counts == 0) - limit, 0).astype(np.float64)
        after = by_domain[level].astype(float)
        return after - now, after

    def _capped(self, v: int) -> Bool:
        problem, here, home = self.problem, int(self.place[v]), int(self.problem.home[v])
        found = np.zeros(len(problem.host_ids), bool)
        away = here not in (home, NOWHERE)
        if problem.arrivals_max is not None:
            found |= self.arrivals >= problem.arrivals_max
        if not away:
            spent = problem.moves_max is not None and int((self.place != problem.home).sum()) >= problem.moves_max
            full = problem.departures_max is not None and home != NOWHERE and self.departures[home] >= problem.departures_max[home]
            found |= spent or bool(full)
        if home != NOWHERE:
            found[home] = False
        return found


def broken_by(counts: np.ndarray, kind: int, limit: int) -> float:
    """How far one rule is from being kept with so many members in each domain; as cost.broken_rules."""
    if kind == RuleKind.APART:
        return float(np.maximum(counts - limit, 0).sum())
    if kind == RuleKind.TOGETHER:
        return float(counts.sum() - counts.max())
    return float(max(int((counts > 0).sum()) - limit, 0))
