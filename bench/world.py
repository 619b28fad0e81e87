"""The whole system in one seeded single-threaded world: production cores of agent, gateway and decision cycle, simulated hosts,
clock, network and disks. Used by tests/simulation (faults and invariants) and by benches (modes compared on the same demand).

What is real: every decision, every wire frame (encoded and decoded), journal and log semantics (what was not synced is lost at a
kill). What is simulated: time, sockets (ordered delivery with delay; frames may come twice; a drop kills the connection, as TCP
has it), disks (lists that survive a kill), the hypervisors. The same seed gives the same history, byte for byte: `World.digest`.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.adapters.simulated_vm import SimulationFaults
from bench.world_agent import AgentNode
from bench.world_coordinator import CoordinatorNode
from coordinator.forecast.engine import ForecastOptions
from coordinator.model import HistoryBlock
from coordinator.sizing.policy import SizingPolicy
from shared.config import CycleConfig, GuardConfig, ReactiveConfig
from shared.model import Mode
from shared.units import NS_PER_S
from shared.workload import WorkloadFile


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How bad the world is. Shares in 0..1 per frame, times in seconds."""

    delay_s: tuple[float, float] = (0.001, 0.05)
    duplicate: float = 0.0
    reset: float = 0.0  # a frame is lost and its connection with it
    partitions: int = 0  # per host over the run, each of partition_s
    partition_s: tuple[float, float] = (60.0, 1800.0)
    agent_kills: int = 0  # per host
    coordinator_kills: int = 0
    down_s: tuple[float, float] = (20.0, 900.0)
    faults: SimulationFaults = field(default_factory=SimulationFaults)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One world. `modes`: host index -> mode; `preload` gives the coordinator the hosts' history before the start."""

    seed: int
    hours: float
    modes: Callable[[int], Mode]
    sample_period_s: float = 5.0
    step_s: int = 5  # resolution of the simulated hosts
    frame_samples: int = 3
    weather: Weather = Weather()
    cycle: CycleConfig = field(default_factory=lambda: CycleConfig(bucket_grace_s=30))
    sizing: SizingPolicy = field(default_factory=SizingPolicy)
    guard: GuardConfig = field(default_factory=GuardConfig)
    reactive: ReactiveConfig = field(default_factory=ReactiveConfig)
    forecast: ForecastOptions = field(default_factory=lambda: ForecastOptions(boosting=False, statsforecast=False))
    history: Sequence[HistoryBlock] = ()
    place: bool = False
    retrain_every_cycles: int = 0


class World:
    """Runs the agents of `files` and one coordinator. `violations` lists every broken invariant with its time."""

    def __init__(self, files: Sequence[WorkloadFile], settings: Settings) -> None:
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.start_ns = files[0].start_s * NS_PER_S
        self.end_ns = self.start_ns + int(settings.hours * 3600 * NS_PER_S)
        self.now_ns = self.start_ns
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        self._digest = hashlib.sha256()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.coordinator = CoordinatorNode(self)
        self.agents = [AgentNode(self, i, file) for i, file in enumerate(files)]

    def run(self) -> World:
        """To the end of the last hour; then the network heals and everything still in a spool gets its chance."""
        self.coordinator.start()
        for agent in self.agents:
            self.after(self.random.uniform(0, self.settings.sample_period_s), agent.start)
        self._plan_faults()
        while self._queue and self._queue[0][0] <= self.end_ns:
            self.now_ns, _, call = heapq.heappop(self._queue)
            call()
        return self

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Schedule; ties run in the order of scheduling."""
        self._order += 1
        heapq.heappush(self._queue, (self.now_ns + max(0, int(seconds * NS_PER_S)), self._order, call))

    def record(self, *parts: object) -> None:
        """Add to the world's history."""
        self._digest.update(repr((self.now_ns, *parts)).encode())

    @property
    def digest(self) -> str:
        """SHA-256 of everything recorded so far."""
        return self._digest.hexdigest()

    def count(self, name: str) -> None:
        """Count what happened, so that a test can see that the weather was bad."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def violated(self, what: str) -> None:
        """An invariant broke."""
        self.violations.append(f"t+{(self.now_ns - self.start_ns) / NS_PER_S:.3f} s: {what}")

    def _plan_faults(self) -> None:
        weather, length = self.settings.weather, self.settings.hours * 3600
        for agent in self.agents:
            for _ in range(weather.partitions):
                self.after(self.random.uniform(0.05, 0.8) * length, agent.partition)
            for _ in range(weather.agent_kills):
                self.after(self.random.uniform(0.05, 0.85) * length, agent.kill)
        for _ in range(weather.coordinator_kills):
            self.after(self.random.uniform(0.1, 0.8) * length, self.coordinator.kill)
