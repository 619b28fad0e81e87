"""The running coordinator as the HTTP layer sees it: implements coordinator.service.view.FleetView over cycle, stores and gateway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TypeVar

import numpy as np

from coordinator.calendars import zone_of
from coordinator.compute import NotNow
from coordinator.fleet import HostRecord, VmRecord
from coordinator.live_alerts import LiveAlerts
from coordinator.live_compliance import LiveCompliance
from coordinator.live_migrations import LiveMigrations
from coordinator.live_operations import LiveOperations
from coordinator.live_placing import LivePlacing
from coordinator.live_profiles import LiveProfiles
from coordinator.live_reports import LiveReports
from coordinator.live_vm_past import LiveVmPast
from coordinator.model import LEVELS, SIGNALS, ForecastBlock, NoForecast, Receipt
from coordinator.planning.adjust import Adjustment
from coordinator.planning.sleep import Power
from coordinator.running import Running
from coordinator.service.accuracy import accuracy_view, vm_accuracy_view
from coordinator.service.explained import ForecastWhyView
from coordinator.service.forecasts import ForecastView, forecast_view, known, model_name, no_forecast_view, reason_name
from coordinator.service.groups import group_forecast, group_list
from coordinator.service.outlooks import OutlookView, outlook_view
from coordinator.service.profiling import ProfilesView
from coordinator.service.signals import SignalBatch, SignalHistory, SignalsTaken, SignalState
from coordinator.service.sizing import SizingView, host_load, sizing_view
from coordinator.service.telling import readings_of
from coordinator.service.tenancy_view import TenancyView
from coordinator.service.view import (
    AccuracyView,
    AdjustRequest,
    AdjustResult,
    Committed,
    FleetSummary,
    GroupForecastView,
    GroupKind,
    GroupList,
    HistoryView,
    HostView,
    ModeScore,
    OutcomeView,
    PauseView,
    ResourceHistory,
    ResourceState,
    Scores,
    StageTime,
    VmAccuracy,
    VmView,
    Window,
)
from coordinator.service.why import forecast_why_view, with_since
from coordinator.sizing.target import UNUSABLE
from shared.errors import HostError, Refusal
from shared.model import Allocation, Mode, Priority
from shared.plan import Plan
from shared.refusal import RefusalCode
from shared.units import BUCKET_S, CPU, DISK, MEMORY, NET_RX, NET_TX, NS_PER_S, RESOURCES, UNLIMITED

LEAD_STEPS = 6  # the chart shows what was expected of a bucket half an hour before it began
REASON_S = 86_400  # how far back it is looked up since when a series has no model of its own
STAGES = ("forecast", "decide", "place", "train")


_T = TypeVar("_T")


class LiveView(LiveAlerts, LiveMigrations, LiveOperations, LivePlacing, LiveVmPast, LiveCompliance, LiveReports):
    """Answers from memory; async methods read a store behind the writes before them."""

    def __init__(self, running: Running) -> None:
        LiveAlerts.__init__(self, running)
        LiveMigrations.__init__(self, running)
        LiveOperations.__init__(self, running)
        LivePlacing.__init__(self, running)
        LiveVmPast.__init__(self, running)
        LiveCompliance.__init__(self, running)
        LiveReports.__init__(self, running)
        self._of = running

    @cached_property
    def profiles(self) -> ProfilesView:
        of = self._of
        return LiveProfiles(of.clock, of.cycle, of.history, zone_of(of.config))

    @property
    def tenancy(self) -> TenancyView:
        return self._of.tenancy

    def fleet(self) -> FleetSummary:
        of, fleet = self._of, self._of.cycle.fleet
        alive = sum(host.alive for host in fleet.hosts.values())
        spent = [of.stages[name] for name in ("forecast", "decide") if name in of.stages]
        return FleetSummary(
            name="tidegate",
            version=version("tidegate"),
            epoch=of.cycle.epoch,
            cycle=of.cycle.cycles,
            now_s=of.clock.wall_ns() / NS_PER_S,
            clock_speed=of.config.clock.speed or None,
            hosts_alive=alive,
            hosts_silent=len(fleet.hosts) - alive,
            vms=len(fleet.vms),
            agents_connected=len(of.gateway.connected()),
            last_cycle_s=None if of.cycle_done_ns is None else of.cycle_done_ns / NS_PER_S,
            last_cycle_wall_ms=sum(spent) if spent else None,
            stages=tuple(StageTime(stage=name, wall_ms=of.stages[name]) for name in STAGES if name in of.stages),
        )

    def hosts(self) -> Sequence[HostView]:
        records = self._of.cycle.fleet.hosts
        return [self._host(records[host_id]) for host_id in sorted(records) if records[host_id].capacity is not None]

    def host(self, host_id: str) -> HostView | None:
        record = self._of.cycle.fleet.hosts.get(host_id)
        return None if record is None or record.capacity is None else self._host(record)

    def vm_ids(self, host_id: str | None = None, client: str | None = None) -> Sequence[str]:
        return sorted(
            vm_id
            for vm_id, vm in self._of.cycle.fleet.vms.items()
            if (host_id is None or vm.host_id == host_id) and (client is None or vm.domain.policy.client == client)
        )

    def vm(self, vm_id: str) -> VmView | None:
        vm = self._of.cycle.fleet.vms.get(vm_id)
        if vm is None:
            return None
        host, domain = self._of.cycle.fleet.host(vm.host_id), vm.domain
        mode = allowed = Mode.OBSERVE if domain.policy.excluded else host.mode
        reason = "policy opts this VM out" if domain.policy.excluded else None
        if allowed is Mode.PREDICTIVE and domain.policy.mode is Mode.REACTIVE:
            mode, allowed, reason = Mode.REACTIVE, Mode.REACTIVE, "policy allows reactive at most"
        elif allowed is Mode.PREDICTIVE and (out := self._out_of_calibration(vm_id)):
            mode, reason = Mode.REACTIVE, f"out_of_calibration: {', '.join(out)}"
        return VmView(
            id=vm_id,
            name=domain.name,
            host_id=vm.host_id,
            client=domain.policy.client,
            application=domain.policy.application,
            priority=Priority(domain.policy.priority).name.lower(),  # type: ignore[arg-type]  # PriorityName lists the same four
            running=domain.running,
            mode=mode,
            mode_reason=reason,
            vcpus_max=domain.vcpus_max,
            memory_max_bytes=domain.memory_max_bytes,
            net_max_bits_per_s=domain.net_max_bits_per_s,
            allocation=vm.allocation,
            resources=tuple(self._resource(vm_id, vm, r, allowed) for r in range(len(RESOURCES))),
            capabilities=domain.capabilities,
            policy=domain.policy,
            violation_minutes=self._violation_minutes(vm_id),
            signals=self._signals(vm_id),
        )

    def forecast(self, vm_id: str, horizon_minutes: int) -> ForecastView:
        block = self._of.cycle.forecast
        if block is None or vm_id not in block.vm_ids:
            return no_forecast_view(vm_id, horizon_minutes, LEVELS)
        return forecast_view(block, vm_id, horizon_minutes)

    async def why(self, vm_id: str) -> ForecastWhyView:
        why, not_now = None, None
        if self._of.cycle.forecast is not None:
            try:
                why = await self._of.pool.explain(vm_id)
            except NotNow as error:
                not_now = str(error)
        view = forecast_why_view(vm_id, self._of.cycle.forecast, why, not_now)
        if view.issued_s is None or all(part.reason is None or part.reason.since_s is not None for part in view.resources):
            return view
        return with_since(view, await self._of.read_history(self._of.history.forecasts, vm_id, view.issued_s - REASON_S))

    def outlook(self, vm_id: str) -> OutlookView:
        return outlook_view(self._of.cycle.outlook, vm_id)

    def groups(self, kind: GroupKind | None, limit: int) -> GroupList:
        return group_list(self._of.cycle.aggregates, kind, limit)

    def group_forecast(self, kind: GroupKind, name: str, horizon_minutes: int) -> GroupForecastView | None:
        return group_forecast(self._of.cycle.aggregates, kind, name, horizon_minutes)

    def accuracy(self, window: Window, limit: int) -> AccuracyView:
        return accuracy_view(self._of.cycle.ledger.errors.accuracy, window, limit, self._name)

    def vm_accuracy(self, vm_id: str, window: Window) -> VmAccuracy:
        return vm_accuracy_view(self._of.cycle.ledger.errors.accuracy, vm_id, window)

    async def history(self, vm_id: str, hours: int) -> HistoryView:
        of = self._of
        buckets = hours * 3600 // BUCKET_S
        end_s = of.cycle.bucket.start_s if of.cycle.bucket else of.clock.wall_ns() // NS_PER_S // BUCKET_S * BUCKET_S - BUCKET_S
        starts = tuple(range(end_s - BUCKET_S * (buckets - 1), end_s + 1, BUCKET_S))
        columns = await of.read_history(of.history.series, vm_id, end_s, buckets)
        told = await of.read_history(of.history.signals, vm_id, end_s, buckets)
        issued = await of.read_history(of.history.forecasts, vm_id, starts[0] - LEAD_STEPS * BUCKET_S)
        expected = {block.issued_s: block for block in issued}
        return HistoryView(
            vm_id=vm_id,
            lead_minutes=LEAD_STEPS * BUCKET_S // 60,
            resources=tuple(
                ResourceHistory(
                    resource=name,  # type: ignore[arg-type]
                    start_s=starts,
                    demand=_column(columns["mean"][r]),
                    peak=_column(columns["peak"][r]),
                    censored=_column(columns["censored"][r]),
                    allocation=_column(columns["allocation"][r]),
                    forecast_mean=tuple(_expected(expected.get(s - LEAD_STEPS * BUCKET_S), r, None) for s in starts),
                    forecast_q10=tuple(_expected(expected.get(s - LEAD_STEPS * BUCKET_S), r, 0.1) for s in starts),
                    forecast_q90=tuple(_expected(expected.get(s - LEAD_STEPS * BUCKET_S), r, 0.9) for s in starts),
                )
                for r, name in enumerate(RESOURCES)
            ),
            signals=()
            if told is None
            else tuple(
                SignalHistory(signal=name, mean=_column(told[k]))  # type: ignore[arg-type]
                for k, name in enumerate(SIGNALS)
            ),
        )

    async def plans(self, limit: int, host_id: str | None = None) -> Sequence[Plan]:
        return await self._of.look(self._of.registry.plans, limit, host_id)

    async def receipts(self, limit: int, vm_id: str | Sequence[str] | None = None) -> Sequence[Receipt]:
        return await self._of.look(self._of.registry.receipts, limit, vm_id)

    async def receipt(self, receipt_id: str) -> Receipt | None:
        return await self._of.look(self._of.registry.receipt, receipt_id)

    async def outcomes(self, limit: int, vm_id: str | Sequence[str] | None = None) -> Sequence[OutcomeView]:
        rows = await self._of.look(self._of.registry.outcomes, limit, vm_id)
        return [OutcomeView(host_id=host_id, vm_name=self._name(outcome.step.vm_id), outcome=outcome) for host_id, outcome in rows]

    def scores(self) -> Scores:
        ledger, fleet = self._of.cycle.ledger, self._of.cycle.fleet
        modes = []
        for mode in Mode:
            hosts = [host for host in fleet.hosts.values() if host.mode is mode and host.capacity is not None]
            score = ledger.score(mode)
            if hosts or score.observed_minutes:
                modes.append(
                    ModeScore(
                        mode=mode,
                        hosts=len(hosts),
                        vms=sum(len(host.vm_ids) for host in hosts),
                        violation_minutes=score.violation_minutes,
                        violation_depth=score.violation_depth,
                        allocation_over_use=score.allocation_over_use,
                        steps_applied=score.steps_applied,
                        steps_refused=score.steps_refused,
                        pinball=score.pinball,
                        naive_pinball=score.naive_pinball,
                    )
                )
        until_s = self._of.clock.wall_ns() / NS_PER_S
        return Scores(since_s=self._of.started_ns / NS_PER_S, until_s=until_s, modes=tuple(modes))

    def sizing(self, limit: int) -> SizingView:
        return sizing_view(self._of.cycle.foresight, self._of.cycle.ledger.budgets, limit)

    async def set_mode(self, host_id: str, mode: Mode, actor: str) -> HostView:
        record = self._of.cycle.fleet.host(host_id)
        if record.pinned:
            raise Refusal(RefusalCode.LOCALLY_PINNED, f"host {host_id!r} is pinned to {record.mode} by its owner")
        await self._of.read(self._of.registry.save_mode, host_id, mode)
        self._of.gateway.order_mode(host_id, mode)
        self._of.audit("set_mode", actor=actor, host=host_id, mode=mode)
        return self._host(record)

    async def set_pause(self, host_id: str | None, paused: bool, actor: str) -> PauseView:
        # a stop acts first and is stored after: no disk may delay it. A release is stored first: forgotten, it would stay a stop
        if not paused:
            await self._of.read(self._of.registry.save_pause, host_id, paused)
        self._of.gateway.order_pause(host_id, paused)
        if paused:
            await self._store_stop(host_id)
        self._of.audit("set_pause", actor=actor, host=host_id or "fleet", paused=paused)
        held = await self._of.read(self._of.registry.pauses)
        return PauseView(fleet=None in held, hosts=tuple(sorted(name for name in held if name is not None)))

    async def adjust(self, vm_id: str, request: AdjustRequest, actor: str) -> AdjustResult:
        wanted = Adjustment(vcpus=request.vcpus, memory_bytes=request.memory_bytes, cpu_quota_millicores=request.cpu_quota_millicores)
        plan, instructions = self._of.cycle.adjust(vm_id, wanted, self._of.clock.wall_ns(), request.dry_run)
        self._of.carry_out(instructions)
        if request.dry_run:
            return AdjustResult(vm_id=vm_id, host_id=plan.host_id, dry_run=True, steps=plan.steps)
        self._of.audit("adjust", actor=actor, vm=vm_id, steps=len(plan.steps))
        operation = await self.ordered(vm_id, actor, plan)
        return AdjustResult(vm_id=vm_id, host_id=plan.host_id, dry_run=False, steps=plan.steps, operation_id=operation)

    async def tell_signals(self, batch: SignalBatch) -> SignalsTaken:
        of = self._of
        span_s = of.cycle.signals.span_s(of.clock.wall_ns() / NS_PER_S)
        try:
            readings = readings_of(batch, of.cycle.fleet.vms, of.cycle.labels, span_s)
            counts = await of.take_signals(readings)
        except Refusal:
            of.metrics.add("tidegate_signals_total", len(batch.readings), outcome="refused")
            raise
        for outcome, count in (("taken", counts.taken), ("replaced", counts.replaced), ("late", counts.late)):
            of.metrics.add("tidegate_signals_total", count, outcome=outcome)
        vms = {vm_id for reading in readings for vm_id in reading.vm_ids}
        return SignalsTaken(vms=len(vms), taken=counts.taken, replaced=counts.replaced, late=counts.late)

    def metrics_text(self) -> str:
        return self._of.metrics.render().decode()

    def ready(self) -> tuple[bool, str]:
        return self._of.ready()

    async def _store_stop(self, host_id: str | None) -> None:
        """A stop is in force by now: one that cannot be stored is stored later, and its caller told what that means."""
        try:
            await self._of.read(self._of.registry.save_pause, host_id, True)
        except HostError as error:
            self._of.write(self._of.registry.save_pause, host_id, True)
            detail = f"{host_id or 'the fleet'} is paused now; a restart would forget it until it is stored, which is tried again: {error}"
            raise Refusal(RefusalCode.STORE_UNAVAILABLE, detail) from error

    def _silent(self, record: HostRecord) -> str:
        power = self._of.cycle.execution.book.of(record.host_id)
        return record.why_silent if power.state is Power.AWAKE else f"{power.state}: {power.why}"

    def _host(self, record: HostRecord) -> HostView:
        assert record.capacity is not None
        hello = self._of.gateway.connected().get(record.host_id)
        return HostView(
            id=record.host_id,
            alive=record.alive,
            counts_as_full=not record.alive,
            silent_reason=None if record.alive else self._silent(record),
            mode=record.mode,
            mode_pinned=record.pinned,
            mode_ordered=self._of.gateway.core.ordered(record.host_id),
            paused=self._of.gateway.paused(record.host_id),
            paused_by=record.paused_by,
            vms_yielded=record.vms_yielded,
            capacity=record.capacity,
            committed=_committed([self._of.cycle.fleet.vms[vm_id].allocation for vm_id in sorted(record.vm_ids)]),
            cpu_used_millicores=_integer(record.cpu_used_millicores),
            memory_available_bytes=_integer(record.memory_available_bytes),
            vm_ids=tuple(sorted(record.vm_ids)),
            last_seen_s=record.seen_ns / NS_PER_S if record.seen_ns else None,
            spool_frames=record.spool_frames,
            spool_dropped=record.spool_dropped,
            hypervisor=hello.hypervisor if hello else "",
            agent_version=hello.agent_version if hello else "",
            clock_offset_s=self._of.gateway.core.offsets.offset_s(record.host_id),
            load=host_load(self._of.cycle.foresight, record.host_id, self._of.cycle.margin_z),
        )

    def _resource(self, vm_id: str, vm: VmRecord, r: int, allowed: Mode) -> ResourceState:
        bucket, block = self._of.cycle.bucket, self._of.cycle.forecast
        place = bucket.vm_ids.index(vm_id) if bucket and vm_id in bucket.vm_ids else None
        row = _row(block, vm_id)
        unusable = block is None or row is None or block.reason[row, r] in UNUSABLE
        return ResourceState(
            resource=RESOURCES[r],
            allocation=_in_force(vm.allocation, r),
            demand=None if bucket is None or place is None else known(bucket.mean[place, r]),
            peak=None if bucket is None or place is None else known(bucket.peak[place, r]),
            censored=None if bucket is None or place is None else known(bucket.censored[place, r]),
            model=None if block is None or row is None else model_name(block, row, r),
            reason=None if block is None or row is None else reason_name(int(block.reason[row, r])),
            coverage=None if block is None or row is None else known(block.coverage[row, r]),
            control=Mode.REACTIVE if allowed is Mode.PREDICTIVE and unusable else allowed,
        )

    def _signals(self, vm_id: str) -> tuple[SignalState, ...]:
        told, bucket = self._of.cycle.signals.newest(vm_id), self._of.cycle.bucket
        if told is None:
            return ()
        at_s, values = told
        place = bucket.vm_ids.index(vm_id) if bucket and vm_id in bucket.vm_ids else None
        means = None if bucket is None or place is None or bucket.signals is None else bucket.signals[place]
        return tuple(
            SignalState(signal=name, value=values[k], time_s=at_s, bucket_mean=None if means is None else known(means[k]))  # type: ignore[arg-type]
            for k, name in enumerate(SIGNALS)
        )

    def _out_of_calibration(self, vm_id: str) -> list[str]:
        block = self._of.cycle.forecast
        row = _row(block, vm_id)
        if block is None or row is None:
            return []
        return [name for r, name in enumerate(RESOURCES) if block.reason[row, r] == NoForecast.OUT_OF_CALIBRATION]

    def _violation_minutes(self, vm_id: str) -> float | None:
        sums = self._of.cycle.ledger.sla.by_vm.get(vm_id)
        return None if sums is None else sums.violation_minutes

    def _name(self, vm_id: str) -> str:
        vm = self._of.cycle.fleet.vms.get(vm_id)
        return vm.domain.name if vm else vm_id


def _row(block: ForecastBlock | None, vm_id: str) -> int | None:
    return block.vm_ids.index(vm_id) if block is not None and vm_id in block.vm_ids else None


def _expected(block: ForecastBlock | None, r: int, level: float | None) -> float | None:
    """What was expected of a bucket LEAD_STEPS before it began: the mean (`level` None) or a quantile."""
    if block is None:
        return None
    return known(block.mean[0, r, LEAD_STEPS] if level is None else block.quantiles[0, r, LEAD_STEPS, block.levels.index(level)])


def _in_force(allocation: Allocation, r: int) -> int | None:
    if r == CPU:
        vcpus, quota = allocation.vcpus, allocation.cpu_quota_millicores
        full = None if vcpus is None else vcpus * 1000
        return full if quota in (None, UNLIMITED) else quota if full is None else min(quota, full)
    return {
        MEMORY: allocation.memory_bytes,
        DISK: allocation.disk_bytes_per_s,
        NET_RX: allocation.net_rx_bits_per_s,
        NET_TX: allocation.net_tx_bits_per_s,
    }[r]


def _committed(allocations: Sequence[Allocation]) -> Committed:
    def total(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None and value != UNLIMITED]
        return sum(known) if len(known) == len(values) else None

    return Committed(
        cpu_millicores=total([_in_force(a, CPU) for a in allocations]),
        memory_bytes=total([a.memory_bytes for a in allocations]),
        net_bits_per_s=total([a.net_rx_bits_per_s for a in allocations]),
    )


def _integer(value: float) -> int | None:
    return None if math.isnan(value) else int(value)


def _column(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(known(value) for value in values)
