"""Why a VM is not on a host: what binds is named, and the change that is told flips it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from coordinator.model import HostState
from coordinator.placement.explain.plan import Placed
from coordinator.placement.explain.readings import hosts_ahead, parts_ahead, vm_ahead
from coordinator.placement.explain.why_not import WhyNot, why, why_not
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.fleet.site_file import parse_site
from coordinator.placement.solve import place_fleet
from shared.units import CPU, GIB, MEMORY

SITE = """
[[pools]]
name = "spot"
hosts = ["h5"]
spot = true
[[pools]]
name = "own"
sleep = true
[[hosts]]
hosts = ["h4"]
state = "maintenance"
[[rules]]
name = "apart"
kind = "apart"
vms = ["a", "d"]
[[rules]]
name = "pin"
kind = "pinned"
vms = ["p"]
hosts = ["h0", "h1"]
"""


def scene(make: Any, site: str = SITE, curve: Any = 1000.0, **over: Any) -> Placed:
    """a, f (fixed), k (critical) and p on h0; d on h1; e on h2, which is short of memory; h3 silent, h4 in maintenance, h5 spot."""
    vms = {"f": {"cannot": {"migrate": "vfio device"}}, "k": {"priority": 3}}
    per_host = ("afkp", "d", "e", "", "", "")
    hosts: list[HostState] = []
    for h, members in enumerate(per_host):
        own = [make.vm(v, **{"host_id": f"h{h}", "quota": 200, "memory": 4 * GIB, **vms.get(v, {})}) for v in members]
        hosts.append(make.host(*own, host_id=f"h{h}", alive=h != 3, **({"memory_commit_bytes": 6 * GIB} if h == 2 else {})))
    request = PlacementRequest(
        hosts=tuple(hosts), forecast=make.of_cpu({v: curve for members in per_host for v in members}), site=parse_site(site)
    )
    return place_fleet(replace(request, **over))


def asked(placed: Placed, vm_id: str, host_id: str) -> WhyNot:
    found = why_not(placed, vm_id, host_id)
    assert found is not None
    return found


def kinds(found: WhyNot) -> list[str]:
    return [binding.kind for binding in found.bindings]


def test_everything_that_binds_is_named(make: Any) -> None:
    placed = scene(make, SITE + "[moving]\nbase = 1.0\n")  # nobody moves
    assert placed.plan.moves == ()
    assert asked(placed, "a", "h0").here and asked(placed, "a", "h0").bindings == ()
    assert "silent" in asked(placed, "a", "h3").bindings[0].text
    assert "maintenance" in asked(placed, "a", "h4").bindings[0].text
    assert "vfio device" in asked(placed, "f", "h1").bindings[0].text
    critical = asked(placed, "k", "h5")
    assert (critical.bindings[0].kind, critical.bindings[0].change) == ("pin", "a priority below critical")
    assert "rule 'pin'" in asked(placed, "p", "h2").bindings[0].text
    ruled = asked(placed, "a", "h1")
    assert ruled.bindings[0].kind == "rule" and "d there already" in ruled.bindings[0].text
    full = asked(placed, "a", "h2")
    assert (full.bindings[0].kind, full.possible) == ("capacity", False)
    assert "2.00 GiB more of promised memory on h2" in full.bindings[0].change
    assert kinds(asked(placed, "k", "h1")) == ["money"]
    assert why_not(placed, "nobody", "h0") is None and why_not(placed, "a", "nowhere") is None and why(placed, "nobody") is None


def test_the_change_that_is_told_flips_it(make: Any) -> None:
    dear = "[moving]\nbase = 0.05\n"
    placed = scene(make, '[[pools]]\nname = "own"\nsleep = true\n' + dear)
    stays = asked(placed, "d", "h0")
    assert kinds(stays) == ["money"]
    told = float(stays.bindings[0].change.split("cost ")[1].split(" less")[0])
    cheaper = scene(make, f'[[pools]]\nname = "own"\nsleep = true\n[moving]\nbase = {0.05 - told - 0.0001:.6f}\nmargin = 0.0\n')
    assert {move.vm_id for move in cheaper.plan.moves} & {"d", "e"}
    assert "stays on h1: the best other host" in why_text(placed, "d")


def why_text(placed: Placed, vm_id: str) -> str:
    found = why(placed, vm_id)
    assert found is not None
    return found.text


def test_a_short_bucket_is_told_with_its_time_and_amount(make: Any) -> None:
    curve = np.full(12, 2000.0)
    curve[7] = 3500.0  # five VMs: 10 cores of 16, but 17.5 in one bucket
    placed = scene(make, "", curve=curve)
    assert placed.plan.moves == ()
    found = asked(placed, "d", "h0")
    assert kinds(found) == ["money"]
    at = placed.plan.issued_s + 7 * 300
    assert f"CPU at {at // 3600 % 24:02}:{at // 60 % 60:02} UTC" in found.bindings[0].text
    assert found.bindings[0].change == f"1.50 cores more of CPU at {at // 3600 % 24:02}:{at // 60 % 60:02} UTC on h0"


def test_caps_are_named(make: Any) -> None:
    site = '[[pools]]\nname = "own"\nsleep = true\n[moving]\nmoves_max = 1\n'
    placed = scene(make, site)
    assert len(placed.plan.moves) == 1
    (move,) = placed.plan.moves
    other = next(v for v in "akp" if v != move.vm_id)
    assert "cap" in kinds(asked(placed, other, "h1"))


def test_a_vm_that_moves_says_why_and_a_fixed_one_why_not(make: Any) -> None:
    placed = scene(make, '[[pools]]\nname = "own"\nsleep = true\n')
    move = placed.plan.moves[0]
    assert why_text(placed, move.vm_id).startswith(f"moves from {move.from_host} to {move.to_host}: helps to empty {move.from_host}")
    assert why_text(placed, "f") == "stays on h0: vfio device"


def test_a_plan_reads_three_ways(make: Any) -> None:
    placed = scene(make, '[[pools]]\nname = "own"\nsleep = true\n')
    hosts = {host.host_id: host for host in hosts_ahead(placed)}
    assert set(hosts) == {"h0", "h1", "h2", "h4", "h5"}
    for when in ("before", "after"):
        assert sum(getattr(host, f"vms_{when}") for host in hosts.values()) == 6
        total = sum(getattr(host, when)[CPU].mean[0] for host in hosts.values())
        assert total == 6000.0, "no demand comes or goes"
    (one,) = hosts_ahead(placed, ("h0",))
    assert one == hosts["h0"] and len(hosts_ahead(placed, limit=2)) == 2
    parts = parts_ahead(placed, "h0")
    assert sum(part.resources[MEMORY].mean[3] for part in parts if part.kind == "client") == one.after[MEMORY].mean[3]
    told = vm_ahead(placed, "a")
    assert told is not None and told.resources[CPU].mean == (1000.0,) * 12
    assert vm_ahead(placed, "nobody") is None and parts_ahead(placed, "nowhere") == ()
    nothing = place_fleet(PlacementRequest(hosts=(), forecast=make.of_cpu({})))
    assert hosts_ahead(nothing) == () and vm_ahead(nothing, "a") is None and why_not(nothing, "a", "h0") is None
