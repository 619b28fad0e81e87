"""Capacity that will be short: which pool or host, when, by how much, and the cheapest fix with names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.learning.shortfall import MAX_NAMED, Shortfall, Sleeper, amount, shortfalls
from coordinator.model import N_RESOURCES
from coordinator.sizing.margin import host_loads
from shared.units import CPU, GIB, HORIZON_STEPS, MEMORY, NET_RX


def loads_of(make: Any, hosts: list[Any], memory: dict[str, Any]) -> Any:
    """Forecast by VM: GiB of memory, one number or one for each step."""
    ids = tuple(vm.domain.vm_id for host in hosts for vm in host.vms)
    mean = np.stack([make.need(cpu=100.0, memory=1.0 * GIB) for _ in ids])
    mean = np.broadcast_to(mean, (len(ids), N_RESOURCES, HORIZON_STEPS)).copy()
    for v, vm_id in enumerate(ids):
        mean[v, MEMORY] = np.broadcast_to(np.asarray(memory[vm_id], float) * GIB, HORIZON_STEPS)
    return host_loads(hosts, make.forecast(ids, mean, np.zeros((len(ids), N_RESOURCES, 1))), None)


def fleet(make: Any, *hosts: list[str]) -> list[Any]:
    return [make.host(*(make.vm(name) for name in names), host_id=f"h{i}") for i, names in enumerate(hosts)]


def capacity(make: Any) -> float:
    """GiB that a host of `make` may promise."""
    value: float = make.host(host_id="x").capacity.memory_commit_bytes / GIB
    return value


def sleeper(host_id: str, gib: float, pool: str = "a", lead_s: float = 300.0, waking: bool = False) -> Sleeper:
    return Sleeper(host_id=host_id, pool=pool, capacity=(8000.0, gib * GIB, np.nan, 1e9, 1e9), lead_s=lead_s, waking=waking)


def found(make: Any, hosts: list[Any], memory: dict[str, Any], *sleepers: Sleeper) -> tuple[Shortfall, ...]:
    pools = {host.host_id: "a" for host in hosts}
    told = shortfalls(loads_of(make, hosts, memory), 0.0, pools, sleepers, make.issued_s)
    return tuple(each for each in told if each.resource == MEMORY)


def test_a_pool_that_fits_is_not_short(make: Any) -> None:
    hosts = fleet(make, ["v0"], ["v1"])
    assert found(make, hosts, {"v0": 1.0, "v1": 1.0}) == ()


def test_a_pool_is_short_when_and_by_how_much_and_wakes_the_fewest(make: Any) -> None:
    hosts, has = fleet(make, ["v0"], ["v1"]), capacity(make)
    ramp = [has] * 4 + [has + 48.0] * 8
    (short,) = found(
        make, hosts, {"v0": ramp, "v1": ramp}, sleeper("s1", 32), sleeper("s2", 64), sleeper("s3", 64), sleeper("other", 500, "b")
    )
    assert (short.pool, short.host_id, short.at_s) == ("a", "", make.issued_s + 4 * 300)
    assert short.missing == pytest.approx(96 * GIB)
    assert (short.wake, short.left) == (("s2", "s3"), 0.0)
    assert short.summary.startswith("pool a short of 96 GiB at ")
    assert short.summary.endswith("UTC, cheapest fix: wake 2 hosts (s2, s3)")


def test_what_wakes_already_counts_first_and_what_is_left_is_said(make: Any) -> None:
    hosts, has = fleet(make, ["v0"]), capacity(make)
    (short,) = found(make, hosts, {"v0": has + 100.0}, sleeper("s1", 30, waking=True), sleeper("s2", 30))
    assert (short.waking, short.wake) == (("s1",), ("s2",))
    assert short.left == pytest.approx(40 * GIB)
    assert short.fix == "1 hosts are waking already (s1), wake 1 hosts (s2), then add 40 GiB of hosts, or give less"


def test_of_equal_sleepers_the_one_that_wakes_fastest(make: Any) -> None:
    hosts = fleet(make, ["v0"])
    (short,) = found(make, hosts, {"v0": capacity(make) + 10.0}, sleeper("s1", 32, lead_s=600.0), sleeper("s2", 32, lead_s=60.0))
    assert short.wake == ("s2",)


def test_a_host_that_is_short_in_a_pool_with_room_moves_the_vm_that_closes_the_gap(make: Any) -> None:
    has = capacity(make)
    hosts = fleet(make, ["big", "mid", "small"], ["other"])
    (short,) = found(make, hosts, {"big": has - 10.0, "mid": 12.0, "small": 3.0, "other": 1.0})  # 5 GiB too many
    assert (short.host_id, short.moves, short.left) == ("h0", (("mid", "h1"),), 0.0)
    assert short.fix == "move 1 VMs (mid to h1)"


def test_two_hosts_do_not_count_on_the_same_room(make: Any) -> None:
    has = capacity(make)
    sizes = {"a0": has, "a1": 10.0, "b0": has, "b1": 10.0, "d": has - 8.0}
    hosts = fleet(make, ["a0", "a1"], ["b0", "b1"], ["c"], ["d"])
    both = found(make, hosts, sizes | {"c": has - 21.0})
    assert [(each.host_id, each.moves) for each in both] == [("h0", (("a1", "h2"),)), ("h1", (("b1", "h2"),))]
    one = found(make, hosts, sizes | {"c": has - 15.0})  # the pool has 23 GiB free, in pieces of 15 and 8
    assert [(len(each.moves), each.left) for each in one] == [(1, 0.0), (0, 10.0 * GIB)]


def test_no_hosts_no_shortfall(make: Any) -> None:
    assert (
        shortfalls(host_loads([], make.forecast((), np.zeros((0, N_RESOURCES, 1)), np.zeros((0, N_RESOURCES, 1))), None), 1.5, {}, (), 0)
        == ()
    )


@pytest.mark.parametrize(
    ("resource", "value", "text"),
    [(MEMORY, 96 * GIB, "96 GiB"), (MEMORY, 2048 * GIB, "2048 GiB"), (CPU, 3500.0, "3.5 cores"), (NET_RX, 250e6, "250 Mbit/s")],
)
def test_amounts_read_as_an_operator_says_them(resource: int, value: float, text: str) -> None:
    assert amount(resource, value) == text


def test_long_lists_are_cut(make: Any) -> None:
    short = Shortfall(
        pool="a", host_id="", resource=MEMORY, at_s=0, missing=1.0 * GIB, wanted=1.0, capacity=1.0, wake=tuple(f"s{i}" for i in range(9))
    )
    assert short.fix == f"wake 9 hosts (s0, s1, s2, s3, s4 and {9 - MAX_NAMED} more)"
