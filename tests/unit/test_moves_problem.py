"""Placement's moves as a problem and a goal, and the fleet's demand ahead."""

from __future__ import annotations

import numpy as np
from forecast_blocks import forecast_block
from placed_moves import placed
from plain_host import plain_capacity

from coordinator.model import LEVELS, N_RESOURCES, ForecastBlock, HostState, Outlook, VmState
from coordinator.planning.moves_problem import demand_ahead, goal_of
from coordinator.planning.order_moves import soft_steps
from shared.model import Allocation, Capabilities, Domain, Mode, Policy
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


def test_a_goal_from_moves() -> None:
    full = host("a", vm("v1", "a"), vm("v2", "a", policy=Policy(excluded=True)))
    hosts = [full, host("b"), host("c", alive=False), host("d", alive=False)]
    moves = placed(("v1", "a", "b"), ("v2", "b", "a"), ("v9", "a", "b"), ("v1", "z", "c")).plan.moves
    racks = {"a": "r1", "b": "r2", "c": "r1"}
    problem, goal, seconds = goal_of(hosts, forecast(("v1", "v2"), 500.0, 30.0), moves, racks, frozenset({"d"}))
    assert problem.home.tolist() == [0, 0]
    assert goal.tolist() == [1, 0]  # v2 is not on b, v9 nowhere, and nobody on z
    assert problem.why_fixed == ("", "excluded by policy")
    assert problem.fixed.tolist() == [False, True]
    assert problem.closed.tolist() == [False, False, True, False]  # c is silent, d asleep
    assert problem.domain[1].tolist() == [1, 2, 1, 0]
    assert problem.mean[0].tolist() == [500.0] * 12 + [1500.0, 2.0 * GIB]
    assert problem.variance[0].tolist() == [900.0] * 12 + [0.0, 0.0]
    assert problem.capacity[0].tolist() == [8000.0] * 12 + [float(CAPACITY.cpu_commit_millicores), float(CAPACITY.memory_commit_bytes)]
    assert len(soft_steps(problem)[1]) == 13
    assert (seconds > 2 * GIB / 125e6).all()


def test_a_vm_without_a_forecast_counts_with_its_promise() -> None:
    problem, _, _ = goal_of([host("a", vm("v1", "a"))], forecast(("other",), 500.0), (), {})
    assert problem.mean[0, :12].tolist() == [1500.0] * 12


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
