"""What a placement is asked for, and the problem that came of it together with what its axes stand for. Data only.

A Problem has indices; people, the checker and the explanations have names, buckets and pools. FleetProblem keeps both, so that whatever was
solved can be read and replayed later.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from coordinator.forecast.aggregate.answer import GroupSums
from coordinator.model import F32, F64, I8, ForecastBlock, HostState
from coordinator.placement.fleet.site import DEFAULT_SITE, Site
from coordinator.placement.problem import CURVE_POINTS, I32, Problem


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """One question: where should these VMs run in the hour that the forecast speaks of?"""

    hosts: tuple[HostState, ...]
    forecast: ForecastBlock
    site: Site = DEFAULT_SITE
    together: tuple[GroupSums, ...] = ()  # forecasts of the sums of applications, then of clients; () = VMs count as independent
    asleep: frozenset[str] = frozenset()  # silent hosts that are known to sleep: they may be woken
    forbidden: frozenset[tuple[str, str]] = frozenset()  # (VM, host) that failed of late; ("", host) = no VM may go there
    cooling: frozenset[str] = frozenset()  # VMs that have moved of late, whatever their records say
    z: float = 1.5  # stddevs of a host's sum that are kept free
    engine: str = "shards"  # a name of coordinator/placement/engines.py
    seed: int = 1
    effort: float = 1.0
    deadline_s: float = 10.0

    def lean(self) -> PlacementRequest:
        """The same question without what placement does not look at: quantiles are nine tenths of a forecast."""
        nothing = np.zeros((len(self.forecast.vm_ids), 0, 0, 0), np.float32)
        return replace(self, forecast=replace(self.forecast, quantiles=nothing, peak_quantiles=nothing, outlook=None))


@dataclass(frozen=True)
class Cell:
    """What one column of the problem stands for. bucket -1 = the whole hour; a promise is a limit in force, not demand."""

    resource: int  # index in shared.units.RESOURCES
    bucket: int = -1
    promise: bool = False


@dataclass(frozen=True, kw_only=True)
class FleetProblem:
    """A problem with its names. v, h, c as in Problem; r = resource, b = bucket."""

    problem: Problem
    issued_s: int
    z: float  # stddevs of a host's sum that are kept free
    cells: tuple[Cell, ...]  # [c]
    names: tuple[str, ...]  # [v]
    clients: tuple[str, ...]  # [v]
    applications: tuple[str, ...]  # [v]
    priority: I8  # [v]
    mean: F32  # [v, r, b] demand, NaN unknown
    stddev: F32  # [v, r, b]
    room: F64  # [h, r] what each host has of each resource, inf where nobody knows
    seconds: F64  # [v] of a migration; inf = it would not end
    pool: I32  # [h]
    pools: tuple[str, ...]
    price: F64  # [h] money of the host over the hour while it has VMs, without energy
    empty_price: F64  # [h]
    watts: F64  # [h, p]
    empty_watts: F64  # [h]
    energy_price: F64  # [h] per kWh
    budget_kwh: F64  # [pool] of this hour; inf = none
    budget_hard: tuple[bool, ...]  # [pool]
    over_price: F64  # [pool] per kWh beyond a priced budget
    left_out: dict[str, str] = field(default_factory=dict)  # host -> why it is not part of the problem
    notes: tuple[str, ...] = ()  # what the operator should know

    def priced(self, extra: F64) -> Problem:
        """The problem with `extra` [pool] money on each kWh, on top of the energy's price."""
        energy = (self.energy_price + extra[self.pool])[:, None]
        curve = self.price[:, None] + self.watts / 1000.0 * energy
        return replace(self.problem, curve=curve, empty_cost=self.empty_price + self.empty_watts / 1000.0 * energy[:, 0])

    def kwh(self, place: I32) -> F64:
        """Energy of the hour by pool [pool] of an assignment, awake hosts that have no VMs at what they take then."""
        used = np.zeros(len(self.pool), bool)
        used[place[place >= 0]] = True
        load = np.zeros((len(self.pool), int(self.problem.cpu.sum())))
        np.add.at(load, place[place >= 0], self.problem.mean[place >= 0][:, self.problem.cpu])
        share = load / np.maximum(self.problem.capacity[:, self.problem.cpu], 1e-12)
        at = np.clip(share.mean(axis=1), 0.0, 1.0) * (CURVE_POINTS - 1)
        below = np.minimum(at.astype(np.int64), CURVE_POINTS - 2)
        rows = np.arange(len(at))
        low, high = self.watts[rows, below], self.watts[rows, below + 1]
        drawn = np.where(used, low + (at - below) * (high - low), self.empty_watts)
        return np.bincount(self.pool, weights=drawn / 1000.0, minlength=len(self.pools)).astype(np.float64)
