"""From hosts, forecast and site to the placement problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator.forecast.aggregate.answer import GroupSums
from coordinator.model import N_RESOURCES, HostState
from coordinator.placement.cost import cost_of, host_loads
from coordinator.placement.fleet.build import build_fleet
from coordinator.placement.fleet.fleet_problem import FleetProblem, PlacementRequest
from coordinator.placement.fleet.site import Site
from coordinator.placement.fleet.site_file import parse_site
from coordinator.placement.problem import RuleKind
from shared.errors import Refusal
from shared.model import Mode
from shared.refusal import RefusalCode
from shared.units import CPU, DISK, GIB, MEMORY, NET_RX


def block(make: Any, vm_ids: str, cpu: Any = 1000.0, stddev: float = 0.0) -> Any:
    mean = np.zeros((len(vm_ids), N_RESOURCES, 12))
    mean[:, CPU], mean[:, MEMORY] = cpu, GIB
    return make.forecast(tuple(vm_ids), mean, stddev)


def hosts_of(make: Any, *per_host: str, **over: Any) -> tuple[HostState, ...]:
    vms = over.pop("vms", {})
    return tuple(
        make.host(*(make.vm(v, host_id=f"h{h}", **vms.get(v, {})) for v in members), host_id=f"h{h}", **over)
        for h, members in enumerate(per_host)
    )


def built(make: Any, hosts: tuple[HostState, ...], forecast: Any, site: str = "", **over: Any) -> FleetProblem:
    return build_fleet(PlacementRequest(hosts=hosts, forecast=forecast, site=parse_site(site), **over))


def test_cpu_is_cut_into_buckets_only_where_it_changes(make: Any) -> None:
    hosts = hosts_of(make, "ab", "c")
    flat = built(make, hosts, block(make, "abc"))
    assert [cell.bucket for cell in flat.cells if cell.resource == CPU and not cell.promise] == [-1]
    assert flat.problem.minutes[flat.problem.cpu].tolist() == [60.0]
    waves = built(make, hosts, block(make, "abc", np.linspace(500, 1500, 12)))
    assert waves.problem.cpu.sum() == 12
    assert waves.problem.minutes[waves.problem.cpu].tolist() == [5.0] * 12
    assert host_loads(waves.problem, waves.problem.home)[0][0, :12] == pytest.approx(2 * np.linspace(500, 1500, 12), rel=1e-6)


def test_cells_that_no_host_can_run_short_of_are_left_out_and_come_back_when_one_can(make: Any) -> None:
    hosts = hosts_of(make, "ab", "c")
    forecast = block(make, "abc")
    assert NET_RX not in {cell.resource for cell in built(make, hosts, forecast).cells}
    forecast.mean[:, NET_RX] = 4e9  # three of them are more than 10 Gbit/s
    assert NET_RX in {cell.resource for cell in built(make, hosts, forecast).cells}
    assert built(make, hosts, forecast, z=0.0).problem.capacity.max() < 1e12


def test_disks_bind_only_where_the_site_states_them(make: Any) -> None:
    hosts, forecast = hosts_of(make, "ab", "c"), block(make, "abc")
    forecast.mean[:, DISK] = 4e8
    assert DISK not in {cell.resource for cell in built(make, hosts, forecast).cells}
    stated = built(make, hosts, forecast, '[[pools]]\nname = "p"\ndisk_bytes_per_s = 1e9')
    assert DISK in {cell.resource for cell in stated.cells}


def test_silent_and_switched_off_hosts_take_no_part_but_their_vms_count_for_rules(make: Any) -> None:
    hosts = hosts_of(make, "a", "b", "c", "", "")
    hosts = (hosts[0], replace(hosts[1], alive=False), replace(hosts[2], mode=Mode.OFF), hosts[3], replace(hosts[4], paused=True))
    site = '[[hosts]]\nhosts = ["h1", "h3"]\ndomains = { rack = "r" }\n[[rules]]\nname = "s"\nkind = "spread"\nlevel = "rack"\nvms = ["*"]'
    fleet = built(make, hosts, block(make, "abc"), site)
    assert fleet.problem.host_ids == ("h0", "h3")
    assert fleet.left_out == {"h1": "silent: counts as full", "h2": "mode off", "h4": "paused: nothing on it is changed"}
    assert cost_of(fleet.problem, fleet.problem.home).broken == 0.0
    assert cost_of(fleet.problem, np.array([1], np.int32)).broken == fleet.problem.broken_price  # beside b on the silent h1
    asleep = built(make, hosts, block(make, "abc"), site, asleep=frozenset({"h1"}))
    assert asleep.problem.wake_cost[asleep.problem.host_ids.index("h1")] > 0


def test_why_a_vm_stays_is_told(make: Any) -> None:
    site = '[[rules]]\nname = "f"\nkind = "fixed"\nvms = ["d"]\nwhy = "licence dongle"\n[moving]\ndirty_bytes_per_core_s = 1e9'
    vms = {
        "a": {"cannot": {"migrate": "vfio device"}},
        "b": {"policy": {"excluded": True}},
        "c": {"since_move_s": 60.0},
        "g": {"memory": 70 * GIB},
        "h": {"dirty_bytes_per_s": 1e6},
    }
    forecast = block(make, "abcdfgh")
    fleet = built(make, hosts_of(make, "abcdefgh", "", vms=vms), forecast, site)
    told = dict(zip(fleet.problem.vm_ids, fleet.problem.why_fixed, strict=True))
    assert told == {
        "a": "vfio device",
        "b": "excluded by policy",
        "c": "moved recently",
        "d": "licence dongle",
        "e": "no forecast",
        "f": "dirties memory faster than it can be copied",
        "g": "larger than any host",
        "h": "",
    }
    assert any("larger than any host" in note for note in fleet.notes)
    assert fleet.problem.fixed.tolist() == [bool(told[v]) for v in fleet.problem.vm_ids]
    leaving = built(make, hosts_of(make, "c", "", vms=vms), forecast, '[[hosts]]\nhosts = ["h0"]\nstate = "maintenance"')
    assert leaving.problem.why_fixed == ("",), "a host that is to be emptied does not wait for a cooldown"


def test_critical_vms_may_never_be_on_spot_and_others_pay_for_the_risk(make: Any) -> None:
    site = '[[pools]]\nname = "s"\nhosts = ["h1"]\nspot = true\ninterruptions_per_hour = 0.1\n[[pools]]\nname = "own"'
    fleet = built(make, hosts_of(make, "ab", "", vms={"a": {"priority": 3}}), block(make, "ab"), site)
    problem = fleet.problem
    cost = problem.kind_cost[problem.kind]
    assert np.isinf(cost[0, 1]) and cost[0, 0] == 0.0
    assert cost[1, 1] == pytest.approx(0.1 * 5 * 0.01)
    astray = built(make, hosts_of(make, "", "a", vms={"a": {"priority": 3}}), block(make, "a"), site).problem
    assert astray.kind_cost[astray.kind[0]].tolist() == [0.0, astray.broken_price], "a wrong place costs and is finite"


def test_pins_and_failed_pairs_bar_hosts(make: Any) -> None:
    site = '[[rules]]\nname = "p"\nkind = "pinned"\nclients = ["c"]\nhosts = ["h0", "h1"]'
    hosts = hosts_of(make, "ab", "", "", vms={"a": {"policy": {"client": "c"}}})
    problem = built(make, hosts, block(make, "ab"), site, forbidden=frozenset({("b", "h1")})).problem
    assert np.isinf(problem.kind_cost[problem.kind]).tolist() == [[False, False, True], [False, True, False]]


def test_a_host_that_nobody_may_go_to_keeps_who_is_there(make: Any) -> None:
    hosts = hosts_of(make, "a", "b")
    fleet = built(make, hosts, block(make, "ab"), forbidden=frozenset({("", "h1")}), cooling=frozenset({"a"}))
    problem = fleet.problem
    assert problem.kind_cost[problem.kind].tolist() == [[0.0, np.inf], [0.0, 0.0]]
    assert problem.why_fixed == ("moved recently", "")


def test_rules_hold_for_each_client_or_application_by_itself(make: Any) -> None:
    vms = {v: {"policy": {"application": "web" if v in "abc" else "db"}} for v in "abcde"}
    rules = built(
        make,
        hosts_of(make, "abcde", vms=vms),
        block(make, "abcde"),
        '[[rules]]\nname = "r"\nkind = "apart"\neach = "application"\nlimit = 2',
    ).problem.rules
    assert rules.names == ("r (db)", "r (web)")
    assert rules.kind.tolist() == [RuleKind.APART] * 2
    assert [rules.members[rules.start[r] : rules.start[r + 1]].tolist() for r in range(2)] == [[3, 4], [0, 1, 2]]


@pytest.mark.parametrize(
    ("site", "told"),
    [
        (
            '[[rules]]\nname = "x"\nkind = "together"\nvms = ["a", "b"]\n[[rules]]\nname = "y"\nkind = "apart"\nvms = ["*"]',
            r"'x' \(together, host\) and 'y' \(at most 1 in one host\) both hold for 2 VMs",
        ),
        (
            '[[pools]]\nname = "gone"\nhosts = ["z*"]\n[[rules]]\nname = "x"\nkind = "pinned"\nvms = ["a"]\npools = ["gone"]',
            "no host of the fleet is allowed by 'x' together",
        ),
        (
            '[[pools]]\nname = "s"\nspot = true\n[[rules]]\nname = "x"\nkind = "never_spot"\nvms = ["a"]',
            "no host of the fleet is allowed by 'never on spot' together",
        ),
    ],
)
def test_contradictory_rules_are_named(make: Any, site: str, told: str) -> None:
    with pytest.raises(Refusal, match=told) as refused:
        built(make, hosts_of(make, "ab", "c"), block(make, "abc"), site)
    assert refused.value.code is RefusalCode.CONTRADICTORY_RULES


def test_rules_that_only_silent_hosts_could_keep_hold_their_vms_and_nobody_else(make: Any) -> None:
    hosts = hosts_of(make, "a", "b")
    site = '[[rules]]\nname = "x"\nkind = "pinned"\nvms = ["a"]\nhosts = ["h1"]'
    problem = built(make, (hosts[0], replace(hosts[1], alive=False)), block(make, "ab"), site).problem
    assert problem.kind_cost[problem.kind].tolist() == [[problem.broken_price]]


def test_together_in_a_rack_and_apart_on_hosts_is_no_contradiction(make: Any) -> None:
    site = (
        '[[hosts]]\nhosts = ["h0", "h1"]\ndomains = { rack = "r" }\n'
        '[[rules]]\nname = "x"\nkind = "together"\nlevel = "rack"\nvms = ["*"]\n[[rules]]\nname = "y"\nkind = "apart"\nvms = ["*"]'
    )
    assert len(built(make, hosts_of(make, "ab", ""), block(make, "ab"), site).problem.rules) == 2


def test_no_host_to_place_on_is_named(make: Any) -> None:
    forecast = block(make, "ab")
    for hosts, site, code in (
        ((), "", RefusalCode.EMPTY_FLEET),
        (hosts_of(make, "", ""), "", RefusalCode.EMPTY_FLEET),
        (tuple(replace(host, alive=False) for host in hosts_of(make, "a", "b")), "", RefusalCode.EMPTY_FLEET),
        (hosts_of(make, "a", "b"), '[[hosts]]\nhosts = ["*"]\nstate = "maintenance"', RefusalCode.NO_TARGET),
    ):
        with pytest.raises(Refusal) as refused:
            built(make, hosts, forecast, site)
        assert refused.value.code is code


def test_the_correlation_of_a_group_is_what_its_sum_was_seen_to_do(make: Any) -> None:
    vms = {v: {"policy": {"client": "c", "application": "web" if v in "ab" else ""}} for v in "abcd"}
    forecast = block(make, "abcd", stddev=100.0)

    def sums(name: str, variance: float) -> GroupSums:
        spread = np.full((1, N_RESOURCES, 12), np.sqrt(variance), np.float32)
        return GroupSums(names=(name,), mean=spread, stddev=spread)

    # two VMs of 100 each: 20,000 as if independent, 40,000 together; four of the client: 40,000 and 160,000
    together = (sums("web", 35_000.0), sums("c", 100_000.0))
    fleet = built(make, hosts_of(make, "abcd", vms=vms), forecast, together=together)
    problem = fleet.problem
    assert problem.group[0] == problem.group[1] != problem.group[2] == problem.group[3]
    assert problem.rho[problem.group] == pytest.approx([0.75, 0.75, 0.5, 0.5], abs=1e-5)
    independent = built(make, hosts_of(make, "abcd", vms=vms), forecast, together=(sums("web", 20_000.0), sums("c", 40_000.0)))
    assert (independent.problem.group == -1).all()


def test_prices_follow_the_clock_and_empty_hosts_sleep_or_idle(make: Any) -> None:
    hours = ", ".join("1.0" if hour == 10 else "0.2" for hour in range(24))
    site = (
        f'[[pools]]\nname = "p"\nhosts = ["h0"]\nprice_by_hour = [{hours}]\nempty_price_share = 0.5\nenergy_price_per_kwh = 0.0\n'
        '[[pools]]\nname = "q"\nsleep = true\nsleep_watts = 5\nenergy_price_per_kwh = 0.5'
    )
    forecast = replace(block(make, "ab"), issued_s=1_700_000_000 // 86_400 * 86_400 + 9 * 3600 + 1800)  # 09:30: half the hour is dear
    problem = built(make, hosts_of(make, "a", "b"), forecast, site).problem
    assert problem.curve[0] == pytest.approx([0.6] * 11)
    assert problem.empty_cost[0] == pytest.approx(0.3)
    assert problem.curve[1, 0] == pytest.approx(0.0937 * 0.5)
    assert problem.empty_cost[1] == pytest.approx(0.005 * 0.5)


def test_spare_hosts_are_the_largest_empty_ones_and_their_want_is_told(make: Any) -> None:
    hosts = hosts_of(make, "a", "", "")
    hosts = (hosts[0], hosts[1], make.host(host_id="h2", memory_bytes=128 * GIB))
    one = built(make, hosts, block(make, "a"), '[[pools]]\nname = "p"\nspares = 1')
    assert one.problem.closed.tolist() == [False, False, True]
    many = built(make, hosts, block(make, "a"), '[[pools]]\nname = "p"\nspares = 3')
    assert many.problem.closed.tolist() == [False, True, True]
    assert any("keeps 2 of 3 spare hosts" in note for note in many.notes)


def test_a_reserve_is_kept_free_of_demand_and_not_of_promises(make: Any) -> None:
    hosts, forecast = hosts_of(make, "a", "b"), block(make, "ab")
    plain = built(make, hosts, forecast)
    kept = built(make, hosts, forecast, '[[pools]]\nname = "p"\nreserve = 0.25')
    assert kept.problem.capacity[:, 0] == pytest.approx(0.75 * plain.problem.capacity[:, 0])
    assert kept.problem.capacity[:, -1] == pytest.approx(plain.problem.capacity[:, -1])


def test_a_site_without_a_file_says_so(make: Any) -> None:
    fleet = build_fleet(PlacementRequest(hosts=hosts_of(make, "a", "b"), forecast=block(make, "ab")))
    assert any("no site file" in note for note in fleet.notes)
    assert not any("no site file" in note for note in built(make, hosts_of(make, "a", "b"), block(make, "ab")).notes)
    loose = built(make, hosts_of(make, "a", "b"), block(make, "ab"), '[[pools]]\nname = "p"\nhosts = ["h1"]')
    assert any("1 hosts are in no pool of the site (h0" in note for note in loose.notes)
    assert Site().pools == ()
