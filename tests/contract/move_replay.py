"""Replays an order of moves step by step, in any interleaving that its stages allow, and checks every state with arithmetic of its own.

Shares no code with coordinator/planning: a host's sums are made anew from the problem's arrays, of all VMs that are on it or on their way.
"""

from __future__ import annotations

import random

import numpy as np

from coordinator.placement.problem import Problem, RuleKind
from coordinator.planning.order_moves import MoveOrder


class Replay:
    """Where every VM is: `on` lists its hosts (two while it moves)."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.on: list[set[int]] = [{int(h)} if h >= 0 else set() for h in problem.home]
        self.most = np.maximum(problem.capacity, self.loads()) * (1.0 + 2e-6)
        self.broken_at_home = self.broken()

    def loads(self) -> np.ndarray:
        """[h, c] with VMs on the way on both hosts."""
        p = self.problem
        out = np.zeros_like(p.capacity)
        for h in range(len(p.host_ids)):
            here = [v for v, hosts in enumerate(self.on) if h in hosts]
            variance = p.variance[here].sum(axis=0)
            for g in {int(p.group[v]) for v in here} - {-1}:
                mates = [v for v in here if p.group[v] == g]
                variance += p.rho[g] * (np.sqrt(p.variance[mates]).sum(axis=0) ** 2 - p.variance[mates].sum(axis=0))
            out[h] = p.mean[here].sum(axis=0) + p.z * np.sqrt(variance)
        return out

    def broken(self) -> list[int]:
        """How far each rule is from being kept, VMs on the way counted in both domains."""
        p, out = self.problem, []
        for r in range(len(p.rules)):
            members = p.rules.members[p.rules.start[r] : p.rules.start[r + 1]]
            domain = p.domain[p.rules.level[r]]
            places = [{int(domain[h]) for h in self.on[v]} for v in members]
            counts: dict[int, int] = {}
            for place in places:
                for each in place:
                    counts[each] = counts.get(each, 0) + 1
            limit = int(p.rules.limit[r])
            if p.rules.kind[r] == RuleKind.APART:
                out.append(sum(max(0, count - limit) for count in counts.values()))
            elif p.rules.kind[r] == RuleKind.TOGETHER:
                out.append(sum(map(bool, places)) - max(counts.values(), default=0))
            else:
                out.append(max(0, len(counts) - limit))
        return out

    def check(self, *, between_stages: bool) -> None:
        """Raise AssertionError where the state breaks more than home does. TOGETHER is judged between stages."""
        p = self.problem
        hard = p.hard
        over = self.loads()[:, hard] > self.most[:, hard]
        assert not over.any(), f"hosts {np.flatnonzero(over.any(axis=1)).tolist()} hold more than they may"
        for r, (now, home) in enumerate(zip(self.broken(), self.broken_at_home, strict=True)):
            if p.rules.kind[r] != RuleKind.TOGETHER or between_stages:
                assert now <= home, f"rule {r} of kind {p.rules.kind[r]} is broken by {now}, at home by {home}"


def replay(problem: Problem, order: MoveOrder, goal: np.ndarray, seed: int) -> Replay:
    """Run the whole order; within a stage moves begin and end in random interleavings."""
    state, shuffle = Replay(problem), random.Random(seed)
    for stage in range(order.stages):
        moves = [move for move in order.moves if move.stage == stage]
        assert moves, f"stage {stage} is empty"
        waiting, moving = list(moves), []
        while waiting or moving:
            if waiting and (not moving or shuffle.random() < 0.6):
                move = waiting.pop(shuffle.randrange(len(waiting)))
                assert state.on[move.vm] == {move.source}, f"move of {move.vm} begins at {move.source}, it is on {state.on[move.vm]}"
                state.on[move.vm].add(move.target)
                moving.append(move)
            else:
                move = moving.pop(shuffle.randrange(len(moving)))
                state.on[move.vm] = {move.target}
            state.check(between_stages=False)
        state.check(between_stages=True)
    parked = {move.vm for move in order.moves if move.parking}
    for v, hosts in enumerate(state.on):
        wanted = goal[v] if goal[v] >= 0 else problem.home[v]
        if v in order.dropped:
            assert hosts == ({int(problem.home[v])} if problem.home[v] >= 0 else set()) or v in parked, v
        elif wanted >= 0 and problem.home[v] >= 0:
            assert hosts == {int(wanted)}, f"VM {v} is on {hosts}, not on {wanted}, and was not dropped"
    return state
