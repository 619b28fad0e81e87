"""Hosts into shards, and one shard to advised moves: the public door of placement.

Invariants: silent and switched-off hosts are in no shard (nothing leaves or enters them: they count as full); the answer is never worse
than what is; every move is worth more than it costs; what the independent checker refuses is not shown. Moves are advice in this release.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from coordinator.model import ForecastBlock, HostState, Move, Placement
from coordinator.placement.check_moves import check_moves
from coordinator.placement.descend import descend
from coordinator.placement.exact import solve_exactly
from coordinator.placement.instance import (
    I64,
    PERCENT_MINUTES,
    Instance,
    PlacementPolicy,
    build_instance,
    cost_of,
    keeps_promises,
    overload,
)
from coordinator.sizing.levers import promised
from shared.model import Mode
from shared.units import CPU

SHARD_HOSTS: Final = 8  # CP-SAT proves optima up to about 10 hosts
MAX_HOSTS: Final = 12
DEFAULT_POLICY: Final = PlacementPolicy()


def split(hosts: Sequence[HostState], seed: int, size: int = SHARD_HOSTS) -> tuple[tuple[HostState, ...], ...]:
    """Live hosts in shards of at most `size`, the fullest spread over the shards so that each has somewhere to go.

    The same hosts and seed give the same shards; another seed regroups hosts of like fullness.
    """
    if not 1 <= size <= MAX_HOSTS:
        raise ValueError(f"shard size {size}: allowed 1 to {MAX_HOSTS}")
    live = sorted((h for h in hosts if h.alive and h.mode is not Mode.OFF), key=lambda h: (-fullness(h), h.host_id))
    count = -(-len(live) // size)
    random = np.random.default_rng(seed)
    shards: list[list[HostState]] = [[] for _ in range(count)]
    for start in range(0, len(live), max(1, count)):
        layer = live[start : start + count]
        for shard, host in zip(random.permutation(count)[: len(layer)], layer, strict=True):
            shards[int(shard)].append(host)
    return tuple(tuple(sorted(shard, key=lambda h: h.host_id)) for shard in shards)


def fullness(host: HostState) -> float:
    """Promised over physical CPU."""
    return sum(promised(vm, CPU) for vm in host.vms if vm.domain.running) / host.capacity.cpu_millicores


def solve_shard(
    hosts: Sequence[HostState],
    forecast: ForecastBlock,
    seed: int,
    deadline_s: float,
    shard: int,
    *,
    policy: PlacementPolicy = DEFAULT_POLICY,
) -> Placement:
    """Advise moves within these hosts (at most MAX_HOSTS live ones). Objective, incumbent and bound in percent-minutes.

    Raises ValueError when the shard is too large for an exact solve.
    """
    begun = time.perf_counter()
    live = [host for host in hosts if host.alive and host.mode is not Mode.OFF]
    if len(live) > MAX_HOSTS:
        raise ValueError(f"shard of {len(live)} hosts: allowed 0 to {MAX_HOSTS}")
    if not live:
        return answer(shard, (), "no_beneficial_move", objective=0, incumbent=0, bound=0.0, begun=begun)
    instance = build_instance(live, forecast, policy)
    incumbent = cost_of(instance, instance.home)
    if incumbent == 0 or not instance.movable or len(live) == 1:
        return answer(shard, (), "no_beneficial_move", objective=incumbent, incumbent=incumbent, bound=incumbent, begun=begun)
    quick = descend(instance)
    solution = solve_exactly(instance, seed, deadline_s, hint=quick)
    place = prune(instance, min((solution.place, quick), key=lambda found: cost_of(instance, found)))
    objective = cost_of(instance, place)
    moves = list_moves(instance, place)
    if objective >= incumbent or check_moves(live, forecast, moves, z=policy.z):
        return answer(shard, (), "no_beneficial_move", objective=incumbent, incumbent=incumbent, bound=solution.bound, begun=begun)
    status = "optimal" if solution.optimal else "feasible"
    return answer(shard, moves, status, objective=objective, incumbent=incumbent, bound=solution.bound, begun=begun)


def prune(instance: Instance, found: I64) -> I64:
    """Take back every move that is not worth its cost, worst first."""
    place = found.copy()
    while True:
        now = cost_of(instance, place)
        best, best_v = now, -1
        for v in np.flatnonzero(place != instance.home):
            without = place.copy()
            without[v] = instance.home[v]
            cost = cost_of(instance, without)
            if cost <= best and keeps_promises(instance, without):
                best, best_v = cost, int(v)
        if best_v < 0:
            return place
        place[best_v] = instance.home[best_v]


def list_moves(instance: Instance, place: I64) -> tuple[Move, ...]:
    """Moves with what each saves by itself (all others made), largest net gain first."""
    total = overload(instance, place)
    moves = []
    for v in np.flatnonzero(place != instance.home):
        without = place.copy()
        without[v] = instance.home[v]
        gain = (overload(instance, without) - total) * PERCENT_MINUTES
        cost = float(instance.move_cost[v]) * PERCENT_MINUTES
        source, target = instance.host_ids[instance.home[v]], instance.host_ids[place[v]]
        why = f"saves {gain:.0f} percent-minutes of overload for {cost:.0f} of migration ({instance.seconds[v]:.0f} s)"
        moves.append(Move(vm_id=instance.vm_ids[v], from_host=source, to_host=target, gain=gain, cost=cost, why=why))
    return tuple(sorted(moves, key=lambda m: (m.cost - m.gain, m.vm_id)))


def answer(shard: int, moves: tuple[Move, ...], status: str, *, objective: int, incumbent: int, bound: float, begun: float) -> Placement:
    """Load units to percent-minutes."""
    return Placement(
        shard=shard,
        moves=moves,
        objective=objective * PERCENT_MINUTES,
        incumbent=incumbent * PERCENT_MINUTES,
        bound=min(bound, float(objective)) * PERCENT_MINUTES,
        status=status,
        wall_ms=(time.perf_counter() - begun) * 1000.0,
    )
