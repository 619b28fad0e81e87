"""Placement in the decision cycle: what is asked for, what is known of VMs that moved, and what becomes of the answer."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from forecast_blocks import forecast_block
from plain_host import plain_capacity

from coordinator import cycle as cy
from coordinator.cycle import DecisionCycle
from coordinator.fleet import LEFT_KEPT, Fleet
from coordinator.live_placing import LivePlacing
from coordinator.model import BucketBlock, ForecastBlock
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.solve import place_fleet
from coordinator.placement_turns import PlacementTurns
from coordinator.ports import Pool
from coordinator.sizing.policy import SizingPolicy
from shared.config import CoordinatorConfig, CycleConfig, PlacementConfig
from shared.errors import ConfigError
from shared.messages import Hello, Inventory, Status
from shared.metrics import COORDINATOR_METRICS, Metrics
from shared.model import Capabilities, Domain, HostSample, Mode, Policy, VmSample
from shared.units import BUCKET_S, GIB, NS_PER_S

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S
CAPACITY = plain_capacity(cpu_millicores=4_000, memory_bytes=64 * GIB, net_bits_per_s=10**10)
VMS = tuple(
    Domain(
        vm_id=f"vm-{i}", name=f"web{i}", vcpus_max=4, memory_max_bytes=8 * GIB, policy=Policy(client="aurora", application=f"app{i % 2}"),
        capabilities=Capabilities(migrate=None),
    )
    for i in range(4)
)  # fmt: skip


def hello(host_id: str) -> Hello:
    return Hello(host_id=host_id, boot_id="b", agent_version="0", wall_ns=0, capacity=CAPACITY, mode=Mode.PREDICTIVE, mode_pinned=False)


def sampled(vm_ids: list[str], at_s: int, **cells: int) -> HostSample:
    cell = VmSample(cpu_used_millicores=900, memory_used_bytes=GIB, vcpus=4, cpu_quota_millicores=1000, memory_allocated_bytes=2 * GIB)
    cell = msgspec.structs.replace(cell, **cells)
    return HostSample(wall_ns=at_s * NS_PER_S, monotonic_ns=at_s * NS_PER_S, period_ns=5 * NS_PER_S, vms=dict.fromkeys(vm_ids, cell))


def forecast_of(bucket: BucketBlock, cpu: float) -> ForecastBlock:
    mean = np.tile(np.array([cpu, GIB, 0, 1e6, 1e6], np.float32)[None, :, None], (len(bucket.vm_ids), 1, 12))
    return forecast_block(bucket.vm_ids, bucket.start_s + BUCKET_S, mean, stddev=mean * 0.02, models=("naive",))


def asked(cpu: float, *, aggregates: bool = True) -> tuple[DecisionCycle, cy.RequestPlacement]:
    """A cycle over two hosts, all VMs on the first, that has just had its first forecast."""
    cycle = DecisionCycle(CycleConfig(bucket_grace_s=10, aggregates=aggregates), SizingPolicy(), epoch=1)
    for host_id, domains in (("h0", VMS), ("h1", ())):
        cycle.handle(cy.AgentSaid(host_id=host_id, message=hello(host_id)), T0 * NS_PER_S)
        cycle.handle(cy.AgentSaid(host_id=host_id, message=Inventory(domains=domains)), T0 * NS_PER_S)
    for at_s in range(T0 + 5, T0 + BUCKET_S, 5):
        event = cy.SamplesArrived(host_id="h0", samples=(sampled([vm.vm_id for vm in VMS], at_s),))
        cycle.handle(event, at_s * NS_PER_S)
    request = next(i for i in cycle.handle(cy.Tick(), (T0 + BUCKET_S + 10) * NS_PER_S) if isinstance(i, cy.RequestForecast))
    ready = cy.ForecastReady(bucket=request.bucket, forecast=forecast_of(request.bucket, cpu))
    instructions = cycle.handle(ready, (T0 + BUCKET_S + 11) * NS_PER_S)
    return cycle, next(i for i in instructions if isinstance(i, cy.RequestPlacement))


def test_the_first_forecast_asks_for_a_placement_with_the_sums_of_applications_and_clients() -> None:
    cycle, request = asked(1500.0)
    assert [sums.names for sums in request.together] == [("app0", "app1"), ("aurora",)]
    assert asked(1500.0, aggregates=False)[1].together == ()
    placed = place_fleet(PlacementRequest(hosts=request.hosts, forecast=request.forecast, together=request.together))
    assert placed.plan.moves, "6 cores are asked of 4"
    assert cycle.handle(cy.PlacementReady(placed=placed), 0) == []
    assert cycle.placed is placed


def test_the_view_answers_from_the_newest_plan_and_with_nothing_before_it() -> None:
    class Running:
        cycle: DecisionCycle
        placed_ns: int | None = None

    running = Running()
    running.cycle, request = asked(1500.0)
    view = LivePlacing(running)
    assert view.placement().plan is None and view.moves().placements == ()
    assert asyncio.run(view.placement_hosts(5)) == () and asyncio.run(view.placement_host("h0")) is None
    placed = place_fleet(PlacementRequest(hosts=request.hosts, forecast=request.forecast))
    running.cycle.handle(cy.PlacementReady(placed=placed), 0)
    running.placed_ns = 7 * NS_PER_S
    assert (view.placement().solved_s, view.placement().plan) == (7.0, placed.plan)
    (whole,) = view.moves().placements
    assert whole.moves == placed.plan.moves and whole.objective < whole.incumbent
    assert {host.host_id for host in asyncio.run(view.placement_hosts(5))} == {"h0", "h1"}
    told = asyncio.run(view.placement_host("h1"))
    assert told is not None and told.ahead.vms_after == len(placed.plan.moves) and told.parts
    moved = asyncio.run(view.placement_vm(placed.plan.moves[0].vm_id))
    assert moved is not None and moved.ahead.host_after == "h1" and moved.why.text.startswith("moves from h0 to h1")
    stays = asyncio.run(view.why_not("vm-0", "h9"))
    assert stays is None


def test_turns_answer_the_newest_question_with_the_site_and_keep_its_receipt(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('[[pools]]\nname = "p"\nsleep = true\n')
    config = CoordinatorConfig(state_dir=str(tmp_path), placement=PlacementConfig(site=str(path), deviations=2.0, effort=0.5, receipts=3))
    metrics = Metrics(COORDINATOR_METRICS)
    _, question = asked(1500.0)
    answered: list[Placed] = []
    seen: list[PlacementRequest] = []

    class OnePool:
        async def place(self, request: PlacementRequest) -> Placed:
            seen.append(request)
            return place_fleet(request)

    async def run() -> None:
        said: asyncio.Queue[Placed] = asyncio.Queue()
        turns = PlacementTurns(config, metrics, lambda keep, placed: keep(placed))
        turns.ask(replace(question, hosts=()))
        turns.ask(question)
        loop = asyncio.create_task(turns.run(cast("Pool", OnePool()), lambda _: contextlib.nullcontext(), said.put_nowait))
        answered.append(await said.get())
        turns.ask(replace(question, hosts=()))
        answered.append(await said.get())
        loop.cancel()

    asyncio.run(run())
    assert [len(request.hosts) for request in seen] == [2, 0], "the older of two questions that wait is not asked"
    assert (seen[0].z, seen[0].effort, seen[0].site.pools[0].name) == (2.0, 0.5, "p")
    assert [placed.plan.status for placed in answered] == ["feasible", "hold"]
    assert sorted(path.suffix for path in (tmp_path / "placements").iterdir()) == [".json", ".npz"], "what was not solved has no receipt"
    text = metrics.render().decode()
    assert 'tidegate_placements_total{status="hold"} 1.0' in text and "tidegate_placement_gap_ratio NaN" in text
    path.write_text("pools = 3")
    with pytest.raises(ConfigError, match=r"site.toml: pools = 3: allowed"):
        PlacementTurns(config, metrics, lambda keep, placed: keep(placed))


def test_a_vm_that_shows_up_elsewhere_has_moved_whoever_tells_first() -> None:
    for old_tells_first in (True, False):
        fleet = Fleet()
        for host_id, domains in (("h0", VMS[:2]), ("h1", ())):
            fleet.hello(host_id, hello(host_id), T0 * NS_PER_S)
            fleet.inventory(host_id, Inventory(domains=domains))
        then = (T0 + 100) * NS_PER_S
        fleet.sample("h1", sampled([], T0 + 100), then)
        told = [("h0", VMS[:1]), ("h1", VMS[1:2])]
        for host_id, domains in told if old_tells_first else reversed(told):
            fleet.inventory(host_id, Inventory(domains=domains))
        (stayed,), (moved,) = (host.vms for host in fleet.view(None, then + 5 * NS_PER_S))
        assert (stayed.since_move_s, moved.since_move_s) == (1e9, 5.0)
        assert moved.domain.vm_id == "vm-1"


def test_a_vm_is_never_lost_to_messages_that_overtake_each_other() -> None:
    def at(fleet: Fleet) -> dict[str, str]:
        return {vm_id: vm.host_id for vm_id, vm in fleet.vms.items()}

    paused = msgspec.structs.replace(VMS[1], running=False)
    here, both, one = Inventory(domains=VMS[:2]), Inventory(domains=(VMS[0], VMS[1])), Inventory(domains=VMS[:1])
    arrived, coming, nothing = Inventory(domains=VMS[1:2]), Inventory(domains=(paused,)), Inventory(domains=())
    for told, home in (
        ([("h1", arrived), ("h0", both), ("h0", one)], "h1"),  # what the source said before the end comes after the target's word
        ([("h0", one), ("h1", arrived), ("h0", one)], "h1"),
        ([("h1", coming), ("h1", arrived), ("h0", one)], "h1"),
        ([("h1", coming), ("h1", nothing)], "h0"),  # it never came
        ([("h1", arrived), ("h1", nothing)], "h0"),
        ([("h1", arrived), ("h0", one), ("h0", both), ("h1", nothing)], "h0"),  # there and back
    ):
        fleet = Fleet()
        for host_id in ("h0", "h1"):
            fleet.hello(host_id, hello(host_id), 0)
        for host_id, inventory in (("h0", here), ("h1", nothing), *told):
            fleet.inventory(host_id, inventory)
        assert at(fleet) == {"vm-0": "h0", "vm-1": home}, told
        assert {host_id: sorted(host.vm_ids) for host_id, host in fleet.hosts.items()}[home].count("vm-1") == 1
        restored = Fleet()
        restored.restore([(host_id, CAPACITY) for host_id in ("h0", "h1")], {"vm-0": ("h0", VMS[0]), "vm-1": ("h0", VMS[1])})
        for host_id, inventory in told:
            restored.inventory(host_id, inventory)
        assert at(restored) == {"vm-0": "h0", "vm-1": home}, told
    fleet.inventory("h0", nothing)
    assert at(fleet) == {}


def test_vms_that_left_and_never_came_back_do_not_pile_up() -> None:
    fleet = Fleet()
    fleet.hello("h0", hello("h0"), 0)
    for i in range(LEFT_KEPT + 50):
        fleet.inventory("h0", Inventory(domains=(msgspec.structs.replace(VMS[0], vm_id=f"x{i}"),)))
    assert len(fleet._left) == LEFT_KEPT


def test_the_measured_dirty_rate_and_the_kill_switch_reach_the_placement() -> None:
    fleet = Fleet()
    fleet.hello("h0", hello("h0"), 0)
    fleet.inventory("h0", Inventory(domains=VMS[:1]))
    fleet.sample("h0", sampled(["vm-0"], T0, dirty_bytes_per_s=5_000_000), T0 * NS_PER_S)
    fleet.sample("h0", sampled(["vm-0"], T0 + 5), (T0 + 5) * NS_PER_S)  # measured now and then only
    (host,) = fleet.view(None, T0 * NS_PER_S)
    assert host.vms[0].dirty_bytes_per_s == 5e6 and not host.paused
    status = Status(wall_ns=0, mode=Mode.PREDICTIVE, mode_pinned=False, spool_frames=0, spool_dropped=0, paused_by=("fleet",))
    fleet.status("h0", status, T0 * NS_PER_S)
    assert fleet.view(None, T0 * NS_PER_S)[0].paused
