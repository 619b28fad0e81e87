"""Figures of one policy on one fleet, all from the simulated hosts' truth and the hosts' own step counters.

Money: a host-hour 0.20, a kWh 0.25, a VM-minute in violation 0.02 x the VM's priority weight (0.7, 1, 1.4, 2): a VM that is in violation
for ten minutes costs as much as a host for an hour. Host-hours are those that the granted sizes fill (the fullest resource of each host),
so whoever grants less pays for fewer hosts; energy goes with them: 100 W awake and empty, 250 W at full CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from agent.adapters.simulated_vm import TRUTH_RESOURCES
from bench.league_fleet import Fleet
from bench.world import World
from coordinator.sizing.policy import SizingPolicy
from shared.model import Priority
from shared.units import BUCKET_S

HOST_HOUR, KWH, VIOLATION_MINUTE = 0.20, 0.25, 0.02
IDLE_W, FULL_W = 100.0, 250.0
SHORT: Final = ("cpu", "memory", "net rx", "net tx")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over hosts and time. Lists follow TRUTH_RESOURCES (allocated, peak in unit seconds); `by_priority` LOW to CRITICAL."""

    policy: str
    vm_days: float
    cpu_s: float
    violation_min: float
    minutes: list[float]
    by_priority: list[float]
    depth: list[float]  # unmet demand over demand served, by priority: mean of the resources
    allocated: list[float]
    used: list[float]
    peak: list[float]
    host_hours: float
    kwh: float
    money: float
    steps: int
    turns: int
    worst_turns: int
    broken: int  # invariants of the world that did not hold

    @property
    def allocation(self) -> float:
        """Allocation over true peak, mean of CPU and memory."""
        return (self.allocated[0] / self.peak[0] + self.allocated[1] / self.peak[1]) / 2

    @property
    def slack(self) -> float:
        """Share of what was granted that nobody used, mean of CPU and memory."""
        return 1.0 - (self.used[0] / self.allocated[0] + self.used[1] / self.allocated[1]) / 2

    @property
    def turns_per_6h(self) -> float:
        """Turns from growing to shrinking per VM in six hours, all levers together."""
        return self.turns / max(1e-9, 4.0 * self.vm_days)

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def joined(scores: list[Score]) -> Score:
    """Sums over cases of one policy."""
    first = scores[0].data()
    for score in scores[1:]:
        for name, value in score.data().items():
            if name == "worst_turns":
                first[name] = max(first[name], value)
            elif isinstance(value, list):
                first[name] = [a + b for a, b in zip(first[name], value, strict=True)]
            elif name != "policy":
                first[name] += value
    first["depth"] = [each / len(scores) for each in first["depth"]]
    return Score(**first)


def score_of(policy: str, world: World, fleet: Fleet, warm_h: float, cpu_s: float) -> Score:
    """The score of a world that has run, without its first `warm_h` hours (whose truth was reset)."""
    weights = SizingPolicy().priority_weight
    truths = [agent.host.truth() for agent in world.agents]
    hours = world.settings.hours - warm_h
    by_priority, unmet, served = np.zeros(len(Priority)), np.zeros((len(Priority), 4)), np.zeros((len(Priority), 4))
    allocated, used, minutes = np.zeros(4), np.zeros(4), np.zeros(4)
    host_hours = kwh = money = 0.0
    for agent, truth in zip(world.agents, truths, strict=True):
        capacity = agent.host.capacity()
        limits = np.array([capacity.cpu_commit_millicores, capacity.memory_commit_bytes, *2 * [capacity.net_commit_bits_per_s]])
        total = {name: _row(truth["total"], name) for name in ("allocated", "used", "violation_s")}
        allocated, used, minutes = allocated + total["allocated"], used + total["used"], minutes + total["violation_s"] / 60
        filled = float((total["allocated"] / (limits * 3600)).max())
        host_hours += filled
        kwh += (filled * IDLE_W + (FULL_W - IDLE_W) * total["used"][0] / (3600 * capacity.cpu_millicores)) / 1000
        for spec in agent.file.vms:
            mine, p = truth["vms"][spec.vm_id], int(spec.policy.priority)
            by_priority[p] += mine["violation_any_s"] / 60
            unmet[p], served[p] = unmet[p] + _row(mine, "unmet"), served[p] + _row(mine, "used")
    money = host_hours * HOST_HOUR + kwh * KWH + VIOLATION_MINUTE * float(by_priority @ np.array(weights))
    first = int(warm_h * 3600) // BUCKET_S
    last = first + int(hours * 3600) // BUCKET_S
    cores = [agent.core for agent in world.agents if agent.core is not None]
    return Score(
        policy=policy,
        vm_days=sum(len(agent.file.vms) for agent in world.agents) * hours / 24,
        cpu_s=cpu_s,
        violation_min=float(by_priority.sum()),
        minutes=minutes.tolist(),
        by_priority=by_priority.tolist(),
        depth=(unmet / np.maximum(served, 1e-9)).mean(axis=1).tolist(),
        allocated=allocated.tolist(),
        used=used.tolist(),
        peak=(BUCKET_S * np.sum([each[:, first:last].sum(axis=1) for each in fleet.peaks.values()], axis=0)).tolist(),
        host_hours=host_hours,
        kwh=kwh,
        money=money,
        steps=sum(count for core in cores for (state, _), count in core.counters.items() if state in ("verified", "partial")),
        turns=sum(agent.checks.pace.turned for agent in world.agents),
        worst_turns=max(agent.checks.pace.most for agent in world.agents),
        broken=len(world.violations),
    )


def _row(truth: Mapping[str, Any], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([truth[name][resource] for resource in TRUTH_RESOURCES], np.float64)
