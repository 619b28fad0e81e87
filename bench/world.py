"""The whole system in one seeded single-threaded world: production cores of agent, gateway and decision cycle, simulated hosts,
clock, network and disks. Used by tests/simulation (faults and invariants) and by benches (modes compared on the same demand).

What is real: every decision, every wire frame (encoded and decoded), journal and log semantics (what was not synced is lost at a
kill). What is simulated: time, sockets (ordered delivery with delay; frames may come twice; a drop kills the connection, as TCP
has it), disks (lists that survive a kill), the hypervisors. The same seed gives the same history, byte for byte: `World.digest`.
Invariants are checked while it runs (bench/world_checks.py); a broken one does not stop the world, it is listed in `violations`.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.acting.reactive import LocalRule
from agent.adapters.simulated_vm import SimulationFaults
from bench.world_agent import AgentNode
from bench.world_checks import check_healed
from bench.world_coordinator import CoordinatorNode
from bench.world_moves import Moves
from coordinator.cycle import Sizer
from coordinator.executing import ExecutionPolicy
from coordinator.forecast.engine import ForecastOptions
from coordinator.model import ForecastBlock, HistoryBlock
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.sizing.feasible import Objectives
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import size_host
from shared.config import CycleConfig, GuardConfig, ReactiveConfig
from shared.model import Mode
from shared.units import NS_PER_S
from shared.workload import WorkloadFile


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How bad the world is. Shares in 0..1 per frame or call, times in seconds, counts over the whole run."""

    delay_s: tuple[float, float] = (0.001, 0.05)
    duplicate: float = 0.0  # a frame towards the coordinator comes twice
    reset: float = 0.0  # a frame is lost and its connection with it
    lost_answers: float = 0.0  # a submit that was carried out and never answered
    partitions: int = 0  # per host, each of partition_s
    partition_s: tuple[float, float] = (60.0, 1800.0)
    agent_kills: int = 0  # per host
    agent_stops: int = 0  # per host: clean stops, followed by a start
    coordinator_kills: int = 0
    down_s: tuple[float, float] = (20.0, 900.0)
    full_logs: int = 0  # times that the coordinator's log has no room, each for down_s
    stale_plans: int = 0  # per host: an older plan arrives once more, as from a coordinator that does not know it was replaced
    mode_orders: int = 0  # by the coordinator, to any host
    mode_pins: int = 0  # on the host, pins taken away again included
    adjusts: int = 0  # operators' orders, sensible or not, for any VM
    migration_failures: float = 0.0  # share of the migrations that get to their end
    broken_wakes: int = 0  # first wakes of a host that nothing comes of
    mad_plans: int = 0  # plans with absurd values, as from a coordinator with a bug: the host's guard has to hold
    stuck_vms: int = 0  # per host: a VM whose monitor does not answer for down_s
    late_guests: int = 0  # per host: a VM whose guest reports its memory late for down_s
    faults: SimulationFaults = field(default_factory=SimulationFaults)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One world. `modes`: host index -> mode; `history` is what the coordinator knows from before the start."""

    seed: int
    hours: float
    modes: Callable[[int], Mode]
    sample_period_s: float = 5.0
    step_s: int = 5  # resolution of the simulated hosts
    frame_samples: int = 3
    weather: Weather = Weather()
    heal_s: float = 0.0  # after the last hour: fair weather for this long, then everything must have arrived
    cycle: CycleConfig = field(default_factory=lambda: CycleConfig(bucket_grace_s=30, aggregates=False))  # no decision reads the sums yet
    sizing: SizingPolicy = field(default_factory=SizingPolicy)
    objectives: Objectives = field(default_factory=Objectives)
    guard: GuardConfig = field(default_factory=GuardConfig)
    reactive: ReactiveConfig = field(default_factory=ReactiveConfig)
    forecast: ForecastOptions = field(default_factory=lambda: ForecastOptions(boosting=False))
    history: Sequence[HistoryBlock] = ()
    log_buckets: int = 3  # the coordinator's log is cut this many closed buckets behind, as coordinator/main does it
    place: bool = False
    placer: Callable[[PlacementRequest], Placed] | None = None  # in place of the product's own placement
    execution: ExecutionPolicy = field(default_factory=ExecutionPolicy)
    movable: bool = False  # VMs can migrate between the hosts
    move_bits_per_s: int = 4_000_000_000
    switchable: bool = False  # hosts can be put to sleep and woken
    wake_s: float = 120.0
    retrain_every_cycles: int = 0
    challenge_every_cycles: int = 0  # the challengers of `forecast`, asked about every series
    # Others in the place of the product's parts (bench/league): the agents' rule, what sizes a host, what is done to a forecast before use
    rule: Callable[[AgentNode], LocalRule] | None = None
    sizer: Sizer = size_host
    foresee: Callable[[ForecastBlock], ForecastBlock] | None = None
    watch: Callable[[AgentNode], None] | None = None  # called after every sample of an agent, for benches that look closer


class World:
    """Runs the agents of `files` and one coordinator. `violations` lists every broken invariant with its time."""

    def __init__(self, files: Sequence[WorkloadFile], settings: Settings) -> None:
        self.settings = settings
        self.files = tuple(files)
        self.moves = Moves(self)
        self.weather = settings.weather
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
        """To the end of the last hour; with `heal_s`, on in fair weather until everything in a spool has had its chance."""
        self.coordinator.start()
        for agent in self.agents:
            self.after(self.random.uniform(0, self.settings.sample_period_s), agent.start)
        self._plan_faults()
        self._run_until(self.end_ns)
        if self.settings.heal_s:
            self.weather = Weather()
            for agent in self.agents:
                agent.heal()
            self.coordinator.heal()
            self._run_until(self.end_ns + int(self.settings.heal_s * NS_PER_S))
            check_healed(self)
        return self

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Schedule; ties run in the order of scheduling."""
        self.at(self.now_ns + max(0, int(seconds * NS_PER_S)), call)

    def at(self, due_ns: int, call: Callable[[], None]) -> None:
        """Schedule to the nanosecond: frames due together must not overtake each other by a rounding."""
        self._order += 1
        heapq.heappush(self._queue, (due_ns, self._order, call))

    def record(self, *parts: object) -> None:
        """Add to the world's history."""
        self._digest.update(repr((self.now_ns, *parts)).encode())

    def record_frame(self, kind: int, frame: bytes) -> None:
        """Add bytes on the wire or on a disk to the world's history."""
        self._digest.update(b"%d %d %d " % (self.now_ns, kind, len(frame)))
        self._digest.update(frame)

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

    def _run_until(self, end_ns: int) -> None:
        while self._queue and self._queue[0][0] <= end_ns:
            self.now_ns, _, call = heapq.heappop(self._queue)
            call()
        self.now_ns = end_ns

    def _plan_faults(self) -> None:
        weather, coordinator = self.weather, self.coordinator
        for agent in self.agents:
            for count, call in (
                (weather.partitions, agent.partition),
                (weather.agent_kills, agent.kill),
                (weather.agent_stops, agent.stop),
                (weather.stale_plans, agent.hear_old_plan),
                (weather.stuck_vms, agent.stick),
                (weather.late_guests, agent.delay_guest),
            ):
                self._scatter(count, call)
        for count, call in (
            (weather.coordinator_kills, coordinator.kill),
            (weather.full_logs, coordinator.fill_log),
            (weather.mode_orders, coordinator.order_mode),
            (weather.adjusts, coordinator.adjust),
            (weather.mad_plans, coordinator.go_mad),
        ):
            self._scatter(count, call)
        self._scatter(weather.mode_pins, lambda: self.random.choice(self.agents).pin())

    def _scatter(self, count: int, call: Callable[[], None]) -> None:
        for _ in range(count):
            self.after(self.random.uniform(0.03, 0.95) * self.settings.hours * 3600, call)
