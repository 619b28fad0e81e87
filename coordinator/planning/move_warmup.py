"""Compiles the kernels of the order of moves, or reads them from numba's cache, before anything waits for them.

The first call of a kernel takes seconds where the cache is empty. The decision cycle calls them from the coordinator's one event loop, and
agents take silence for a lost coordinator.
"""

from __future__ import annotations

import numpy as np

from coordinator.placement.problem import CURVE_POINTS, Problem, RuleKind, Rules
from coordinator.planning.order_moves import MoveOrder, Readiness, order_moves


def compile_kernels() -> MoveOrder:
    """Two VMs swap between two full hosts by way of a third, with a rule: every kernel is called once."""
    hosts, vms = 3, 2
    problem = Problem(
        vm_ids=("v0", "v1"),
        host_ids=("h0", "h1", "h2"),
        home=np.array([0, 1], np.int32),
        fixed=np.zeros(vms, bool),
        why_fixed=("", ""),
        kind=np.zeros(vms, np.int32),
        mean=np.array([[0.1, 8.0], [0.1, 6.0]]),
        variance=np.zeros((vms, 2)),
        weight=np.ones(vms),
        move_cost=np.zeros(vms),
        unplaced_cost=np.zeros(vms),
        group=np.zeros(vms, np.int32),
        rho=np.array([0.5]),
        capacity=np.array([[1.0, 10.0]] * hosts),
        hard=np.array([False, True]),
        z=np.array([1.0, 1.0]),
        minutes=np.array([60.0, 60.0]),
        cpu=np.array([True, False]),
        curve=np.zeros((hosts, CURVE_POINTS)),
        empty_cost=np.zeros(hosts),
        wake_cost=np.zeros(hosts),
        closed=np.zeros(hosts, bool),
        kind_cost=np.zeros((1, hosts)),
        domain=np.arange(hosts, dtype=np.int32)[None],
        rules=Rules(
            kind=np.array([RuleKind.APART], np.int32),
            limit=np.array([1], np.int32),
            level=np.array([0], np.int32),
            start=np.array([0, 1], np.int32),
            members=np.array([0], np.int32),
            names=("apart",),
        ),
    )
    return order_moves(problem, np.array([1, 0], np.int32), Readiness.now(problem, np.ones(vms)))
