"""Reassignment problems from a seed, small and full of every rule; and the worked example that the rules' summary names."""

from __future__ import annotations

import numpy as np

from coordinator.placement.reassign.engine import Reassignment

# two resources (the second transient), four machines, three services, three processes, one balance objective
MODEL = """2
0 100  1 10
4
0 0  30 400  16 80   0 1 4 5
0 0  10 240   8 160  1 0 3 4
1 1  15 100  12 80   4 3 0 2
1 2  10 100   8 80   5 4 2 0
3
2 0
1 0
1 1 0
3
0  12 10  1000
0  10 20  100
1   6 200 1
1
0 1  20  10
1 10 100
"""
FIRST = "0 3 0\n"


def random_problem(seed: int, processes: int = 40, machines: int = 8, resources: int = 3, tight: float = 0.75) -> Reassignment:
    """A problem whose first assignment keeps every rule: rules are made from it."""
    random = np.random.default_rng(seed)
    services = max(processes // 4, 1)
    service = random.integers(0, services, processes)
    home = np.zeros(processes, np.int64)
    for s in range(services):
        members = np.flatnonzero(service == s)
        if len(members) > machines:  # more than machines: the rest become their own services
            service[members[machines:]] = services + np.arange(len(members) - machines)
            services += len(members) - machines
            members = members[:machines]
        home[members] = random.permutation(machines)[: len(members)]
    need = random.integers(0, 100, (processes, resources))
    used = np.zeros((machines, resources), np.int64)
    np.add.at(used, home, need)
    capacity = np.maximum((used / tight).astype(np.int64), int(used.mean()))
    neighbourhood = np.arange(machines) % 3
    location = np.arange(machines) % 4
    spread = np.array([len(np.unique(location[home[service == s]])) for s in range(services)])
    areas = [set(neighbourhood[home[service == s]]) for s in range(services)]
    depends = [[t for t in random.permutation(services)[:4].tolist() if areas[s] <= areas[t]] for s in range(services)]
    return Reassignment(
        need=need,
        service=service,
        home=home,
        process_move_cost=random.integers(0, 20, processes),
        capacity=capacity,
        safety=(capacity * random.uniform(0.4, 0.9, capacity.shape)).astype(np.int64),
        machine_move_cost=random.integers(0, 5, (machines, machines)) * (1 - np.eye(machines, dtype=np.int64)),
        neighbourhood=neighbourhood,
        location=location,
        transient=random.integers(0, 2, resources),
        load_weight=random.integers(0, 20, resources),
        balance=np.array([[0, 1, 2, 5], [1, 0, 1, 3]]),
        spread=np.where(random.random(services) < 0.5, spread, np.minimum(spread, 1)),
        depends_start=np.concatenate([[0], np.cumsum([len(d) for d in depends])]),
        depends=np.array([t for d in depends for t in d], np.int64),
        process_move_weight=1,
        service_move_weight=10,
        machine_move_weight=7,
    )
