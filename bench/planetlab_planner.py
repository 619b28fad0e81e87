"""The product's consolidation planner as a policy of the CloudSim experiment: each tick's figures made into a placement problem.

What is told to the planner is what CloudSim's policies see: MIPS wanted at the ticks so far. A VM's level is an exponentially fading mean
of them (PlanetLab is near noise around a level that drifts over hours: weights of .95 a tick predict the next hours with a seventh less
squared error than the last hour's mean), its variance fades alike; both start from a prior worth a few ticks, the same for all VMs. A
problem has two cells: the level with the host's margin, and the MIPS wanted right now without one. Money is kWh; a move costs by RAM and
by present MIPS, the two things that the experiment charges a move for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bench import cloudsim_hosts as hosts
from bench.cloudsim_hosts import F64, I32
from coordinator.placement.bare import bare_problem
from coordinator.placement.consolidate.planner import ConsolidationPolicy, RecentMoves, consolidate
from coordinator.placement.problem import NOWHERE, Problem
from shared.units import BUCKET_S

ODD: Final = np.arange(hosts.HOSTS) % 2
CAPACITY: Final = hosts.CORES * np.array(hosts.CORE_MIPS)[ODD]
CURVE: Final = np.array(hosts.WATTS)[ODD] / 1000.0  # kWh in an hour
HOST_IDS: Final = tuple(f"host{h}" for h in range(hosts.HOSTS))
SMALL_CORE: Final = min(hosts.CORE_MIPS)
NO_SMALL_CORE: Final = np.stack([np.zeros(hosts.HOSTS), np.where(ODD == 0, np.inf, 0.0)])  # by kind: anywhere; not on a G4


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """Settled on four of the days, see bench/planetlab.py."""

    z: float = 2.25
    fade: float = 0.05  # weight of the newest tick
    prior: tuple[float, float] = (0.10, 0.15)  # mean and stddev of a VM not seen yet, shares of its MIPS
    prior_ticks: tuple[float, float] = (1.0, 3.0)  # what they count for
    period: int = 12  # ticks between attempts to empty hosts
    rest: int = 12  # ticks after a move in which a VM is not moved to save, nor sent back
    kwh_per_mb: float = 1e-5
    kwh_per_mb_mips: float = 1e-8
    policy: ConsolidationPolicy = field(default_factory=ConsolidationPolicy)


class TickPlanner:
    """One day's planner: bench.cloudsim.Planner."""

    def __init__(self, vms: int, knobs: Knobs | None = None) -> None:
        self.knobs = knobs or Knobs()
        kind = np.minimum(np.arange(vms) // -(-vms // 4), 3)
        self.mips, self.ram = np.array(hosts.VM_MIPS)[kind], np.array(hosts.VM_RAM_MB)[kind]
        self.ticks, self.weight = 0, 0.0
        self.sum, self.squares, self.top = np.zeros(vms), np.zeros(vms), np.zeros(vms)
        self.ids = np.array([f"vm{v}" for v in range(vms)])
        self.recent = RecentMoves()

    def __call__(self, past: F64, host_of: I32) -> tuple[I32, I32]:
        """See the protocol."""
        self._see(past[:, -1])
        here = np.flatnonzero(host_of != NOWHERE).astype(np.int32)
        problem, now_s, rest_s = self._problem(here, past[here, -1], host_of[here]), self.ticks * BUCKET_S, self.knobs.rest * BUCKET_S
        resting, left = self.recent.of(problem, now_s, rest_s)
        told = consolidate(problem, self.knobs.policy, empty=self.ticks % self.knobs.period == 0, resting=resting, left=left)
        self.recent = self.recent.after(problem, told.place, now_s, rest_s)
        self.ticks += 1
        return here[told.moves], told.place[told.moves]

    def _see(self, wanted: F64) -> None:
        share, keep = wanted / self.mips, 1.0 - self.knobs.fade
        self.weight = keep * self.weight + 1.0
        self.sum = keep * self.sum + share
        self.squares = keep * self.squares + share**2
        self.top = np.maximum(0.99 * self.top, wanted)

    def levels(self) -> tuple[F64, F64]:
        """(mean, variance) of every VM for the hours ahead, MIPS; the variance includes that of the mean itself."""
        (mean, stddev), (mean_ticks, stddev_ticks) = self.knobs.prior, self.knobs.prior_ticks
        level = (self.sum + mean_ticks * mean) / (self.weight + mean_ticks)
        around = np.maximum(self.squares - self.sum**2 / self.weight, 0.0)
        variance = (around + stddev_ticks * stddev**2) / (self.weight + stddev_ticks) * (1.0 + 1.0 / (self.weight + mean_ticks))
        return level * self.mips, variance * self.mips**2

    def _problem(self, here: I32, wanted: F64, home: I32) -> Problem:
        n = len(here)
        mean, variance = self.levels()
        knobs = self.knobs
        return bare_problem(
            home,
            np.stack([mean[here], wanted], axis=1),
            np.stack([CAPACITY, CAPACITY], axis=1),
            np.array([True, False]),
            vm_ids=tuple(self.ids[here].tolist()),
            host_ids=HOST_IDS,
            kind=(self.top[here] > SMALL_CORE).astype(np.int32),
            variance=np.stack([variance[here], np.zeros(n)], axis=1),
            move_cost=self.ram[here] * (knobs.kwh_per_mb + knobs.kwh_per_mb_mips * wanted),
            hard=np.zeros(2, np.bool_),
            z=np.array([knobs.z, 0.0]),
            minutes=np.array([60.0, 5.0]),
            curve=CURVE,
            kind_cost=NO_SMALL_CORE,
        )
