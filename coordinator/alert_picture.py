"""What the rules look at, gathered from the running coordinator: the fleet's records, the newest decision, and what happened of late.

`now` runs on the event loop and costs O(hosts); `bucket` hands over arrays and immutable blocks, which a thread may then read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from coordinator.cycle import DecisionCycle
from coordinator.gateway.server import GatewayServer
from coordinator.learning.alert_conditions import BY_BUCKET, LEAST_PAIRS, BucketSeen, FleetNow, HostNow
from coordinator.learning.alerts import Alert
from coordinator.learning.recent import REVERSALS_S, Recent
from coordinator.learning.shortfall import Shortfall, Sleeper, shortfalls
from coordinator.model import HostState
from coordinator.planning.sleep import Power
from coordinator.sizing.levers import physical_limits
from coordinator.store.wal import Wal
from shared.config import CoordinatorConfig
from shared.messages import AgentMessage, Status
from shared.model import Mode
from shared.plan import Outcome
from shared.units import NS_PER_S, RESOURCES


class Running(Protocol):
    """The process, as far as the rules see it."""

    config: CoordinatorConfig
    cycle: DecisionCycle
    gateway: GatewayServer
    wal: Wal
    started_ns: int
    cycle_done_ns: int | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the loop does not hold in memory."""

    certificates: Mapping[str, float | None] = field(default_factory=dict)
    disk_free: float | None = None
    registry_error: str | None = None
    waiting_since_ns: Mapping[str, int] = field(default_factory=dict)  # receiver -> oldest note
    beyond: int = 0
    judged: bool = False  # a decision was judged since the start


class PictureOf:
    """Give it what agents say (`outcomes`, `heard`, `drifted`); ask it for what the rules look at."""

    def __init__(self, running: Running, least_turns: int) -> None:
        self.judged = False
        self._of = running
        self._least_turns = least_turns
        self._recent = Recent()
        self._cycles = -1

    def outcomes(self, host_id: str, outcomes: tuple[Outcome, ...], now_ns: int) -> None:
        """New ones; the fleet has taken them already."""
        for outcome in outcomes:
            self._recent.outcome(host_id, outcome, now_ns)
        for vm_id in {outcome.step.vm_id for outcome in outcomes}:
            if self._turns(vm_id, now_ns) >= self._least_turns:
                self._recent.turned(host_id, vm_id, now_ns)

    def heard(self, host_id: str, message: AgentMessage, now_ns: int) -> None:
        """A message that is not spooled says what the host's clock shows."""
        if isinstance(message, Status):
            self._recent.heard(host_id, message.wall_ns, message.spool_dropped, now_ns)

    def drifted(self, reason: str, now_ns: int) -> None:
        """The forecasts were found to have worsened."""
        self._recent.drifted(reason, now_ns)

    def now(self, now_ns: int, seen: Seen) -> FleetNow:
        """For `judged_now`."""
        of, recent = self._of, self._recent
        connected = bool(of.gateway.connected())
        decided_ns = max(of.started_ns, of.cycle_done_ns or 0)
        return FleetNow(
            hosts=self._hosts(),
            offsets_s=recent.offsets_s(),
            losing=recent.losing(now_ns),
            refused=recent.refused(now_ns),
            reversals=recent.reversals(lambda vm_id: self._turns(vm_id, now_ns), self._least_turns),
            quarantined=recent.quarantined(now_ns),
            drifts=recent.drifts(now_ns),
            certificates=seen.certificates,
            disk_free=seen.disk_free,
            wal_share=of.wal.total_bytes / of.config.wal_max_bytes,
            registry_error=seen.registry_error,
            decided_s=(now_ns - decided_ns) / NS_PER_S if connected else None,
            undelivered_s={name: (now_ns - at_ns) / NS_PER_S for name, at_ns in seen.waiting_since_ns.items()},
            beyond=seen.beyond,
        )

    def decided(self) -> bool:
        """There was a decision since the last call."""
        cycle = self._of.cycle
        if cycle.forecast is None or cycle.cycles == self._cycles:
            return False
        self._cycles, self.judged = cycle.cycles, True
        return True

    def bucket(self) -> BucketSeen:
        """For `judged_by_bucket`."""
        cycle = self._of.cycle
        foresight = cycle.foresight
        return BucketSeen(
            bucket=cycle.bucket,
            forecast=cycle.forecast,
            named=self._named,
            standings=cycle.ledger.budgets.standings(),
            infeasible=() if foresight is None else foresight.infeasible,
            shortfalls=self._shortfalls(),
            accuracy=cycle.ledger.errors.accuracy.fleet("day"),
        )

    def blind(self, seen: Seen) -> Callable[[Alert], bool]:
        """Whether what an alert is about cannot be judged now."""
        fleet, accuracy = self._of.cycle.fleet, self._of.cycle.ledger.errors.accuracy.fleet("day")
        bucket = self._of.cycle.bucket
        measured = frozenset() if bucket is None else frozenset(bucket.vm_ids)

        def blind(alert: Alert) -> bool:
            match alert.rule:
                case "HostBusy" | "ClockOffset" if "host" in alert.labels:  # not the one that counts the others
                    host = fleet.hosts.get(alert.labels["host"])
                    return host is not None and not host.alive
                case "DiskFilling":
                    return seen.disk_free is None
                case "VmAtItsLimit" if "vm" in alert.labels:
                    return not seen.judged or (alert.labels["vm"] in fleet.vms and alert.labels["vm"] not in measured)
                case "ForecastInaccurate" | "ForecastCoverageLow" if "resource" in alert.labels:
                    return not seen.judged or not accuracy.pairs[RESOURCES.index(alert.labels["resource"])] >= LEAST_PAIRS
                case rule:
                    return rule in BY_BUCKET and not seen.judged

        return blind

    def _hosts(self) -> list[HostNow]:
        book, found = self._of.cycle.execution.book, []
        for host_id, record in self._of.cycle.fleet.hosts.items():
            if (capacity := record.capacity) is None:
                continue
            found.append(
                HostNow(
                    host_id=host_id,
                    alive=record.alive,
                    asleep=book.of(host_id).state in (Power.ASLEEP, Power.FALLING, Power.WAKING),
                    why_silent=record.why_silent,
                    cpu_share=record.cpu_used_millicores / capacity.cpu_millicores,
                    memory_share=1.0 - record.memory_available_bytes / capacity.memory_bytes,
                )
            )
        return found

    def _shortfalls(self) -> tuple[Shortfall, ...]:
        cycle = self._of.cycle
        foresight = cycle.foresight
        if foresight is None:
            return ()
        sleepers = []
        for host_id, power in cycle.execution.book.hosts.items():
            record = cycle.fleet.hosts.get(host_id)
            if power.state not in (Power.ASLEEP, Power.WAKING) or record is None or record.capacity is None:
                continue
            there = physical_limits(HostState(host_id=host_id, capacity=record.capacity, mode=Mode.OFF, alive=False))
            lead_s = cycle.execution.book.lead_s(host_id, cycle.execution.policy.power)
            waking = power.state is Power.WAKING
            sleepers.append(Sleeper(host_id=host_id, pool=cycle.pool_of(host_id), capacity=there, lead_s=lead_s, waking=waking))
        return shortfalls(foresight.loads, cycle.margin_z, foresight.pools, sleepers, foresight.issued_s)

    def _named(self, vm_id: str) -> tuple[str, str, str] | None:
        vm = self._of.cycle.fleet.vms.get(vm_id)
        return None if vm is None else (vm.domain.name, vm.host_id, vm.domain.policy.client)

    def _turns(self, vm_id: str, now_ns: int) -> int:
        vm = self._of.cycle.fleet.vms.get(vm_id)
        return 0 if vm is None else sum(ago_s < REVERSALS_S for lever in vm.turns.view(now_ns) for ago_s in lever.ago_s)
