"""The independent checker of moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.model import Move
from coordinator.placement.check_moves import check_moves
from shared.units import GIB


def move(vm_id: str = "a", source: str = "h0", target: str = "h1") -> Move:
    return Move(vm_id=vm_id, from_host=source, to_host=target, gain=1.0, cost=0.0, why="")


def pair(make: Any, **target: Any) -> tuple[Any, Any]:
    full = make.host(make.vm("a", quota=500), make.vm("b", quota=500), host_id="h0", cpu_millicores=2000)
    return full, make.host(host_id="h1", cpu_millicores=2000, **target)


def test_a_good_move_passes(make: Any) -> None:
    curves = make.forecast(("a", "b"), make.need(cpu=1500), 50.0)
    assert check_moves(pair(make), curves, [move()], z=1.5) == ()
    assert check_moves(pair(make), curves, [], z=1.5) == ()


@pytest.mark.parametrize(
    ("moves", "why"),
    [
        ([move("nobody")], "not on h0"),
        ([move(), move()], "moved twice"),
        ([move(source="h1", target="h0")], "not on h1"),
        ([move(target="elsewhere")], "cannot be a target"),
        ([move(target="h0")], "cannot be a target"),
    ],
)
def test_moves_that_make_no_sense(make: Any, moves: list[Move], why: str) -> None:
    problems = check_moves(pair(make), make.forecast(("a", "b"), make.need(cpu=1500)), moves, z=1.5)
    assert any(why in p for p in problems)


def test_targets_that_cannot_take_it(make: Any) -> None:
    curves = make.forecast(("a", "b"), make.need(cpu=1500))
    source, target = pair(make)
    assert "cannot be a target" in check_moves((source, replace(target, alive=False)), curves, [move()], z=1.5)[0]
    assert "memory promised" in check_moves(pair(make, memory_commit_bytes=GIB), curves, [move()], z=1.5)[0]
    assert "CPU promised" in check_moves(pair(make, cpu_commit_millicores=400), curves, [move()], z=1.5)[0]


def test_pinned_vms_and_growing_overload(make: Any) -> None:
    curves = make.forecast(("a", "b", "c"), make.need(cpu=1500))
    pinned = make.host(make.vm("a", quota=500, cannot={"migrate": "vfio"}), make.vm("b", quota=500), host_id="h0", cpu_millicores=2000)
    assert "may not be moved" in check_moves((pinned, pair(make)[1]), curves, [move()], z=0.0)[0]
    relaxed = make.host(make.vm("a", quota=500), host_id="h0", cpu_millicores=2000)
    busy = make.host(make.vm("c", quota=500), host_id="h1", cpu_millicores=2000)
    assert "overload grows" in check_moves((relaxed, busy), curves, [move()], z=0.0)[0]
