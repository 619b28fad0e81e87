"""Questions about a fleet in, checked plans out: what moves, what holds, what it costs; what is wrong does not pass the checker."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.cli import cli
from coordinator.forecast.aggregate.answer import GroupSums
from coordinator.model import N_RESOURCES, FleetPlacement, ForecastBlock, HostState, Move
from coordinator.placement.check import Inputs, check_plan
from coordinator.placement.engines import ENGINES
from coordinator.placement.explain.plan import Placed
from coordinator.placement.explain.receipts import digest_of, read_problem, write_problem
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.fleet.site_file import parse_site
from coordinator.placement.problem import I32, Problem, Solution
from coordinator.placement.search.plain_search import search_plainly
from coordinator.placement.solve import place_fleet, replay
from coordinator.store.placements import PlacementReceipts
from shared.config import PlacementConfig
from shared.errors import ConfigError
from shared.refusal import RefusalCode
from shared.units import CPU, GIB, NET_TX

SLEEPY = '[[pools]]\nname = "p"\nsleep = true\n'


def fleet(make: Any, *per_host: str, **over: Any) -> tuple[HostState, ...]:
    vms = over.pop("vms", {})
    sizes = {"cpu_millicores": 4000, **over}
    return tuple(
        make.host(
            *(make.vm(v, **{"host_id": f"h{h}", "quota": 200, "memory": GIB, **vms.get(v, {})}) for v in members), host_id=f"h{h}", **sizes
        )
        for h, members in enumerate(per_host)
    )


def place(hosts: tuple[HostState, ...], forecast: ForecastBlock, site: str = "", **over: Any) -> Placed:
    return place_fleet(PlacementRequest(hosts=hosts, forecast=forecast, site=parse_site(site), **over))


def moves_of(placed: Placed) -> dict[str, str]:
    return {move.vm_id: move.to_host for move in placed.plan.moves}


def test_an_overload_that_pays_for_a_move_is_cured_and_a_small_one_is_left(make: Any) -> None:
    hosts = fleet(make, "abc", "d")
    placed = place(hosts, make.of_cpu({"a": 2000, "b": 1900, "c": 1000, "d": 500}))
    assert placed.plan.status == "feasible"
    assert len(placed.plan.moves) == 1
    move = placed.plan.moves[0]
    assert (move.from_host, move.to_host) == ("h0", "h1") and move.gain > move.cost > 0
    assert "run short of CPU" in move.why
    assert placed.plan.after["overload"] == 0.0 < placed.plan.before["overload"]
    assert placed.plan.saving == pytest.approx(sum(placed.plan.before.values()) - sum(placed.plan.after.values()))
    short = np.full(12, 1000.0)
    short[3] = 1050.0
    little = place(fleet(make, "ab", "c"), make.of_cpu({"a": short, "b": 3000, "c": 100}), "[moving]\nbase = 0.01")
    assert (little.plan.status, little.plan.code, little.plan.moves) == ("no_beneficial_move", RefusalCode.NO_BENEFICIAL_MOVE, ())
    assert little.plan.before["overload"] > 0


def test_hosts_are_emptied_where_they_may_sleep_and_not_where_that_saves_too_little(make: Any) -> None:
    curves = dict.fromkeys("abcd", 400)
    hosts = fleet(make, "ab", "c", "d")
    placed = place(hosts, make.of_cpu(curves), SLEEPY)
    assert placed.plan.hosts_after == 1
    assert placed.plan.sleep == placed.plan.empty and len(placed.plan.empty) == 2
    assert placed.plan.energy[0].kwh_after < placed.plan.energy[0].kwh_before
    dear = place(hosts, make.of_cpu(curves), SLEEPY + "[moving]\nbase = 0.05\n")
    assert dear.plan.moves == ()
    idle = place(hosts, make.of_cpu(curves))
    assert idle.plan.sleep == (), "hosts sleep only where the site says that they may"


def test_peaks_at_other_times_share_a_host(make: Any) -> None:
    early, late = np.r_[np.full(6, 3500.0), np.full(6, 300.0)], np.r_[np.full(6, 300.0), np.full(6, 3500.0)]
    placed = place(fleet(make, "ab", "cd"), make.of_cpu({"a": early, "b": early, "c": late, "d": late}), z=0.0)
    assert placed.plan.after["overload"] == 0.0
    assert len(placed.plan.moves) == 2


def test_maintenance_empties_a_host_and_wakes_a_sleeping_one_for_it(make: Any) -> None:
    hosts = fleet(make, "ab", "cd", "")
    hosts = (hosts[0], hosts[1], replace(hosts[2], alive=False))
    site = SLEEPY + '[[hosts]]\nhosts = ["h0"]\nstate = "maintenance"\n'
    forecast = make.of_cpu(dict.fromkeys("abcd", 1900))
    placed = place(hosts, forecast, site, asleep=frozenset({"h2"}))
    assert moves_of(placed) == {"a": "h2", "b": "h2"}
    assert (placed.plan.wake, placed.plan.empty) == (("h2",), ("h0",))
    assert all("to be emptied" in move.why for move in placed.plan.moves)
    held = place(hosts, forecast, site)  # h2 is just silent
    assert "h2" not in moves_of(held).values()


def test_energy_budgets_pack_tighter_and_what_they_cannot_keep_is_told(make: Any) -> None:
    hosts = fleet(make, "ab", "cd", "ef")
    forecast = make.of_cpu(dict.fromkeys("abcdef", 600))
    cheap = '[[pools]]\nname = "p"\nsleep = true\nenergy_price_per_kwh = 0.01\n'
    free = place(hosts, forecast, cheap + "[moving]\nbase = 0.002\n")
    assert free.plan.moves == ()
    for kind in ("hard", "priced"):
        budget = f'energy_kwh_per_day = 3.8\nenergy_budget = "{kind}"\n'
        kept = place(hosts, forecast, cheap + budget + "[moving]\nbase = 0.002\n")
        assert kept.plan.hosts_after == 1
        assert kept.plan.energy[0].kwh_after < 3.8 / 24
        assert not any("budget" in note for note in kept.plan.notes)
    tiny = place(hosts, forecast, cheap + 'energy_kwh_per_day = 0.5\nenergy_budget = "hard"\n')
    assert any("more than its budget" in note for note in tiny.plan.notes)


@pytest.mark.parametrize("dead", ["mean", "stddev"])
def test_a_forecast_that_is_no_number_keeps_its_vm_where_it_is(make: Any, dead: str) -> None:
    forecast = make.of_cpu({"a": 3000, "b": 3000, "c": 3000})
    getattr(forecast, dead)[0, CPU, 3] = np.nan
    placed = place(fleet(make, "abc", ""), forecast)
    assert "a" not in moves_of(placed) and placed.plan.moves


def test_whatever_is_wrong_with_the_inputs_holds_everything_with_a_name_for_it(make: Any) -> None:
    forecast = make.of_cpu({"a": 3000, "b": 3000})
    hosts = fleet(make, "ab", "")
    negative = make.of_cpu({"a": -5.0, "b": 3000})
    together = '[[rules]]\nname = "x"\nkind = "together"\nvms = ["*"]\n[[rules]]\nname = "y"\nkind = "apart"\nvms = ["a", "b"]'
    cases = (
        (place((), forecast), RefusalCode.EMPTY_FLEET, "0 hosts are heard"),
        (place(hosts, forecast, '[[hosts]]\nhosts = ["*"]\nstate = "maintenance"'), RefusalCode.NO_TARGET, "all 2 hosts"),
        (place(hosts, forecast, together), RefusalCode.CONTRADICTORY_RULES, "'x'"),
        (place(hosts, negative), RefusalCode.INVALID_VALUE, "placement.mean[0, 0] = -5.0: allowed numbers from 0"),
    )
    for placed, code, told in cases:
        assert (placed.plan.status, placed.plan.code, placed.plan.moves) == ("hold", code, ())
        assert told in placed.plan.detail


def test_an_overload_that_nothing_can_cure_is_eased_and_not_worsened(make: Any) -> None:
    placed = place(fleet(make, "abcdefgh", "ij"), make.of_cpu(dict.fromkeys("abcdefghij", 8000)))
    assert placed.plan.after["overload"] <= placed.plan.before["overload"]
    assert placed.plan.status in ("feasible", "no_beneficial_move")


def test_an_engine_that_lies_is_caught_by_the_checker(make: Any) -> None:
    def crowd(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
        return Solution(place=np.zeros_like(problem.home), cost=0.0, bound=-np.inf, engine="liar")

    hosts = fleet(make, "ab", "cd", memory_commit_bytes=3 * GIB)
    # c and d stand on a host that is to be emptied, so the crowd is worth a broken limit
    site = '[[hosts]]\nhosts = ["h1"]\nstate = "maintenance"\n[penalty_per_minute]\nnormal = 1000.0\n'
    request = PlacementRequest(hosts=hosts, forecast=make.of_cpu(dict.fromkeys("abcd", 100)), site=parse_site(site))
    placed = place_fleet(request, crowd)
    assert (placed.plan.status, placed.plan.code, placed.plan.moves) == ("hold", RefusalCode.PLAN_REFUSED, ())
    assert "h0: memory promised" in placed.plan.detail
    assert placed.place is not None and placed.fleet is not None and (placed.place == placed.fleet.problem.home).all()


def test_an_engine_that_dies_holds_everything_and_its_bound_is_the_plans(make: Any) -> None:
    def die(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
        raise ZeroDivisionError("in a kernel")

    def prove(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
        found = search_plainly(problem, seed=seed, effort=effort, deadline_s=deadline_s)
        return replace(found, bound=0.9 * found.cost, optimal=True)

    request = PlacementRequest(hosts=fleet(make, "ab", "cd"), forecast=make.of_cpu(dict.fromkeys("abcd", 100)), site=parse_site(SLEEPY))
    plan = place_fleet(request, die).plan
    assert (plan.status, plan.code, plan.detail) == ("hold", RefusalCode.SOLVER_LOST, "ZeroDivisionError: in a kernel")
    plan = place_fleet(request, prove).plan
    assert plan.status == "optimal" and plan.gap == pytest.approx(0.1)
    gap = place_fleet(request).plan.gap
    assert gap is not None and 0.0 <= gap < 0.01, "two hosts into one: the bound meets it"


def test_a_bound_that_dies_costs_no_plan(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(problem: Problem, *, deadline_s: float) -> None:
        raise ArithmeticError("no basis")

    monkeypatch.setattr("coordinator.placement.solve.lower_bound", die)
    request = PlacementRequest(hosts=fleet(make, "ab", "cd"), forecast=make.of_cpu(dict.fromkeys("abcd", 100)), site=parse_site(SLEEPY))
    plan = place_fleet(request).plan
    assert plan.status == "feasible" and plan.bound is None and plan.moves


def wide(make: Any, vms: str, size: float) -> tuple[GroupSums, GroupSums]:
    spread = np.full((1, N_RESOURCES, 12), size, np.float32)
    one = GroupSums(names=("c",), mean=spread, stddev=spread)
    return GroupSums(names=("none",), mean=spread, stddev=spread), one


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(0, 3), st.booleans()), min_size=2, max_size=14),
    st.integers(0, 300),
    st.sampled_from(
        ["", SLEEPY, '[[pools]]\nname = "s"\nhosts = ["h3"]\nspot = true\n[[pools]]\nname = "p"\nreserve = 0.1\nsleep = true\n']
    ),
    st.sampled_from(["", '[[rules]]\nname = "r"\nkind = "apart"\nclients = ["c"]\nlimit = 2\n']),
)
def test_every_plan_passes_the_checker_and_is_never_worse_than_what_is(
    make: Any, drawn: list[tuple[int, int, int, bool]], stddev: int, pools: str, rules: str
) -> None:
    per_host: list[list[Any]] = [[], [], [], []]
    for i, (home, _, priority, grouped) in enumerate(drawn):
        policy = {"client": "c"} if grouped else {}
        per_host[home].append(make.vm(f"v{i:02}", host_id=f"h{home}", quota=200, memory=GIB, priority=priority, policy=policy))
    hosts = tuple(make.host(*vms, host_id=f"h{h}", cpu_millicores=4000, memory_commit_bytes=5 * GIB) for h, vms in enumerate(per_host))
    wave = 1.0 + 0.5 * np.sin(np.arange(12))
    forecast = make.of_cpu({f"v{i:02}": 100.0 * load * wave for i, (_, load, _, _) in enumerate(drawn)}, float(stddev))
    placed = place(hosts, forecast, pools + rules, together=wide(make, "", 2.0 * stddev))
    assert placed.plan.status in ("feasible", "no_beneficial_move"), placed.plan.detail
    assert placed.plan.saving >= 0.0
    assert sum(placed.plan.after.values()) == pytest.approx(sum(placed.plan.before.values()) - placed.plan.saving)


def asked(vm_id: str, target: str, source: str = "h0") -> Move:
    return Move(vm_id=vm_id, from_host=source, to_host=target, gain=1.0, cost=0.0, why="")


BAD = {
    "not on h1": asked("a", "h2", source="h1"),
    "cannot be a target": asked("a", "h9"),
    "h3 is silent, paused or off": asked("a", "h3"),
    "h2 is in maintenance": asked("a", "h2"),
    "may not be moved": asked("f", "h1"),
    "moved too recently": asked("n", "h1"),
    "critical, and h4 is spot": asked("k", "h4"),
    "rule 'pin' does not allow h1": asked("p", "h1"),
    "rule 'stay' forbids it": asked("s", "h1"),
    "rule 'apart' broken by 1, before by 0": asked("a", "h1"),
    "h1 is forbidden to it": asked("x", "h1"),
    "h1: memory promised": asked("m", "h1"),
    "overload changes by": asked("b", "h1"),
}


@pytest.mark.parametrize("told", list(BAD))
def test_the_checker_names_what_is_wrong(make: Any, told: str) -> None:
    vms = {
        "f": {"cannot": {"migrate": "vfio"}},
        "n": {"since_move_s": 10.0},
        "k": {"priority": 3},
        "m": {"memory": 80 * GIB},
    }
    hosts = fleet(make, "abfnkpsxm", "c", "", "", "", vms=vms, memory_commit_bytes=90 * GIB)
    hosts = (*hosts[:1], replace(hosts[1], capacity=fleet(make, "c", memory_commit_bytes=8 * GIB)[0].capacity), hosts[2], *hosts[3:])
    hosts = tuple(replace(host, alive=host.host_id != "h3") for host in hosts)
    site = parse_site(
        '[[pools]]\nname = "spot"\nhosts = ["h4"]\nspot = true\n[[hosts]]\nhosts = ["h2"]\nstate = "maintenance"\n'
        '[[rules]]\nname = "pin"\nkind = "pinned"\nvms = ["p"]\nhosts = ["h0"]\n[[rules]]\nname = "stay"\nkind = "fixed"\nvms = ["s"]\n'
        '[[rules]]\nname = "apart"\nkind = "apart"\nvms = ["a", "c"]\n'
    )
    forecast = make.of_cpu({**dict.fromkeys("afnkpsxm", 50), "b": 100, "c": 3950})
    given = Inputs(hosts=hosts, forecast=forecast, site=site, forbidden=frozenset({("x", "h1")}), z=0.0)
    nothing = {"overload": 0.0, "hosts": 0.0}
    faults = check_plan(given, (BAD[told],), nothing, nothing)
    assert any(told in fault for fault in faults), faults
    ten_times = 5.0 * 12 * (50 / 4000) * 0.02 if told == "overload changes by" else None
    if ten_times is not None:  # what is claimed rightly is believed
        (left,) = check_plan(given, (BAD[told],), nothing, {"overload": ten_times, "hosts": 0.0})
        assert left.startswith("hosts changes by")
        (watts,) = re.findall(r"by (-?[0-9.]+) money", left)
        assert check_plan(given, (BAD[told],), nothing, {"overload": ten_times, "hosts": float(watts)}) == ()


def test_the_checker_knows_caps_and_moves_made_twice(make: Any) -> None:
    hosts = fleet(make, "ab", "")
    given = Inputs(hosts=hosts, forecast=make.of_cpu({"a": 1, "b": 1}), site=parse_site("[moving]\nmoves_max = 1\narrivals_max = 1"), z=0.0)
    one, two = (Move(vm_id=v, from_host="h0", to_host="h1", gain=1.0, cost=0.0, why="") for v in "ab")
    nothing = {"overload": 0.0, "hosts": 0.0}
    assert check_plan(given, (one,), nothing, nothing) == ()
    assert check_plan(given, (one, two), nothing, nothing) == ("2 moves: allowed 1", "2 arrivals on one host: allowed 1")
    assert "moved twice" in check_plan(given, (one, one), nothing, nothing)[0]


def test_a_receipt_replays_bit_for_bit_and_a_changed_one_is_found_out(make: Any, tmp_path: Path) -> None:
    forecast = make.of_cpu({v: 900 + 100 * i for i, v in enumerate("abcdef")}, 50.0)
    rules = '[[rules]]\nname = "r"\nkind = "apart"\nvms = ["a", "b"]\n'
    placed = place(fleet(make, "abcd", "ef", ""), forecast, SLEEPY + rules)
    again = place(fleet(make, "abcd", "ef", ""), forecast, SLEEPY + rules)
    assert replace(placed.plan, wall_ms=0.0) == replace(again.plan, wall_ms=0.0)
    assert placed.solved is not None and placed.answer is not None
    assert digest_of(read_problem(write_problem(placed.solved))) == placed.plan.digest
    store = PlacementReceipts(tmp_path, 2)
    for k in range(4):
        store.keep(replace(placed, plan=replace(placed.plan, issued_s=1000 + k)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1002.json", "1002.npz", "1003.json", "1003.npz"]
    problem, plan, answer = store.read(tmp_path / "1003.npz")
    assert isinstance(plan, FleetPlacement) and plan.moves == placed.plan.moves
    assert replay(problem, plan, answer) == ""
    told = CliRunner().invoke(cli, ["placement", "replay", str(tmp_path / "1003.json")])
    assert told.exit_code == 0 and told.output.startswith(f"the same: 6 VMs, {len(plan.moves)} moves, feasible, digest {plan.digest[:12]}")
    (tmp_path / "1002.npz").write_bytes(write_problem(replace(problem, z=problem.z + 1.0)))
    assert CliRunner().invoke(cli, ["placement", "replay", str(tmp_path / "1002.json")]).exit_code == 1
    assert "1 of 6 VMs elsewhere" in replay(problem, plan, np.where(np.arange(6) == 0, 1 - answer[0], answer).astype(np.int32))
    assert "has digest" in replay(replace(problem, z=problem.z + 1e-9), plan, answer)
    with pytest.raises(ConfigError, match=r"placement\.engine = 'other': allowed shards, genetic, exact"):
        replay(problem, replace(plan, engine="other"), answer)
    with pytest.raises(ConfigError, match="not the archive of a problem"):
        read_problem(b"nothing")
    with pytest.raises(ConfigError, match="No such file"):
        store.read(tmp_path / "7.npz")


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_every_engine_that_can_be_chosen_cures_and_replays(make: Any, engine: str) -> None:
    hosts, forecast = fleet(make, "abc", "d", ""), make.of_cpu({"a": 2000, "b": 1900, "c": 1900, "d": 500})
    placed = place(hosts, forecast, SLEEPY, engine=engine)
    plan = placed.plan
    assert (plan.status in ("feasible", "optimal"), plan.engine, plan.detail) == (True, engine, "")
    assert plan.after["overload"] < plan.before["overload"]
    assert placed.solved is not None and placed.answer is not None
    assert replay(placed.solved, plan, placed.answer) == ""


def test_engines_are_named_in_one_way(make: Any) -> None:
    (told,) = [field.type for field in msgspec.structs.fields(PlacementConfig) if field.name == "engine"]
    assert get_args(get_args(told)[0]) == tuple(ENGINES)
    plan = place(fleet(make, "ab", ""), make.of_cpu({"a": 100, "b": 100}), engine="best").plan
    assert (plan.status, plan.code, plan.detail) == (
        "hold",
        RefusalCode.INVALID_VALUE,
        "placement.engine = 'best': allowed shards, genetic, exact, consolidate, plain",
    )


def test_a_search_that_is_cut_says_so(make: Any) -> None:
    placed = place(fleet(make, "abcd", "ef", ""), make.of_cpu(dict.fromkeys("abcdef", 2000)))
    assert placed.solved is not None and not placed.plan.cut
    found = search_plainly(placed.solved, seed=1, effort=1.0, deadline_s=-1.0)
    assert found.cut and found.cost <= sum(placed.plan.before.values())


def test_network_needs_count(make: Any) -> None:
    forecast = make.of_cpu({"a": 100, "b": 100})
    forecast.mean[:, NET_TX] = 8e9
    placed = place(fleet(make, "ab", ""), forecast, z=0.0)
    assert len(placed.plan.moves) == 1
    assert "network out" in placed.plan.moves[0].why
