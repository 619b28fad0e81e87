"""Compiles the kernels of the order of moves, or reads them from numba's cache, before anything waits for them.

The first call of a kernel takes seconds where the cache is empty. The decision cycle calls them from the coordinator's one event loop, and
agents take silence for a lost coordinator.
"""

from __future__ import annotations

import numpy as np

from coordinator.placement.bare import bare_problem
from coordinator.placement.problem import RuleKind, Rules
from coordinator.planning.order_moves import MoveOrder, Readiness, order_moves


def compile_kernels() -> MoveOrder:
    """Two VMs swap between two full hosts by way of a third, with a rule: every kernel is called once."""
    problem = bare_problem(
        np.array([0, 1], np.int32),
        np.array([[0.1, 8.0], [0.1, 6.0]]),
        np.array([[1.0, 10.0]] * 3),
        np.array([True, False]),
        group=np.zeros(2, np.int32),
        rho=np.array([0.5]),
        z=np.array([1.0, 1.0]),
        rules=Rules(
            kind=np.array([RuleKind.APART], np.int32),
            limit=np.array([1], np.int32),
            level=np.array([0], np.int32),
            start=np.array([0, 1], np.int32),
            members=np.array([0], np.int32),
            names=("apart",),
        ),
    )
    return order_moves(problem, np.array([1, 0], np.int32), Readiness.now(problem, np.ones(2)))
