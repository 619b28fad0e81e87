"""VMs of one moment into as few equal hosts as hold them together: what a consolidation study asks of a packer.

A host holds `sum(mean) + z root(sum(variance))` in each dimension, so spare room is kept for the sum and not for each VM. A thin door to
the annealing engine: everybody starts nowhere, every host costs the same, and nothing else costs anything.
"""

from __future__ import annotations

import numpy as np

from coordinator.placement.bare import bare_problem
from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, Problem
from coordinator.placement.search.anneal import anneal_engine

UNPLACED: float = 1e6  # money: nobody is left out to save a host
HOST: float = 1.0


def pack_pooled(mean: F64, variance: F64, capacity: F64, *, z: float, seed: int, effort: float = 0.3) -> I32:
    """Hosts int32[v] from 0 on, for mean and variance float64[v, d] and capacity float64[d] > 0. A VM larger than a host has one alone."""
    single = mean + z * np.sqrt(variance)
    over = (single > capacity).any(axis=1)
    hosts = first_fit(single[~over] / capacity)
    inside = problem_of(mean[~over], variance[~over], capacity, int(hosts.max(initial=-1)) + 1, z)
    place = np.empty(len(mean), np.int32)
    if len(inside.vm_ids):
        found = anneal_engine(inside, seed=seed, effort=effort, deadline_s=60.0).place
        # whoever the search left out goes where first fit had room for all: then its whole answer is taken
        place[~over] = np.unique(found if (found != NOWHERE).all() else hosts, return_inverse=True)[1]
    used = int(place[~over].max(initial=-1)) + 1
    place[over] = used + np.arange(int(over.sum()))
    return place


def first_fit(share: F64) -> I32:
    """First fit by decreasing largest share [v, d] of a host; each VM with all of its own margin, so every host holds its sum."""
    place = np.zeros(len(share), np.int32)
    free = np.ones((len(share), share.shape[1]))
    for v in np.argsort(-share.max(axis=1, initial=0.0), kind="stable"):
        place[v] = np.flatnonzero((free >= share[v] - 1e-12).all(axis=1))[0]
        free[place[v]] -= share[v]
    return place


def problem_of(mean: F64, variance: F64, capacity: F64, hosts: int, z: float) -> Problem:
    """So many equal hosts, every dimension one hard cell, everybody nowhere."""
    v, d = mean.shape
    return bare_problem(
        np.full(v, NOWHERE, np.int32),
        mean,
        np.tile(capacity, (hosts, 1)),
        np.zeros(d, bool),
        variance=variance,
        weight=np.zeros(v),
        unplaced_cost=np.full(v, UNPLACED),
        z=np.full(d, z),
        minutes=np.full(d, 5.0),
        curve=np.full((hosts, CURVE_POINTS), HOST),
    )
