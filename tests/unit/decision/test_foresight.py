"""What a fleet has before it: host margins, shortages with their prices, objectives that cannot be met, room for a host that fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator.forecast.aggregate import AggregateForecast
from coordinator.forecast.aggregate.groups import GroupKey
from coordinator.model import LEVELS, N_RESOURCES
from coordinator.planning.weights import contended
from coordinator.sizing.feasible import Objectives, infeasible
from coordinator.sizing.foresight import look_at_fleet
from coordinator.sizing.margin import host_loads
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.scarcity import scarcities
from coordinator.sizing.size import size_host
from coordinator.sizing.spare import kept_free, spare_of, stranded
from coordinator.sizing.weigh import Terms
from shared.units import CPU, DISK, GIB, MEMORY

TERMS = Terms(policy=SizingPolicy())


def fleet(make: Any, *hosts: list[Any], **over: Any) -> list[Any]:
    return [make.host(*vms, host_id=f"h{i}", **over) for i, vms in enumerate(hosts)]


def block(make: Any, hosts: list[Any], cpu: Any, stddev: float = 0.0, memory: Any = 1.0 * GIB) -> Any:
    ids = tuple(vm.domain.vm_id for host in hosts for vm in host.vms)
    cpus, memories = np.broadcast_to(cpu, len(ids)), np.broadcast_to(memory, len(ids))
    mean = np.stack([make.need(cpu=c, memory=m) for c, m in zip(cpus, memories, strict=True)])
    spread = np.zeros((len(ids), N_RESOURCES, 1))
    spread[:, CPU] = stddev
    return make.forecast(ids, mean, spread)


def sums(make: Any, hosts: list[Any], mean: float, stddev: float, known: float = 1.0) -> AggregateForecast:
    shape = (len(hosts), N_RESOURCES, 12)
    filled = {name: np.full(shape, value, np.float32) for name, value in (("mean", mean), ("stddev", stddev))}
    return AggregateForecast(
        issued_s=make.issued_s,
        groups=tuple(GroupKey("host", host.host_id) for host in hosts),
        members=np.ones(len(hosts), np.int64),
        known=np.full(shape[:2], known, np.float32),
        quantiles=np.zeros((*shape, len(LEVELS)), np.float32),
        peak_quantiles=np.zeros((*shape, len(LEVELS)), np.float32),
        reason=np.zeros(shape[:2], np.int8),
        coverage=np.zeros(shape[:2], np.float32),
        **filled,
    )


def test_a_hosts_margin_is_the_root_of_summed_variances_not_a_sum_of_peaks(make: Any) -> None:
    hosts = fleet(make, [make.vm(f"v{i}") for i in range(10)])
    loads = host_loads(hosts, block(make, hosts, 1000.0, 300.0), None)
    assert loads.upper(2.0)[0, CPU, 0] == pytest.approx(10_000 + 2 * 300 * np.sqrt(10))
    assert not loads.learned.any()
    assert np.isnan(loads.capacity[0, DISK])


def test_vms_of_one_client_that_peak_together_widen_it_up_to_the_sum_of_peaks(make: Any) -> None:
    hosts = fleet(make, [make.vm(f"v{i}", policy={"client": "a"}) for i in range(10)])
    forecast = block(make, hosts, 1000.0, 300.0)
    wide = [host_loads(hosts, forecast, None, rho).upper(2.0)[0, CPU, 0] for rho in (0.0, 0.3, 1.0)]
    assert wide[0] < wide[1] < wide[2] == pytest.approx(10_000 + 2 * 3000)
    strangers = fleet(make, [make.vm(f"v{i}", policy={"client": f"c{i}"}) for i in range(10)])
    assert host_loads(strangers, forecast, None, 1.0).upper(2.0)[0, CPU, 0] == pytest.approx(wide[0])


def test_the_forecast_of_the_sum_itself_wins_where_it_holds_every_vm_and_the_same_moment(make: Any) -> None:
    hosts = fleet(make, [make.vm("a"), make.vm("b")])
    forecast = block(make, hosts, 1000.0, 300.0)
    loads = host_loads(hosts, forecast, sums(make, hosts, 2100.0, 600.0))
    assert (loads.mean[0, CPU, 0], loads.stddev[0, CPU, 0], loads.learned[0, CPU]) == (2100.0, 600.0, 1.0)
    for other in (sums(make, hosts, 2100.0, 600.0, known=0.5), replace(sums(make, hosts, 2100.0, 600.0), issued_s=1)):
        assert host_loads(hosts, forecast, other).mean[0, CPU, 0] == 2000.0


def test_vms_without_a_forecast_count_with_their_promise(make: Any) -> None:
    hosts = fleet(make, [make.vm("a", quota=3000), make.vm("stopped", running=False)])
    loads = host_loads(hosts, make.forecast(("other",), make.need()), None)
    assert loads.mean[0, CPU].tolist() == [3000.0] * 12
    assert loads.stddev[0, CPU].tolist() == [0.0] * 12


def test_weights_follow_priority_when_the_margin_comes_near_the_hardware(make: Any) -> None:
    hosts = fleet(make, [make.vm(f"v{i}") for i in range(10)])
    calm, wild = block(make, hosts, 1300.0, 10.0), block(make, hosts, 1300.0, 500.0)
    policy = SizingPolicy()
    assert not contended(hosts[0], host_loads(hosts, calm, None), policy)
    assert contended(hosts[0], host_loads(hosts, wild, None), policy)
    assert not contended(make.host(host_id="unknown"), host_loads(hosts, wild, None), policy)


def test_a_shortage_is_named_with_its_time_its_cost_and_what_more_would_save(make: Any) -> None:
    hosts = fleet(make, [make.vm("a"), make.vm("b", priority=3)], memory_commit_bytes=6 * GIB)
    mean = np.tile(np.stack([make.need(memory=2.0 * GIB)] * 2), (1, 1, 12))
    mean[:, MEMORY, 4:7] = 4.0 * GIB
    forecast = make.forecast(("a", "b"), mean, 0.01 * mean)
    loads = host_loads(hosts, forecast, None)
    (scarce,) = scarcities(hosts, loads, forecast, TERMS)["h0"]
    assert (scarce.resource, scarce.first_step, scarce.last_step) == (MEMORY, 4, 6)
    assert scarce.missing == pytest.approx(2.0 * GIB, rel=0.1)
    assert scarce.penalty == pytest.approx(15 * 0.5, rel=0.1)  # a lacks half of what it wants for fifteen minutes, at 1 a minute
    assert scarce.saves == pytest.approx(15 * 0.25, rel=0.1)  # a gibibyte is a quarter of it
    assert scarce.saves <= scarce.price * (1 + 1e-9)
    assert scarcities(fleet(make, [make.vm("a"), make.vm("b")]), loads, forecast, TERMS) == {}


def test_of_too_many_short_hosts_only_the_shortest_are_solved(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.sizing.scarcity.MOST_SOLVED", 1)
    hosts = [make.host(make.vm(f"v{i}"), host_id=f"h{i}", memory_commit_bytes=(2 + i) * GIB) for i in range(3)]
    forecast = block(make, hosts, 500.0, memory=4.0 * GIB)
    found = scarcities(hosts, host_loads(hosts, forecast, None), forecast, TERMS)
    assert [(host_id, part.missing / GIB, np.isfinite(part.penalty)) for host_id, (part,) in found.items()] == [
        ("h0", 2.0, True),
        ("h1", 1.0, False),
    ]


def test_a_clients_burning_budget_makes_its_shortage_dearer(make: Any) -> None:
    hosts = fleet(make, [make.vm("a"), make.vm("b")], memory_commit_bytes=6 * GIB)
    forecast = block(make, hosts, 500.0, memory=4.0 * GIB)
    loads = host_loads(hosts, forecast, None)
    calm = scarcities(hosts, loads, forecast, TERMS)["h0"][0]
    hot = scarcities(hosts, loads, forecast, replace(TERMS, burn_rate={"a": 9.0, "b": 9.0}))["h0"][0]
    assert hot.penalty == pytest.approx(SizingPolicy().burn_full * calm.penalty)


def test_a_client_of_a_smaller_budget_than_usual_is_served_first(make: Any) -> None:
    names = Objectives(budget=0.01, clients={"strict": 0.004, "lax": 0.5, "usual": 0.01})
    assert [names.tightness(client) for client in ("strict", "lax", "usual", "other")] == [2.5, 0.25, 1.0, 1.0]
    vms = [make.vm(client, policy={"client": client}, memory=GIB) for client in ("strict", "lax", "usual")]
    host = make.host(*vms, memory_commit_bytes=10 * GIB)
    forecast = make.forecast(("strict", "lax", "usual"), make.need(memory=4.0 * GIB), 0.01 * GIB)
    sizes, _ = size_host(host, forecast, SizingPolicy(), {}, tightness={client: names.tightness(client) for client in names.clients})
    strict, lax, usual = (size.target[MEMORY] for size in sizes)
    assert strict >= usual > 2 * lax


def test_objectives_that_can_be_met_are_not_named(make: Any) -> None:
    hosts = fleet(make, [make.vm("a", policy={"client": "x"})])
    assert infeasible(host_loads(hosts, block(make, hosts, 1000.0, 100.0), None), Objectives()) == ()
    assert infeasible(host_loads([], make.forecast((), np.zeros((0, 5, 12))), None), Objectives()) == ()


def test_the_lowest_priority_that_does_not_fit_is_named_with_what_each_client_lacks(make: Any) -> None:
    def client(name: str, priority: int) -> dict[str, Any]:
        return {"policy": {"client": name}, "priority": priority}

    vms = [make.vm("k", vcpus_max=16, **client("key", 3)), make.vm("a", vcpus_max=16, **client("A", 1)), make.vm("b", **client("B", 1))]
    hosts = fleet(make, vms, [make.vm("idle", **client("C", 1))])
    forecast = block(make, hosts, [9000.0, 20_000 / 3, 10_000 / 3, 100.0], 1e-3)
    found = infeasible(host_loads(hosts, forecast, None), Objectives())
    assert [(f.client, f.cause, f.where, round(f.missing)) for f in found] == [("A", "host", "h0", 2000), ("B", "host", "h0", 1000)]
    everywhere = fleet(make, vms, [make.vm("full", **client("C", 0))], cpu_millicores=10_000)
    full = block(make, everywhere, [9000.0, 20_000 / 3, 10_000 / 3, 4000.0], 1e-3)
    fleetwide = [f for f in infeasible(host_loads(everywhere, full, None), Objectives()) if f.cause == "fleet"]
    assert [(f.client, f.where, round(f.missing), f.resource) for f in fleetwide] == [("C", "", 3000, CPU)]


def test_a_ceiling_below_the_need_is_named_by_vm_and_a_stricter_objective_needs_more(make: Any) -> None:
    hosts = fleet(make, [make.vm("a", policy={"client": "x", "cpu_ceiling_millicores": 1200})])
    loads = host_loads(hosts, block(make, hosts, 1000.0, 100.0), None)
    (found,) = infeasible(loads, Objectives(budget=0.01))
    assert (found.cause, found.where, found.client) == ("ceiling", "a", "x")
    assert found.missing == pytest.approx(1000 + 2.326 * 100 - 1200, abs=1)
    assert infeasible(loads, Objectives(budget=0.2)) == ()
    assert infeasible(loads, Objectives(budget=0.2, clients={"x": 0.01})) == (found,)


def test_vms_that_move_together_make_an_objective_infeasible_that_independent_ones_would_not(make: Any) -> None:
    vms = [make.vm(f"v{i}", policy={"client": "x"}) for i in range(10)]
    hosts = fleet(make, vms, cpu_millicores=13_000)
    forecast = block(make, hosts, 1000.0, 300.0)
    assert infeasible(host_loads(hosts, forecast, None), Objectives()) == ()  # 10,000 + 2.33 x 949
    (found,) = infeasible(host_loads(hosts, forecast, None, rho=1.0), Objectives())  # 10,000 + 2.33 x 3,000
    assert (found.cause, round(found.missing, -2)) == ("host", 4000)


def test_any_one_host_may_fail_or_it_is_said_how_much_is_missing(make: Any) -> None:
    hosts = [make.host(make.vm(f"v{i}"), host_id=f"h{i}", memory_commit_bytes=64 * GIB) for i in range(4)]
    forecast = block(make, hosts, 100.0, memory=[40.0 * GIB, 50.0 * GIB, 50.0 * GIB, 60.0 * GIB])
    loads = host_loads(hosts, forecast, None)
    memory = next(s for s in spare_of(loads, 1.5, {}) if s.resource == MEMORY)
    assert (memory.host_id, memory.needed / GIB, memory.free / GIB, memory.missing / GIB) == ("h3", 60.0, 52.0, 8.0)
    assert memory.keep == pytest.approx(60 / 192)
    cpu = next(s for s in spare_of(loads, 1.5, {}) if s.resource == CPU)
    assert cpu.missing == 0.0
    assert stranded(loads, 3, [0, 1, 2, 3], 1.5) == ("v3",)
    assert stranded(loads, 3, [3], 1.5) == ("v3",)


def test_pools_stand_in_for_their_own_hosts_only_and_a_sum_that_fits_may_still_strand_a_vm(make: Any) -> None:
    hosts = [make.host(make.vm(f"v{i}"), host_id=f"h{i}", memory_commit_bytes=10 * GIB) for i in range(4)]
    loads = host_loads(hosts, block(make, hosts, 100.0, memory=[6.0 * GIB, 6.0 * GIB, 6.0 * GIB, 1.0 * GIB]), None)
    pools = {"h0": "a", "h1": "a", "h2": "a", "h3": "b"}
    found = {(s.pool, s.resource): s for s in spare_of(loads, 1.5, pools)}
    assert found["a", MEMORY].missing == 0.0  # 4 + 4 are free for 6
    assert stranded(loads, 0, [0, 1, 2], 1.5) == ("v0",)  # but in no one place
    assert kept_free(list(found.values()), pools, "h0")[MEMORY] == pytest.approx(0.3)
    assert kept_free(list(found.values()), pools, "h3")[MEMORY] == 0.0  # alone in its pool: nobody could take over


def test_growth_leaves_room_for_a_host_that_fails_but_takes_nothing_away_for_it(make: Any) -> None:
    vms = [make.vm("a", memory=2 * GIB), make.vm("b", memory=5 * GIB, censored=0.5)]
    host = make.host(*vms, memory_commit_bytes=10 * GIB)
    forecast = make.forecast(("a", "b"), np.stack([make.need(memory=6.0 * GIB), make.need(memory=5.0 * GIB)]), 1.0)
    free, _ = size_host(host, forecast, SizingPolicy(reserve_share=0.0), {})
    kept, _ = size_host(host, forecast, SizingPolicy(reserve_share=0.0), {}, kept_free=(0.0, 0.2, 0.0, 0.0, 0.0))
    assert free[0].target[MEMORY] == pytest.approx(5 * GIB, rel=0.01)
    assert kept[0].target[MEMORY] == pytest.approx(3 * GIB, rel=0.01)
    all_kept, _ = size_host(host, forecast, SizingPolicy(reserve_share=0.0), {}, kept_free=(0.0, 0.9, 0.0, 0.0, 0.0))
    assert all(size.lower[MEMORY] <= now <= size.upper[MEMORY] for size, now in zip(all_kept, (2 * GIB, 5 * GIB), strict=True))


def test_silent_hosts_are_no_part_of_the_picture(make: Any) -> None:
    hosts = [make.host(make.vm("a"), host_id="h0"), make.host(make.vm("b"), host_id="h1", alive=False)]
    seen = look_at_fleet(hosts, block(make, hosts, 500.0), None, TERMS, objectives=Objectives(), pools={})
    assert seen.loads.host_ids == ("h0",)
    assert seen.stranded == {"": ("a",)}
    assert seen.kept_free("h0", 0) == (0.0,) * N_RESOURCES
    empty = look_at_fleet([], make.forecast((), np.zeros((0, 5, 12))), None, TERMS, objectives=Objectives(), pools={})
    assert (empty.scarce, empty.infeasible, empty.spare) == ({}, (), ())
