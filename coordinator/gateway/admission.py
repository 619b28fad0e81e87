"""Who may come in and how fast: token buckets per agent for frames and bytes, a bound on agents, and back-pressure.

A bucket goes into debt and answers with the time until it is paid: the driver then stops reading from that one peer, TCP slows
it down, and nothing is dropped; who leaves and comes back finds the bucket as it was. Pure: time comes in as real monotonic nanoseconds (a
network's pace is real, whatever clock the fleet is simulated on). Invariant: over any t seconds at most `burst + rate x t` plus one frame
get in per agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shared.units import MIB, NS_PER_S

MAX_WAIT_NS: Final = 10 * NS_PER_S  # below the keep-alive timeout, or a slowed peer would be taken for a dead one


@dataclass(frozen=True, kw_only=True)
class AdmissionLimits:
    """Bounds of the agents' door. A 12-VM host sends one frame in 15 s; the rest of the rate is for replays of a spool."""

    max_agents: int = 5000
    frames_per_s: float = 500.0
    frames_burst: float = 1000.0
    bytes_per_s: float = 16.0 * MIB
    bytes_burst: float = 32.0 * MIB

    def __post_init__(self) -> None:
        for name in ("max_agents", "frames_per_s", "frames_burst", "bytes_per_s", "bytes_burst"):
            value = getattr(self, name)
            if not 1 <= value <= 2**53:
                raise ValueError(f"{name} {value!r}: allowed 1 to 2**53")


@dataclass
class _Bucket:
    frames: float
    bytes: float
    at_ns: int


@dataclass
class Admission:
    """Buckets by agent. `counters` counts what was refused or slowed."""

    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    counters: dict[str, int] = field(default_factory=lambda: {"refused_full": 0, "slowed": 0})
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _gone: dict[str, _Bucket] = field(default_factory=dict)  # of agents that left, longest gone first; bounded by max_agents

    def enter(self, agent: str, now_ns: int) -> bool:
        """An agent connects. False when there are `max_agents` others already."""
        if agent in self._buckets:
            return True
        if len(self._buckets) >= self.limits.max_agents:
            self.counters["refused_full"] += 1
            return False
        self._buckets[agent] = self._gone.pop(agent) if agent in self._gone else self._fresh(now_ns)
        return True

    def _fresh(self, now_ns: int) -> _Bucket:
        return _Bucket(self.limits.frames_burst, self.limits.bytes_burst, now_ns)

    def charge(self, agent: str, frame_bytes: int, now_ns: int) -> int:
        """Book one frame; nanoseconds to wait before reading the next one (0 = none). The agent must have entered."""
        bucket, limits = self._buckets[agent], self.limits
        elapsed_s = max(0, now_ns - bucket.at_ns) / NS_PER_S
        bucket.at_ns = max(now_ns, bucket.at_ns)
        bucket.frames = min(limits.frames_burst, bucket.frames + elapsed_s * limits.frames_per_s) - 1
        bucket.bytes = min(limits.bytes_burst, bucket.bytes + elapsed_s * limits.bytes_per_s) - frame_bytes
        debt_s = max(-bucket.frames / limits.frames_per_s, -bucket.bytes / limits.bytes_per_s, 0.0)
        if debt_s > 0:
            self.counters["slowed"] += 1
        return min(int(debt_s * NS_PER_S), MAX_WAIT_NS)

    def leave(self, agent: str) -> None:
        """The agent's last connection is gone: its place is free."""
        bucket = self._buckets.pop(agent, None)
        if bucket is not None:
            self._gone[agent] = bucket
            if len(self._gone) > self.limits.max_agents:
                del self._gone[next(iter(self._gone))]
