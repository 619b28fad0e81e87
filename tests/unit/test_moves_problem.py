"""Placement's moves as a problem and a goal, and the fleet's demand ahead."""

from __future__ import annotations

import numpy as np
from forecast_blocks import forecast_block
from placed_moves import placed
from plain_host import plain_capacity

from coordinator.fleet import Fleet
from coordinator.model import LEVELS, N_RESOURCES, ForecastBlock, HostState, Outlook, VmState
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.build import build_problem
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.fleet.site import Rule, RuleSort, Site
from coordinator.placement.problem import NOWHERE
from coordinator.planning.moves_problem import demand_ahead, moves_problem
from coordinator.planning.order_moves import order_moves, soft_steps
from shared.model import Allocation, Capabilities, Domain, Mode, Policy
from shared.plan import Step, StepKind
from shared.units import CPU, GIB, HORIZON_STEPS, MEMORY

ISSUED_S = 1_700_001_000
CAPACITY = plain_capacity(cpu_millicores=8_000, memory_bytes=64 * GIB, net_bits_per_s=10**10)


def vm(vm_id: str, host_id: str, **changes: object) -> VmState:
    unknown = np.full(N_RESOURCES, np.nan)
    values: dict[str, object] = {"capabilities": Capabilities(migrate=None), "policy": Policy(client="c")}
    return VmState(
        domain=Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=8 * GIB, **(values | changes)),  # type: ignore[arg-type]
        host_id=host_id,
        allocation=Allocation(vcpus=2, cpu_quota_millicores=1500, memory_bytes=2 * GIB),
        demand_now=unknown,
        peak_now=unknown,
        censored_now=unknown,
        working_set_bytes=float("nan"),
    )


def host(host_id: str, *vms: VmState, alive: bool = True) -> HostState:
    return HostState(host_id=host_id, capacity=CAPACITY, mode=Mode.PREDICTIVE, alive=alive, vms=vms)


def forecast(vm_ids: tuple[str, ...], cpu: float, stddev: float = 0.0) -> ForecastBlock:
    mean = np.zeros((len(vm_ids), N_RESOURCES, HORIZON_STEPS), np.float32)
    mean[:, CPU], mean[:, MEMORY] = cpu, GIB
    return forecast_block(vm_ids, ISSUED_S, mean, stddev=np.full_like(mean, stddev))


def fleet_of(*hosts: HostState) -> Fleet:
    """A fleet that knows these hosts; what runs on them is told by their states."""
    fleet = Fleet()
    for each in hosts:
        fleet.host(each.host_id)
    return fleet


def asked(hosts: tuple[HostState, ...], cpu: float = 500.0, stddev: float = 30.0, **changes: object) -> PlacementRequest:
    vm_ids = tuple(vm.domain.vm_id for host in hosts for vm in host.vms)
    return PlacementRequest(hosts=hosts, forecast=forecast(vm_ids, cpu, stddev), **changes)  # type: ignore[arg-type]


def test_the_goal_is_in_placements_own_problem() -> None:
    hosts = (host("a", vm("v1", "a"), vm("v2", "a", policy=Policy(excluded=True))), host("b"), host("c", alive=False))
    answer = placed(asked(hosts), ("v1", "a", "b"))
    found = moves_problem(answer, hosts, fleet_of(*hosts))
    assert found is not None and answer.fleet is not None
    problem, goal, ready = found
    assert problem.host_ids == ("a", "b")  # c is silent
    assert (problem.home.tolist(), goal.tolist()) == ([0, 0], [1, 0])
    assert problem.why_fixed == ("", "excluded by policy")
    assert problem.mean is answer.fleet.problem.mean
    assert not ready.held.any()
    assert (ready.seconds > 2 * GIB / 125e6).all()
    assert moves_problem(Placed(plan=answer.plan), hosts, fleet_of(*hosts)) is None


def test_flat_cells_count_in_every_step() -> None:
    hosts = (host("a", vm("v1", "a")), host("b"))
    problem = build_problem(asked(hosts))
    assert problem.step is not None
    cells, start = soft_steps(problem)
    assert len(start) == 13
    assert (np.diff(start) == start[1]).all() and start[1] >= 1
    assert set(cells[: start[1]]) == set(np.flatnonzero(~problem.hard))


def test_who_went_elsewhere_meanwhile_counts_there_and_has_no_goal() -> None:
    before = (host("a", vm("v1", "a"), vm("v2", "a"), vm("v3", "a")), host("b"), host("c"))
    answer = placed(asked(before), ("v1", "a", "b"), ("v2", "a", "b"), ("v3", "a", "c"))
    now = (host("a", vm("v3", "a")), host("b"), host("c", vm("v1", "c")))  # v1 went to c, v2 is gone
    found = moves_problem(answer, now, fleet_of(*now))
    assert found is not None
    problem, goal, _ = found
    assert problem.home.tolist() == [2, NOWHERE, 0]
    assert goal.tolist() == [2, NOWHERE, 2]


def test_vms_that_came_meanwhile_and_growths_on_their_way_take_room() -> None:
    before = (host("a", vm("v1", "a")), host("b", vm("v2", "b")))
    answer = placed(asked(before), ("v1", "a", "b"))
    now = (before[0], host("b", vm("v2", "b"), vm("new", "b")))
    fleet = fleet_of(*now)
    step = Step(id="1", vm_id="v2", kind=StepKind.MEMORY, value=3 * GIB, before=2 * GIB, deadline_ns=1)
    fleet.host("b").open_steps[step.id] = step
    found = moves_problem(answer, now, fleet)
    assert found is not None and answer.fleet is not None
    held = {cell.resource: found[2].held[:, c].tolist() for c, cell in enumerate(answer.fleet.cells) if cell.promise}
    assert held[MEMORY] == [0.0, 3.0 * GIB]  # 2 GiB of the new one, 1 GiB of the growth
    assert held.get(CPU, [0.0, 1500.0]) == [0.0, 1500.0]
    assert not np.delete(found[2].held, [c for c, cell in enumerate(answer.fleet.cells) if cell.promise], axis=1).any()


def test_a_rule_of_the_site_holds_on_the_way() -> None:
    """v1 and v2 change hosts, and must not meet: the rule is placement's, and execution's order of moves keeps it, too."""
    rule = Rule(name="pair", kind=RuleSort.APART, vms=("v1", "v2"))
    hosts = (host("a", vm("v1", "a")), host("b", vm("v2", "b")), host("c"))
    answer = placed(asked(hosts, site=Site(rules=(rule,))), ("v1", "a", "b"), ("v2", "b", "a"))
    found = moves_problem(answer, hosts, fleet_of(*hosts))
    assert found is not None
    order = order_moves(*found)
    assert order.moves or set(order.dropped.values()) == {"a rule would be broken on the way"}
    at = {"v1": "a", "v2": "b"}
    for move in order.moves:
        at[found[0].vm_ids[move.vm]] = found[0].host_ids[move.target]
        assert at["v1"] != at["v2"]
    free = moves_problem(placed(asked(hosts), ("v1", "a", "b"), ("v2", "b", "a")), hosts, fleet_of(*hosts))
    assert free is not None and len(order_moves(*free).moves) == 2


def test_demand_ahead_is_the_hours_and_then_the_outlooks() -> None:
    hosts = [host("a", vm("v1", "a"), vm("v2", "a"), vm("v3", "a"))]
    block = forecast(("v1", "v2", "other"), 500.0, 30.0)
    times, demand = demand_ahead(hosts, block, z=2.0)
    assert times.tolist() == [ISSUED_S + 300 * s for s in range(12)]
    np.testing.assert_allclose(demand, 1000.0 + 2.0 * 30.0 * np.sqrt(2))
    quantiles = np.zeros((1, N_RESOURCES, 12, len(LEVELS)), np.float32)
    quantiles[:, CPU, :, LEVELS.index(0.5)] = 2000.0
    quantiles[:, CPU, :, LEVELS.index(0.9)] = 2000.0 + 1.2816 * 40.0
    start_s = ISSUED_S // 1800 * 1800
    outlook = Outlook(issued_s=start_s, vm_ids=("v1",), quantiles=quantiles, peak_quantiles=quantiles, coverage=np.zeros((1, N_RESOURCES)))
    times, demand = demand_ahead(hosts, block, outlook, z=2.0)
    assert times[12] >= ISSUED_S + 3600
    assert (np.diff(times)[12:] == 1800).all()
    np.testing.assert_allclose(demand[12:], 2500.0 + 2.0 * np.hypot(40.0, 30.0), rtol=1e-5)  # v2: the hour's last, for want of better
    assert demand_ahead([], block, outlook)[1].tolist() == [0.0] * 12
