"""The coordinator process of the simulated world and its disk (log of frames, buckets, registry).

Gateway core, decision cycle and forecaster are production code. What was not synced is lost at a kill; the rest is read again at the start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bench.world_wire import Wire
from coordinator import cycle as cy
from coordinator.compute.local_pool import LocalPool
from coordinator.compute.sharding import solve_sharded
from coordinator.cycle import DecisionCycle
from coordinator.gateway import sessions as gw
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock
from shared.frame import decode_agent, decode_block
from shared.messages import Samples
from shared.model import Domain, HostCapacity
from shared.plan import Outcome

if TYPE_CHECKING:
    from bench.world import World
    from bench.world_agent import AgentNode


class CoordinatorNode:
    """One coordinator process and its disk."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = False
        self.incarnation = 0
        self.epoch = 0
        self.log: list[tuple[str, str, int, bytes]] = []  # synced
        self.durable: dict[str, set[int]] = {}
        self.buckets: dict[int, BucketBlock] = {}
        self.outcomes: dict[tuple[str, str, str], Outcome] = {}
        self.known_hosts: dict[str, HostCapacity] = {}
        self.known_domains: dict[str, tuple[str, Domain]] = {}
        self.forecasts: list[ForecastBlock] = []
        self._unsynced: list[tuple[str, str, int, bytes]] = []
        self._wires: dict[int, Wire] = {}
        self._next_conn = 1

    def start(self) -> None:
        """The process starts: state from its disk only."""
        settings, now_ns = self.world.settings, self.world.now_ns
        self.alive, self.epoch = True, self.epoch + 1
        self.incarnation += 1
        acked: dict[tuple[str, str], int] = {}
        for host_id, boot_id, sequence, _ in self.log:
            acked[host_id, boot_id] = max(sequence, acked.get((host_id, boot_id), -1))
        self.gateway = gw.GatewayCore(gw.GatewaySettings(epoch=self.epoch), acked=acked)
        self.cycle = DecisionCycle(settings.cycle, settings.sizing, self.epoch, max(self.buckets, default=None))
        self.cycle.fleet.restore(list(self.known_hosts.items()), self.known_domains)
        for host_id, _, _, frame in self.log:
            message = decode_agent(frame)
            if isinstance(message, Samples):
                self.cycle.handle(cy.SamplesArrived(host_id=host_id, samples=decode_block(message.block)), now_ns)
        self.pool = LocalPool(settings.forecast)
        if settings.history:
            self.pool.load_now(_joined(settings.history))
            if settings.retrain_every_cycles:
                self.pool.retrain_now(_joined(settings.history))
        self._later(1, self._tick)

    def kill(self) -> None:
        """kill -9, and a restart some time later."""
        if not self.alive:
            return
        self.world.count("coordinator_kill")
        self.world.record("kill", "coordinator")
        self.alive = False
        self.incarnation += 1
        self._unsynced.clear()
        for wire in list(self._wires.values()):
            wire.reset()
        self._wires.clear()
        self.world.after(self.world.random.uniform(*self.world.settings.weather.down_s), self.start)

    def accept(self, agent: AgentNode) -> Wire:
        """A new connection of an agent (its certificate was checked)."""
        wire = Wire(self.world, agent, self._next_conn)
        self._next_conn += 1
        self._wires[wire.conn_id] = wire
        self._gateway(gw.Connected(wire.conn_id, agent.host_id))
        return wire

    def received(self, conn_id: int, frame: bytes) -> None:
        """A frame from an agent."""
        if self.alive and conn_id in self._wires:
            self._gateway(gw.Received(conn_id, frame))

    def disconnected(self, conn_id: int, incarnation: int) -> None:
        """The transport told us that it is gone."""
        if self.alive and incarnation == self.incarnation and self._wires.pop(conn_id, None) is not None:
            self._gateway(gw.Disconnected(conn_id))

    def _gateway(self, event: gw.Event) -> None:
        for instruction in self.gateway.handle(event, self.world.now_ns):
            match instruction:
                case gw.AppendWal():
                    if not self._unsynced:
                        self._later(0.05, self._sync)
                    self._unsynced.append((instruction.host_id, instruction.boot_id, instruction.sequence, instruction.frame))
                case gw.Deliver():
                    self._deliver(instruction)
                case gw.Reply():
                    if (wire := self._wires.get(instruction.conn_id)) is not None:
                        wire.to_agent(instruction.frame)
                case gw.Close():
                    if (wire := self._wires.pop(instruction.conn_id, None)) is not None:
                        wire.reset()
                case gw.HostDown():
                    self._cycle(cy.HostLost(host_id=instruction.host_id, why=instruction.reason))
                case gw.HostUp():
                    pass  # the cycle learns it from the Hello that follows

    def _deliver(self, instruction: gw.Deliver) -> None:
        message = instruction.message
        if isinstance(message, Samples):
            self._cycle(cy.SamplesArrived(host_id=instruction.host_id, samples=instruction.samples))
        else:
            self._cycle(cy.AgentSaid(host_id=instruction.host_id, message=message))

    def _sync(self) -> None:
        upto: dict[tuple[str, str], int] = {}
        for host_id, boot_id, sequence, frame in self._unsynced:
            self.log.append((host_id, boot_id, sequence, frame))
            self.durable.setdefault(host_id, set()).add(sequence)
            upto[host_id, boot_id] = sequence
        self._unsynced.clear()
        self._gateway(gw.Durable(upto))

    def _tick(self) -> None:
        self._gateway(gw.Tick())
        self._cycle(cy.Tick())
        self._later(10, self._tick)

    def _cycle(self, event: cy.Event) -> None:
        for instruction in self.cycle.handle(event, self.world.now_ns):
            match instruction:
                case cy.StoreBucket():
                    self._store(instruction.bucket)
                case cy.RequestForecast():
                    self._later(2.0, partial(self._forecast, instruction))
                case cy.SendPlan():
                    self.world.record("plan", instruction.plan)
                    self._gateway(gw.PlanReady(instruction.plan))
                case cy.StoreOutcomes():
                    for outcome in instruction.outcomes:
                        self.outcomes[instruction.host_id, outcome.step.id, outcome.state] = outcome
                case cy.StoreHost():
                    if instruction.hello is not None:
                        self.known_hosts[instruction.host_id] = instruction.hello.capacity
                    if instruction.inventory is not None:
                        self.known_domains.update({d.vm_id: (instruction.host_id, d) for d in instruction.inventory.domains})
                case cy.RequestPlacement():
                    if self.world.settings.place:
                        placements = solve_sharded(instruction.hosts, instruction.forecast, self.world.settings.seed, 30.0)
                        self._cycle(cy.PlacementReady(placements=placements))
                case cy.StoreForecast():
                    self.forecasts.append(instruction.forecast)
                case cy.StoreReceipts():
                    self.world.record("receipts", [receipt.id for receipt in instruction.receipts])

    def _forecast(self, request: cy.RequestForecast) -> None:
        forecast = self.pool.forecast_now(request.bucket, request.capacity)
        self.world.record("forecast", hashlib.sha256(forecast.quantiles.tobytes()).digest())
        self._cycle(cy.ForecastReady(bucket=request.bucket, forecast=forecast))

    def _store(self, bucket: BucketBlock) -> None:
        """The history's rule: of two versions of a bucket, the one that holds more samples of a VM stays."""
        self.world.record("bucket", bucket.start_s, bucket.vm_ids, bucket.samples.tolist(), bucket.mean.tobytes())
        known = self.buckets.get(bucket.start_s)
        self.buckets[bucket.start_s] = bucket if known is None else _merged(known, bucket)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        incarnation = self.incarnation
        self.world.after(seconds, lambda: call() if self.incarnation == incarnation and self.alive else None)


def _joined(blocks: Sequence[HistoryBlock]) -> HistoryBlock:
    """Histories of several hosts as one block."""
    mean, peak, censored, capacity = (
        np.concatenate([getattr(b, name) for b in blocks]) for name in ("mean", "peak", "censored", "capacity")
    )
    vm_ids = tuple(vm_id for b in blocks for vm_id in b.vm_ids)
    return replace(blocks[0], vm_ids=vm_ids, mean=mean, peak=peak, censored=censored, capacity=capacity)


def _merged(known: BucketBlock, newer: BucketBlock) -> BucketBlock:
    """VM by VM the version with more samples, the newer one where they are equal."""
    rows: dict[str, tuple[BucketBlock, int]] = {vm_id: (known, i) for i, vm_id in enumerate(known.vm_ids)}
    for i, vm_id in enumerate(newer.vm_ids):
        if vm_id not in rows or newer.samples[i] >= rows[vm_id][0].samples[rows[vm_id][1]]:
            rows[vm_id] = (newer, i)
    order = sorted(rows)
    picked = [rows[vm_id] for vm_id in order]
    mean, peak, usage, censored, allocation, samples = (
        np.array([getattr(b, name)[i] for b, i in picked]) for name in ("mean", "peak", "usage", "censored", "allocation", "samples")
    )
    return BucketBlock(
        start_s=newer.start_s,
        vm_ids=tuple(order),
        host_ids=tuple(b.host_ids[i] for b, i in picked),
        mean=mean,
        peak=peak,
        usage=usage,
        censored=censored,
        allocation=allocation,
        samples=samples,
    )
