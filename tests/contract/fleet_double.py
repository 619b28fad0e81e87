"""An in-memory FleetView with invented but plausible numbers: 4 hosts (one silent), 24 VMs with a daily rhythm, bursts and gaps.

`tick()` moves it one 5-minute cycle on. Deterministic: the same number of ticks shows the same fleet.
As long as the port that it stands for: one method for each view.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from alerts_double import AlertsDouble
from compliance_double import ComplianceDouble
from explained_double import PARTS, resource_why
from operations_double import OperationsDouble
from placing_double import PlacingDouble
from report_scene import ReportsDouble
from running_double import START_S, RunningDouble
from tenancy_double import TenancyDouble

from coordinator.forecast.events.model import Labels
from coordinator.model import LEVELS, Receipt
from coordinator.service import view as vw
from coordinator.service.explained import ForecastWhyView, IssuedPart, ResourceForecastWhy
from coordinator.service.forecasts import ForecastRow, ForecastView, ResourceForecast
from coordinator.service.outlooks import OutlookBlock, OutlookView, ResourceOutlook
from coordinator.service.signals import SignalBatch, SignalsTaken
from coordinator.service.telling import readings_of
from shared.errors import Refusal
from shared.model import Allocation, Capabilities, HostCapacity, Mode, Policy, Priority
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import DESCRIPTIONS, RefusalCode
from shared.units import GIB, RESOURCES

Z = {0.025: -1.96, 0.1: -1.28, 0.25: -0.67, 0.5: 0.0, 0.75: 0.67, 0.9: 1.28, 0.95: 1.64, 0.975: 1.96, 0.99: 2.33}
SCALE = (2600.0, 5.2 * GIB, 24e6, 180e6, 70e6)  # typical demand per resource
KINDS = ("web", "db", "batch", "mail", "cache", "build")
MODELS = ("AutoETS", "HoltWintersDamped", "LightGBM", "SeasonalNaive", "KernelETS")


class FleetDouble(AlertsDouble, OperationsDouble, PlacingDouble, RunningDouble, ComplianceDouble, ReportsDouble, TenancyDouble):
    """FleetView over invented numbers. `sent` collects what writers asked for, `pinned` hosts refuse mode orders."""

    def __init__(self, hosts: int = 4, vms_per_host: int = 6) -> None:
        OperationsDouble.__init__(self)
        self.cycle = 412
        self.sent: list[tuple[str, object, str]] = []
        self.pinned = {"kvm-02"}
        self.paused: set[str | None] = set()
        self.broken: Exception | None = None
        self.is_ready = (True, "ready")
        self.modes = {f"kvm-{h + 1:02}": Mode.PREDICTIVE if h % 2 else Mode.REACTIVE for h in range(hosts)}
        self.home = {f"vm-{h + 1:02}-{v:02}": f"kvm-{h + 1:02}" for h in range(hosts) for v in range(vms_per_host)}
        self.silent = {"kvm-03"} & self.modes.keys()

    def tick(self) -> None:
        self.cycle += 1

    @property
    def now_s(self) -> int:
        return START_S + 300 * self.cycle

    def demand(self, vm_id: str, resource: int, at_s: int) -> float:
        """Mean demand of one bucket: daily wave, noise of its own, a burst every seven hours."""
        rng = random.Random(f"{vm_id}/{resource}")
        size, phase, depth = rng.uniform(0.35, 1.2), rng.uniform(0, 6.3), rng.uniform(0.2, 0.45)
        noise = random.Random(f"{vm_id}/{resource}/{at_s}").gauss(0, 0.05)
        wave = 0.55 + depth * math.sin(at_s / 86_400 * 2 * math.pi + phase) + noise
        burst = 0.45 if (at_s // 300 + int(phase * 40)) % 84 < 5 and resource != 1 else 0.0
        return max(0.02, wave + burst) * size * SCALE[resource]

    def granted(self, vm_id: str, resource: int, at_s: int) -> float | None:
        if resource == 2:
            return None
        ahead = 2 if self.modes[self.home[vm_id]] is Mode.PREDICTIVE else -1
        if vm_id.endswith("03") and ahead < 0:
            return self.demand(vm_id, resource, at_s) * (0.92 if resource == 0 else 1.2)  # capped, and so censored
        hour = max(self.demand(vm_id, resource, at_s + 300 * (ahead - back)) for back in range(6))
        return hour * 1.12

    # -- FleetView

    def fleet(self) -> vw.FleetSummary:
        if self.broken is not None:
            raise self.broken
        stages = (("close", 3.1), ("history", 11.8), ("forecast", 184.2), ("size", 9.4), ("place", 96.0), ("plan", 4.7), ("send", 1.9))
        return vw.FleetSummary(
            name="demo",
            version="0.1.0",
            epoch=3,
            cycle=self.cycle,
            now_s=float(self.now_s),
            clock_speed=300.0,
            hosts_alive=len(self.modes) - len(self.silent),
            hosts_silent=len(self.silent),
            vms=len(self.home),
            agents_connected=len(self.modes) - len(self.silent),
            last_cycle_s=float(self.now_s),
            last_cycle_wall_ms=311.1,
            stages=tuple(vw.StageTime(stage=name, wall_ms=ms) for name, ms in stages),
        )

    def hosts(self) -> Sequence[vw.HostView]:
        return [found for host_id in self.modes if (found := self.host(host_id)) is not None]

    def host(self, host_id: str) -> vw.HostView | None:
        if host_id not in self.modes:
            return None
        silent = host_id in self.silent
        vm_ids = tuple(vm_id for vm_id, home in self.home.items() if home == host_id)
        allocations = [self._allocation(vm_id) for vm_id in vm_ids]
        return vw.HostView(
            id=host_id,
            alive=not silent,
            counts_as_full=silent,
            silent_reason="no heartbeat for 42 s; its agent closed the connection" if silent else None,
            mode=self.modes[host_id],
            mode_pinned=host_id in self.pinned,
            mode_ordered=None,
            paused=None in self.paused or host_id in self.paused,
            paused_by=("coordinator",) if host_id in self.paused else (),
            vms_yielded=0,
            capacity=HostCapacity(
                cpu_millicores=16_000,
                memory_bytes=64 * GIB,
                net_bits_per_s=10_000_000_000,
                cpu_commit_millicores=20_000,
                memory_commit_bytes=58 * GIB,
                net_commit_bits_per_s=9_000_000_000,
            ),
            committed=vw.Committed(
                cpu_millicores=sum(a.cpu_quota_millicores or 0 for a in allocations),
                memory_bytes=sum(a.memory_bytes or 0 for a in allocations),
                net_bits_per_s=sum((a.net_rx_bits_per_s or 0) + (a.net_tx_bits_per_s or 0) for a in allocations),
            ),
            cpu_used_millicores=None if silent else int(sum(self.demand(v, 0, self.now_s) for v in vm_ids)),
            memory_available_bytes=None if silent else 21 * GIB,
            vm_ids=vm_ids,
            last_seen_s=float(self.now_s - (42 if silent else 2)),
            spool_frames=None if silent else 0,
            spool_dropped=None if silent else 0,
            hypervisor="simulated",
            agent_version="0.1.0",
        )

    def vm_ids(self, host_id: str | None = None, client: str | None = None) -> Sequence[str]:
        return sorted(v for v, home in self.home.items() if host_id in (None, home) and client in (None, self._client(v)))

    def vm(self, vm_id: str) -> vw.VmView | None:
        if vm_id not in self.home:
            return None
        number = int(vm_id[-2:])
        cold = number == 5
        host_mode = self.modes[self.home[vm_id]]
        drifting = number == 4 and host_mode is Mode.PREDICTIVE
        states = []
        for r, name in enumerate(RESOURCES):
            granted, demand = self.granted(vm_id, r, self.now_s), self.demand(vm_id, r, self.now_s)
            states.append(
                vw.ResourceState(
                    resource=name,
                    allocation=-1 if granted is None else int(granted),
                    demand=None if cold and r == 1 else demand,
                    peak=None if cold and r == 1 else demand * 1.18,
                    censored=0.34 if granted is not None and demand > granted else 0.0,
                    model=None if cold else MODELS[(number + r) % len(MODELS)],
                    reason="cold_start" if cold else None,
                    coverage=None if cold else (0.52 if drifting else 0.79),
                    control=Mode.REACTIVE if drifting else host_mode,
                )
            )
        return vw.VmView(
            id=vm_id,
            name=self._name(vm_id),
            host_id=self.home[vm_id],
            client=self._client(vm_id),
            application="",
            priority=("critical", "high", "normal", "normal", "low", "low")[number % 6],
            running=True,
            mode=Mode.REACTIVE if drifting else host_mode,
            mode_reason="out_of_calibration: 80 % band covered 52 %" if drifting else None,
            vcpus_max=8,
            memory_max_bytes=16 * GIB,
            net_max_bits_per_s=1_000_000_000,
            allocation=self._allocation(vm_id),
            resources=tuple(states),
            capabilities=Capabilities(balloon=None if number else "no balloon device", migrate="not probed"),
            policy=Policy(priority=Priority.NORMAL, client=self._client(vm_id)),
            violation_minutes=number * (1.5 if host_mode is Mode.PREDICTIVE else 6.5),
        )

    def forecast(self, vm_id: str, horizon_minutes: int) -> ForecastView:
        steps = math.ceil(horizon_minutes / 5)
        resources = []
        for r, name in enumerate(RESOURCES):
            rows = []
            for step in range(steps):
                start_s = self.now_s + 300 * step
                mean = self.demand(vm_id, r, start_s) * 0.98
                stddev = mean * (0.05 + 0.012 * step)
                levels = tuple(mean + Z[q] * stddev for q in LEVELS)
                peaks = tuple(level * 1.15 for level in levels)
                rows.append(ForecastRow(start_s=start_s, mean=mean, stddev=stddev, quantiles=levels, peak_quantiles=peaks))
            resources.append(ResourceForecast(resource=name, model=MODELS[r], reason=None, coverage=0.79, rows=tuple(rows)))
        return ForecastView(vm_id=vm_id, issued_s=self.now_s, horizon_minutes=horizon_minutes, levels=LEVELS, resources=tuple(resources))

    async def why(self, vm_id: str) -> ForecastWhyView:
        """Three members a part; the worker of the VMs on kvm-04 does not answer."""
        away = self.home[vm_id] == "kvm-04"
        resources = []
        for r, name in enumerate(RESOURCES):
            size = self.demand(vm_id, r, self.now_s)
            told = None if away else resource_why(name, size, 0.5 + 0.1 * r)
            spread = {"low": size * 0.8, "high": size * 1.3, "at_capacity_from": None}
            issued = tuple(
                IssuedPart(target=target, minutes=part, middle_minutes=middle, median=size, **spread)
                for target in ("mean", "peak")
                for part, middle in PARTS
            )
            summary = ("5-10 minutes ahead: median_hour counts most.",)
            resources.append(ResourceForecastWhy(resource=name, model=MODELS[r], reason=None, summary=summary, issued=issued, details=told))
        not_now = f"the worker of {vm_id!r} is busy: no answer in 5 s" if away else None
        return ForecastWhyView(vm_id=vm_id, issued_s=self.now_s, not_now=not_now, resources=tuple(resources))

    def outlook(self, vm_id: str) -> OutlookView:
        issued_s = self.now_s // 1800 * 1800
        resources = []
        for r, name in enumerate(RESOURCES):
            blocks = []
            for block in range(12):
                start_s = issued_s + 1800 * block
                mean = self.demand(vm_id, r, start_s)
                levels = tuple(mean * (1.0 + Z[q] * (0.05 + 0.01 * block)) for q in LEVELS)
                blocks.append(OutlookBlock(start_s=start_s, quantiles=levels, peak_quantiles=tuple(level * 1.2 for level in levels)))
            resources.append(ResourceOutlook(resource=name, coverage=0.8, blocks=tuple(blocks)))
        return OutlookView(vm_id=vm_id, issued_s=issued_s, levels=LEVELS, resources=tuple(resources))

    def groups(self, kind: vw.GroupKind | None, limit: int) -> vw.GroupList:
        found = [group for group in self._groups() if kind in (None, group[0])]
        items = tuple(
            vw.GroupSummary(
                kind=of,
                name=name,
                members=len(vm_ids),
                resources=tuple(
                    vw.GroupOutlook(
                        resource=resource,
                        known=1.0,
                        reason=None,
                        coverage=0.81,
                        mean_now=self._sum(vm_ids, r, 0),
                        mean_hour=self._sum(vm_ids, r, 11),
                        low_hour=self._sum(vm_ids, r, 11) * 0.9,
                        high_hour=self._sum(vm_ids, r, 11) * 1.1,
                        highest=max(self._sum(vm_ids, r, step) for step in range(12)) * 1.15,
                    )
                    for r, resource in enumerate(RESOURCES)
                ),
            )
            for of, name, vm_ids in found[:limit]
        )
        return vw.GroupList(issued_s=self.now_s if self.home else None, total=len(found), items=items)

    def group_forecast(self, kind: vw.GroupKind, name: str, horizon_minutes: int) -> vw.GroupForecastView | None:
        vm_ids = next((vm_ids for of, called, vm_ids in self._groups() if (of, called) == (kind, name)), None)
        if not vm_ids:
            return None
        of_vms = [self.forecast(vm_id, horizon_minutes) for vm_id in vm_ids]
        return vw.GroupForecastView(
            kind=kind,
            name=name,
            members=len(vm_ids),
            issued_s=self.now_s,
            horizon_minutes=horizon_minutes,
            levels=LEVELS,
            resources=tuple(
                vw.GroupResourceForecast(resource=name_, known=1.0, reason=None, coverage=0.81, rows=of_vms[0].resources[r].rows)
                for r, name_ in enumerate(RESOURCES)
            ),
        )

    def accuracy(self, window: vw.Window, limit: int) -> vw.AccuracyView:
        def named(*names: str) -> tuple[vw.NamedAccuracy, ...]:
            return tuple(vw.NamedAccuracy(name=name, resources=self._accuracy(i)) for i, name in enumerate(names))

        worst = tuple(
            vw.WorstForecast(vm_id=v, vm_name=self._name(v), resource="cpu_millicores", to_naive=1.4 - i / 50, pairs=900.0)
            for i, v in enumerate(sorted(self.home)[:limit])
        )
        return vw.AccuracyView(
            window=window,
            fleet=self._accuracy(0),
            horizons=named(*(str(5 * (step + 1)) for step in range(12))),
            models=named(*MODELS),
            clients=named("aurora", "borealis", "cirrus")[:limit],
            applications=named("")[:limit],
            worst=worst,
        )

    def vm_accuracy(self, vm_id: str, window: vw.Window) -> vw.VmAccuracy:
        parts = tuple(
            vw.NamedAccuracy(name=name, resources=self._accuracy(int(vm_id[-2:]) + i)) for i, name in enumerate(("5-10", "15-30", "35-60"))
        )
        return vw.VmAccuracy(vm_id=vm_id, window=window, horizons=parts)

    async def history(self, vm_id: str, hours: int) -> vw.HistoryView:
        starts = tuple(self.now_s - 300 * back for back in range(hours * 12, 0, -1))
        series = []
        for r, name in enumerate(RESOURCES):
            demand = [self.demand(vm_id, r, at) for at in starts]
            gap = range(30, 36)  # the agent was away for half an hour
            actual = tuple(None if i in gap else d for i, d in enumerate(demand))
            guess = [d * (1 + 0.06 * math.sin(i)) for i, d in enumerate(demand)]
            series.append(
                vw.ResourceHistory(
                    resource=name,
                    start_s=starts,
                    demand=actual,
                    peak=tuple(None if d is None else d * 1.15 for d in actual),
                    censored=tuple(None if d is None else 0.0 for d in actual),
                    allocation=tuple(self.granted(vm_id, r, at) for at in starts),
                    forecast_mean=tuple(guess),
                    forecast_q10=tuple(g * 0.86 for g in guess),
                    forecast_q90=tuple(g * 1.14 for g in guess),
                )
            )
        return vw.HistoryView(vm_id=vm_id, lead_minutes=60, resources=tuple(series))

    async def plans(self, limit: int, host_id: str | None = None) -> Sequence[Plan]:
        hosts = [h for h in self.modes if host_id in (None, h)]
        made = [
            Plan(
                host_id=h,
                epoch=3,
                sequence=self.cycle - i,
                issued_ns=(self.now_s - 300 * i) * 10**9,
                deadline_ns=(self.now_s - 300 * i + 600) * 10**9,
                steps=(self._step(sorted(self.home)[i % len(self.home)], i),),
            )
            for i in range(limit)
            for h in hosts
        ]
        return made[:limit]

    async def receipts(self, limit: int, vm_id: str | Sequence[str] | None = None) -> Sequence[Receipt]:
        ids = self._asked(vm_id)
        return [self._receipt(ids[i % len(ids)], self.cycle - i) for i in range(min(limit, 40))] if ids else []

    async def receipt(self, receipt_id: str) -> Receipt | None:
        vm_id, _, cycle = receipt_id.removeprefix("r:").rpartition(":")
        return self._receipt(vm_id, int(cycle)) if vm_id in self.home and cycle.isdigit() else None

    async def outcomes(self, limit: int, vm_id: str | Sequence[str] | None = None) -> Sequence[vw.OutcomeView]:
        ids = self._asked(vm_id)
        codes = (RefusalCode.HOST_COMMIT_LIMIT, RefusalCode.COOLDOWN, RefusalCode.READING_STALE, RefusalCode.BELOW_WORKING_SET)
        made = []
        for i in range(min(limit, 60) if ids else 0):
            chosen = ids[(self.cycle * 5 + i * 7) % len(ids)]
            step = self._step(chosen, i)
            refused = i % 4 == 3
            code = codes[i // 4 % len(codes)] if refused else None
            outcome = Outcome(
                step=step,
                state=OutcomeState.REFUSED if refused else (OutcomeState.PARTIAL if i % 9 == 5 else OutcomeState.VERIFIED),
                value=step.before if refused else step.value,
                code=code,
                detail=DESCRIPTIONS[code] if code else "",
                started_ns=(self.now_s - i * 20) * 10**9,
                finished_ns=(self.now_s - i * 20 + 1) * 10**9,
                origin="reactive" if i % 3 == 0 else "plan",
            )
            made.append(vw.OutcomeView(host_id=self.home[chosen], vm_name=self._name(chosen), outcome=outcome))
        return made

    async def tell_signals(self, batch: SignalBatch) -> SignalsTaken:
        readings = readings_of(batch, self.home, self._labels, (self.now_s - 900, self.now_s + 60))
        self.sent.append(("signals", readings, ""))
        vm_ids = {vm_id for reading in readings for vm_id in reading.vm_ids}
        return SignalsTaken(vms=len(vm_ids), taken=sum(len(reading.vm_ids) for reading in readings), replaced=0, late=0)

    def _labels(self) -> dict[str, Labels]:
        return {vm_id: Labels(client=self._client(vm_id), app="shop" if vm_id.startswith("vm-01") else "") for vm_id in self.home}

    async def set_pause(self, host_id: str | None, paused: bool, actor: str) -> vw.PauseView:
        (self.paused.add if paused else self.paused.discard)(host_id)
        return vw.PauseView(fleet=None in self.paused, hosts=tuple(sorted(name for name in self.paused if name is not None)))

    async def set_mode(self, host_id: str, mode: Mode, actor: str) -> vw.HostView:
        if host_id in self.pinned:
            raise Refusal(RefusalCode.LOCALLY_PINNED)
        self.modes[host_id] = mode
        self.sent.append((host_id, mode, actor))
        found = self.host(host_id)
        assert found is not None
        return found

    async def adjust(self, vm_id: str, request: vw.AdjustRequest, actor: str) -> vw.AdjustResult:
        if request.vcpus is not None and request.vcpus > 8:
            detail = f"vcpus: {request.vcpus} is above the domain's maximum; allowed: 1 to 8"
            raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, detail, {"vcpus": request.vcpus, "maximum": 8})
        if not request.dry_run:
            self.sent.append((vm_id, request, actor))
        wanted = {StepKind.VCPUS: request.vcpus, StepKind.MEMORY: request.memory_bytes, StepKind.CPU_QUOTA: request.cpu_quota_millicores}
        steps = tuple(
            Step(id=f"op-{kind}", vm_id=vm_id, kind=kind, value=value, reason="operator", deadline_ns=(self.now_s + 60) * 10**9)
            for kind, value in wanted.items()
            if value is not None
        )
        operation = None if request.dry_run else self.ordered(self.home[vm_id], vm_id, steps, actor)
        return vw.AdjustResult(vm_id=vm_id, host_id=self.home[vm_id], dry_run=request.dry_run, steps=steps, operation_id=operation)

    # -- invention

    def _asked(self, vm_ids: str | Sequence[str] | None) -> list[str]:
        named = self.home if vm_ids is None else (vm_ids,) if isinstance(vm_ids, str) else vm_ids
        return sorted(vm_id for vm_id in named if vm_id in self.home)

    def _groups(self) -> list[tuple[vw.GroupKind, str, list[str]]]:
        found: list[tuple[vw.GroupKind, str, list[str]]] = [("fleet", "", sorted(self.home))] if self.home else []
        found += [("host", host, self._of(host)) for host in sorted(self.modes)]
        return found + [
            ("client", c, [v for v in sorted(self.home) if self._client(v) == c]) for c in sorted(map(self._client, self.home))[::8]
        ]

    def _of(self, host: str) -> list[str]:
        return [vm_id for vm_id, home in self.home.items() if home == host]

    def _sum(self, vm_ids: Sequence[str], resource: int, step: int) -> float:
        return sum(self.demand(vm_id, resource, self.now_s + 300 * step) for vm_id in vm_ids)

    def _accuracy(self, n: int) -> tuple[vw.ResourceAccuracy, ...]:
        return tuple(
            vw.ResourceAccuracy(
                resource=name,
                pairs=3456.0,
                to_naive=0.7 + 0.02 * n + 0.01 * r,
                to_demand=0.05,
                mae=0.06 * SCALE[r],
                bias=(0.01 - 0.004 * n) * SCALE[r],
                coverage_80=0.8 + 0.002 * n,
                coverage_95=None if n == 5 else 0.94,
                above=0.03,
            )
            for r, name in enumerate(RESOURCES)
        )

    def _name(self, vm_id: str) -> str:
        return f"{KINDS[int(vm_id[-2:]) % len(KINDS)]}-{vm_id[3:]}"

    def _client(self, vm_id: str) -> str:
        return ("aurora", "borealis", "cirrus")[int(vm_id[-2:]) % 3]

    def _allocation(self, vm_id: str) -> Allocation:
        cpu, memory, _, rx, tx = (self.granted(vm_id, r, self.now_s) for r in range(5))
        assert cpu and memory and rx and tx
        return Allocation(
            vcpus=4,
            cpu_quota_millicores=int(cpu),
            memory_bytes=int(memory),
            net_rx_bits_per_s=int(rx),
            net_tx_bits_per_s=int(tx),
            disk_bytes_per_s=-1,
        )

    def _step(self, vm_id: str, i: int) -> Step:
        kind = (StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.NET_RX, StepKind.VCPUS)[i % 4]
        before = {"cpu_quota": 1800, "memory": 4 * GIB, "net_rx": 120_000_000, "vcpus": 2}[kind]
        value = {"cpu_quota": 2300, "memory": 5 * GIB, "net_rx": 90_000_000, "vcpus": 3}[kind]
        return Step(
            id=f"s:{vm_id}:{self.cycle}:{i}",
            vm_id=vm_id,
            kind=kind,
            value=value,
            before=before,
            reason="shrink" if value < before else "forecast_peak",
            receipt_id=f"r:{vm_id}:{self.cycle}",
            deadline_ns=(self.now_s + 60) * 10**9,
        )

    def _receipt(self, vm_id: str, cycle: int) -> Receipt:
        return Receipt(
            id=f"r:{vm_id}:{cycle}",
            vm_id=vm_id,
            host_id=self.home[vm_id],
            issued_s=START_S + 300 * cycle,
            shadow=False,
            steps=(self._step(vm_id, 0),),
            inputs={"demand_now_cpu_millicores": 1712.4, "mean_step_2": 2011.0, "stddev_step_2": 140.2},
            trail=(
                "cpu: mean 2011 + 0.5 x 140 > 1800 in force at step 2 (lead 1 s + one cycle): act",
                "cpu: quantile .95 of the peak within 2 steps = 2268",
                "cpu: margin x 1.02 = 2313, rounded to 2300",
                "memory: 4.0 GiB holds the quantile .95 of the peak (3.6 GiB): leave",
            ),
            refused=("host_commit_limit: memory growth of 1 GiB finds 0.4 GiB free on the host",) if cycle % 3 == 0 else (),
        )
