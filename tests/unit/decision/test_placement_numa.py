"""NUMA nodes in placement: who spans them, what that costs, and that a VM goes where one node holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.model import FleetPlacement
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.fleet.numa import node_classes
from coordinator.placement.fleet.site_file import parse_site
from coordinator.placement.solve import place_fleet
from shared.units import CPU, GIB, MEMORY, RESOURCES

TWO_SMALL = {"numa_memory_bytes": (16 * GIB, 16 * GIB), "numa_cpus": (4, 4)}
TWO_LARGE = {"numa_memory_bytes": (64 * GIB, 64 * GIB), "numa_cpus": (16, 16)}


def promises(*sizes: tuple[float, float]) -> np.ndarray:
    found = np.zeros((len(sizes), len(RESOURCES)))
    found[:, MEMORY], found[:, CPU] = [memory * GIB for memory, _ in sizes], [1000.0 * cores for _, cores in sizes]
    return found


def test_who_spans_nodes_where(make: Any) -> None:
    hosts = [make.host(host_id="small", **TWO_SMALL), make.host(host_id="large", **TWO_LARGE), make.host(host_id="one")]
    of_vm, spans = node_classes(promises((8, 2), (32, 2), (8, 6), (128, 2)), hosts)
    assert spans[of_vm].tolist() == [[False, False, False], [True, False, False], [True, False, False], [True, True, False]]


def test_nodes_without_memory_or_cpus_hold_nobody(make: Any) -> None:
    lone = make.host(host_id="a", numa_memory_bytes=(32 * GIB, 0, 512 * GIB), numa_cpus=(4, 4, 0))  # of CPUs alone, and of memory alone
    _, spans = node_classes(promises((64, 2)), [lone])
    assert not spans.any(), "one node that VMs can live in: there is no other side"


def planned(make: Any, slowdown: float, priority: int = 1) -> FleetPlacement:
    vm = make.vm("big", host_id="h0", quota=2000, memory=24 * GIB, memory_max=24 * GIB, priority=priority)
    beside = make.vm("other", host_id="h1", quota=200, memory=GIB)
    stays = make.vm("stays", host_id="h0", quota=200, memory=GIB, policy={"excluded": True})  # h0 cannot be emptied
    hosts = (make.host(vm, stays, host_id="h0", **TWO_SMALL), make.host(beside, host_id="h1", **TWO_LARGE))
    forecast = make.of_cpu({"big": 1000, "other": 100, "stays": 100})
    return place_fleet(PlacementRequest(hosts=hosts, forecast=forecast, site=parse_site(f"numa_slowdown = {slowdown}\n"))).plan


def test_a_vm_goes_where_one_node_holds_it(make: Any) -> None:
    assert planned(make, 0.0).before["kinds"] == 0.0
    plan = planned(make, 0.2)
    (move,) = plan.moves
    assert (move.vm_id, move.to_host) == ("big", "h1")
    assert plan.before["kinds"] == pytest.approx(0.2 * 60 * 0.01)
    assert plan.after["kinds"] == 0.0
    assert "NUMA" in move.why
    assert planned(make, 0.2, priority=3).before["kinds"] == pytest.approx(0.2 * 60 * 0.10), "a critical VM loses more"
