"""Waits that end when the host needs the room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.model import LeverTurns, VmSize
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import size_host
from shared.units import CPU

POLICY = replace(SizingPolicy(), price=(0.0,) * 5, shrink_cooldown_s=0.0)
TURNING = (LeverTurns(turning=True), *(LeverTurns(),) * 4)
SPENT = (LeverTurns(turning=True, ago_s=(120.0, 60.0)), *(LeverTurns(),) * 4)
NEED = {"a": 500.0, "b": 1500.0, "c": 700.0}  # of 1000, 3000 and 1000 in force


def settled(make: Any, limit: int, policy: SizingPolicy = POLICY, **over: Any) -> dict[str, VmSize]:
    """Three VMs that wait: their last hour needed what they hold. `over`: vm_id -> turns."""
    quotas = {"a": 1000, "b": 3000, "c": 1000}
    vms = [
        make.vm(name, quota=quota, turns=over.get(name, TURNING), recent_peak=(float(quota),) * 5, vcpus=8)
        for name, quota in quotas.items()
    ]
    forecast = make.forecast(tuple(quotas), [make.need(cpu=each) for each in NEED.values()])
    sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=limit), forecast, policy, {})
    return {size.vm_id: size for size in sizes}


def waits(size: VmSize, now: float) -> bool:
    return bool(size.lower[CPU] <= now <= size.upper[CPU])


def test_waits_go_on_while_the_host_has_its_reserve(make: Any) -> None:
    sizes = settled(make, limit=5600)
    assert waits(sizes["a"], 1000)
    assert waits(sizes["b"], 3000)
    assert waits(sizes["c"], 1000)


def test_the_largest_surplus_gives_way_first_and_no_more_than_needed(make: Any) -> None:
    sizes = settled(make, limit=5500)  # 50 too much for a tenth of reserve
    assert sizes["b"].target[CPU] == sizes["b"].upper[CPU] == 1500.0
    assert waits(sizes["a"], 1000)
    assert waits(sizes["c"], 1000)
    assert any("the host needs its room" in line for line in sizes["b"].trail)


def test_all_who_wait_give_way_when_the_host_is_full(make: Any) -> None:
    sizes = settled(make, limit=3000, policy=POLICY)
    assert [sizes[name].target[CPU] for name in NEED] == [500.0, 1500.0, 700.0]


@pytest.mark.parametrize("limit", [5500, 3000])
def test_who_has_no_turn_left_keeps_what_it_holds(make: Any, limit: int) -> None:
    sizes = settled(make, limit=limit, b=SPENT)
    assert waits(sizes["b"], 3000)


def test_without_a_reserve_waits_end_only_when_the_host_is_full(make: Any) -> None:
    assert waits(settled(make, limit=5000, policy=replace(POLICY, wait_reserve=0.0))["b"], 3000)
    assert not waits(settled(make, limit=4990, policy=replace(POLICY, wait_reserve=0.0))["b"], 3000)


def test_a_surplus_within_the_slack_is_not_worth_a_turn(make: Any) -> None:
    vms = [make.vm(name, quota=1000, turns=TURNING, recent_peak=(1000.0,) * 5) for name in ("a", "b")]
    forecast = make.forecast(("a", "b"), [make.need(cpu=920.0)] * 2)
    sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=2100), forecast, POLICY, {})
    assert all(waits(size, 1000) for size in sizes)


def climbed(make: Any, censored: float, limit: int = 16_000, policy: SizingPolicy = POLICY, **over: Any) -> VmSize:
    """A VM at its limit of 200, of which the forecast knows no more; another holds 8000."""
    vms = [make.vm("a", quota=200, censored=censored, **over), make.vm("b", quota=8000, vcpus=8)]
    forecast = make.forecast(("a", "b"), [make.need(cpu=150.0), make.need(cpu=7900.0)])
    sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=limit), forecast, policy, {})
    return next(size for size in sizes if size.vm_id == "a")


def test_hidden_demand_is_climbed_to_by_a_multiple_of_the_limit(make: Any) -> None:
    size = climbed(make, censored=0.9)
    assert (size.target[CPU], size.upper[CPU]) == (800.0, 800.0)
    assert size.lower[CPU] > 200.0
    assert any("demand hides behind the limit" in line for line in size.trail)


@pytest.mark.parametrize("censored", [0.0, 0.2, float("nan")])
def test_demand_that_shows_itself_needs_no_climb(make: Any, censored: float) -> None:
    assert climbed(make, censored=censored).target[CPU] == 150.0


def test_only_free_room_beyond_the_reserve_is_lent_and_no_ceiling_passed(make: Any) -> None:
    assert climbed(make, censored=1.0, limit=9450).target[CPU] == 500.0  # 9450 - 945 - 8000, whole granules
    assert waits(climbed(make, censored=1.0, limit=9000), 200)
    steep = replace(POLICY, climb=100.0)
    assert climbed(make, censored=1.0, limit=30_000, policy=steep, vcpus_max=6).target[CPU] == 6000.0


@pytest.mark.parametrize(("limit", "least"), [(2050, 1000.0), (2150, 1000.0)])
def test_the_reserve_is_given_up_before_anybody_is_sized_below_its_median(make: Any, limit: int, least: float) -> None:
    """Medians of 1000 each: with a tenth in reserve 2050 and 2150 would not hold them, and one of the two would get its floor."""
    vms = [make.vm(name, quota=1000) for name in ("a", "b")]
    forecast = make.forecast(("a", "b"), [make.need(cpu=1000.0)] * 2, stddev=make.need(cpu=200.0, memory=0.0, net=0.0))
    sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=limit), forecast, SizingPolicy(), {})
    assert all(size.target[CPU] >= least for size in sizes)


def test_the_reserve_stays_where_the_price_of_it_is_small(make: Any) -> None:
    vms = [make.vm(name, quota=1000) for name in ("a", "b")]
    forecast = make.forecast(("a", "b"), [make.need(cpu=1000.0)] * 2, stddev=make.need(cpu=20.0, memory=0.0, net=0.0))
    sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=2300), forecast, SizingPolicy(), {})
    assert sum(size.target[CPU] for size in sizes) <= 0.9 * 2300 + 20
