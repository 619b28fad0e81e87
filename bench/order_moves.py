"""The order of moves at size: seconds from (homes, goal) to stages, how many of the wanted moves find a place, how many VMs are parked.

Fleets are made from one seed, two thirds full by promises; the goal moves a fifth of the VMs, each to a host that has room for it once all
moves are done, so that chains and cycles come about. Baseline: the moves in the order of their ids, each beginning only if it fits at that
moment (no parking, no stages): what a plan without an order gets done. Row 0: the issue's table has no row for this; its text asks for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from bench.report import Figure, finish, options
from coordinator.placement.bare import bare_problem
from coordinator.placement.problem import I32, Problem
from coordinator.planning.order_moves import MovePolicy, Readiness, order_moves

SIZES = ((1_000, 10_000), (5_000, 50_000))  # hosts, VMs
MOVED = 0.2
STEPS = 12
BAR_S = 1.0  # of process time for the first size


@dataclass(frozen=True)
class Case:
    """Homes and a goal that fits."""

    problem: Problem
    goal: I32


def make_case(hosts: int, vms: int, seed: int = 1) -> Case:
    """A fleet whose memory is two thirds promised, and a goal reached by random moves and swaps that all fit at the end."""
    random = np.random.default_rng(seed)
    size = random.choice([2.0, 4.0, 8.0, 16.0], vms, p=[0.4, 0.3, 0.2, 0.1])
    home = random.integers(0, hosts, vms).astype(np.int32)
    memory = 1.5 * size.sum() / hosts
    free = memory - np.bincount(home, weights=size, minlength=hosts)
    for v in np.flatnonzero(free[home] < 0):  # spread what does not fit at home
        if free[home[v]] < 0:
            target = int(free.argmax())
            free[home[v]] += size[v]
            free[target] -= size[v]
            home[v] = target
    goal = home.copy()
    for v in random.permutation(vms)[: int(MOVED * vms)]:
        target = int(random.integers(hosts))
        if free[target] >= size[v]:
            free[target] -= size[v]
            free[goal[v]] += size[v]
            goal[v] = target
            continue
        mates = np.flatnonzero((home == target) & (goal == target))
        mates = mates[(free[target] + size[mates] >= size[v]) & (free[goal[v]] + size[v] >= size[mates])]
        if len(mates):  # a swap
            w = int(mates[0])
            free[target] += size[w] - size[v]
            free[goal[v]] += size[v] - size[w]
            goal[w], goal[v] = goal[v], target
    wave = 1.0 + 0.3 * np.sin((np.arange(STEPS) + random.uniform(0, STEPS, (vms, 1))) / STEPS * 2 * np.pi)
    cpu = 0.1 * size[:, None] * wave
    cells = np.arange(STEPS + 1)
    problem = bare_problem(
        home,
        np.hstack([cpu, size[:, None]]),
        np.tile(np.append(np.full(STEPS, 0.3 * memory), memory), (hosts, 1)),
        cells < STEPS,
        variance=np.hstack([(0.2 * cpu) ** 2, np.zeros((vms, 1))]),
        move_cost=np.ones(vms),
        z=np.where(cells == STEPS, 0.0, 1.5),
    )
    return Case(problem, goal)


def without_order(case: Case) -> int:
    """Moves that fit when each is tried once, in the order of ids."""
    problem, size = case.problem, case.problem.mean[:, STEPS]
    free = problem.capacity[:, STEPS] - np.bincount(problem.home, weights=size, minlength=len(problem.host_ids))
    done = 0
    for v in np.flatnonzero(case.goal != problem.home):
        if free[case.goal[v]] >= size[v]:
            free[case.goal[v]] -= size[v]
            free[problem.home[v]] += size[v]
            done += 1
    return done


def measure(case: Case, bar_s: float | None) -> list[Figure]:
    """One size."""
    problem, wanted = case.problem, int((case.goal != case.problem.home).sum())
    ready = Readiness.now(problem, 5.0 + problem.mean[:, STEPS])
    policy = MovePolicy(fleet=len(problem.host_ids) // 5)
    wall, cpu = time.perf_counter(), time.process_time()
    order = order_moves(problem, case.goal, ready, policy)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    name, done = f"{len(problem.vm_ids):,} VMs, {wanted:,} moves:", wanted - len(order.dropped)
    bar = {} if bar_s is None else {"bar": f"<= {bar_s:g}", "holds": cpu <= bar_s}
    return [
        Figure(name=f"{name} processor time", value=cpu, unit="s", **bar),  # type: ignore[arg-type]
        Figure(name=f"{name} wall time", value=wall, unit="s"),
        Figure(name=f"{name} in their goal", value=done / wanted, unit="share"),
        Figure(name=f"{name} baseline, by id", value=without_order(case) / wanted, unit="share"),
        Figure(name=f"{name} stages", value=order.stages, unit="stages"),
        Figure(name=f"{name} parked", value=sum(move.parking for move in order.moves), unit="VMs"),
    ]


def main() -> None:
    """Run as `python -m bench.order_moves`."""
    arguments = options(__doc__.splitlines()[0]).parse_args()
    warm = make_case(20, 100)
    order_moves(warm.problem, warm.goal, Readiness.now(warm.problem, np.full(100, 5.0)))  # compiled, or read from the cache
    sizes = SIZES[:1] if arguments.quick else SIZES
    figures = [figure for i, size in enumerate(sizes) for figure in measure(make_case(*size), BAR_S if i == 0 else None)]
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
