"""The order and timing of changes."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.planning.diff import Change
from coordinator.planning.order import room_of, schedule
from coordinator.sizing.policy import SizingPolicy
from shared.plan import StepKind
from shared.units import CPU, GIB, MEMORY, NET_RX, NS_PER_S

NOW = 1_000_000 * NS_PER_S
END = NOW + 600 * NS_PER_S
POLICY = SizingPolicy(early_s=(60.0, 300.0, 0.0, 60.0, 60.0))


def change(vm_id: str, kind: StepKind, before: int, value: int, **over: Any) -> Change:
    delta = over.pop("delta", float(value - before))
    return Change(vm_id=vm_id, priority=over.pop("priority", 1), kind=kind, value=value, before=before, delta=delta, reason="", **over)


def test_shrinks_come_first_and_vcpus_before_the_quota_that_needs_them() -> None:
    grow = change("a", StepKind.CPU_QUOTA, 1000, 5000)
    vcpus = change("a", StepKind.VCPUS, 4, 5, delta=0.0)
    shrink = change("z", StepKind.CPU_QUOTA, 4000, 1000)
    slots = schedule([grow, vcpus, shrink], {CPU: 9000.0}, POLICY, now_ns=NOW, deadline_ns=END)
    assert [s.change for s in slots] == [shrink, vcpus, grow]
    assert [s.n for s in slots] == [0, 1, 2]
    assert {s.not_before_ns for s in slots} == {NOW}


def test_growth_waits_for_the_shrink_that_makes_its_room() -> None:
    shrink = change("z", StepKind.MEMORY, 4 * GIB, 3 * GIB)
    grow = change("a", StepKind.MEMORY, 2 * GIB, 3 * GIB)
    waits = schedule([grow, shrink], {MEMORY: 0.5 * GIB}, POLICY, now_ns=NOW, deadline_ns=END)
    assert [s.not_before_ns - NOW for s in waits] == [0, 60 * NS_PER_S]
    measured = schedule([grow, shrink], {MEMORY: 0.5 * GIB}, POLICY, now_ns=NOW, deadline_ns=END, measured_lead_s={StepKind.MEMORY: 90.0})
    assert measured[1].not_before_ns == NOW + 90 * NS_PER_S
    fits = schedule([grow, shrink], {MEMORY: 2.0 * GIB}, POLICY, now_ns=NOW, deadline_ns=END)
    assert fits[1].not_before_ns == NOW


def test_room_goes_to_the_higher_priority_and_the_earlier_ramp() -> None:
    shrink = change("z", StepKind.CPU_QUOTA, 4000, 3000)
    low = change("a", StepKind.CPU_QUOTA, 1000, 2000, priority=0)
    high = change("b", StepKind.CPU_QUOTA, 1000, 2000, priority=2)
    slots = schedule([low, high, shrink], {CPU: 1000.0}, POLICY, now_ns=NOW, deadline_ns=END)
    assert [s.change.vm_id for s in slots] == ["z", "b", "a"]
    assert slots[1].not_before_ns == NOW < slots[2].not_before_ns


def test_growth_ends_before_the_ramp_and_not_long_before() -> None:
    ramp = NOW + 290 * NS_PER_S
    grow = change("a", StepKind.CPU_QUOTA, 1000, 2000, ramp_ns=ramp)
    (slot,) = schedule([grow], {CPU: 9000.0}, POLICY, now_ns=NOW, deadline_ns=END)
    assert slot.not_before_ns == ramp - 61 * NS_PER_S  # one second of lead, one minute of reserve
    slow = change("a", StepKind.MEMORY, GIB, 2 * GIB, ramp_ns=ramp)
    (slot,) = schedule([slow], {MEMORY: 9.0 * GIB}, POLICY, now_ns=NOW, deadline_ns=END)
    assert slot.not_before_ns == NOW


def test_a_growth_of_memory_takes_as_many_measured_strides_as_it_is_long() -> None:
    ramp = NOW + 590 * NS_PER_S
    long, short = change("a", StepKind.MEMORY, GIB, 2 * GIB, ramp_ns=ramp), change("b", StepKind.MEMORY, GIB, GIB + GIB // 25, ramp_ns=ramp)
    slots = schedule([long, short], {MEMORY: 9.0 * GIB}, POLICY, now_ns=NOW, deadline_ns=END, measured_lead_s={StepKind.MEMORY: 6.0})
    begin = {slot.change.vm_id: (ramp - slot.not_before_ns) // NS_PER_S - 300 for slot in slots}
    assert begin == {"a": 15 * 6, "b": 6}  # 1.05 ** 15 > 2


def test_what_is_due_after_the_deadline_is_left_to_a_later_plan() -> None:
    grow = change("a", StepKind.CPU_QUOTA, 1000, 2000, ramp_ns=NOW + 3600 * NS_PER_S)
    assert schedule([grow], {CPU: 9000.0}, POLICY, now_ns=NOW, deadline_ns=END) == ()


def test_room_counts_unknown_limits_as_the_most_they_could_be(make: Any) -> None:
    host = make.host(make.vm("a", quota=None), make.vm("b", quota=-1), make.vm("c", rx=None, cannot={"shape_rx": "sr-iov"}))
    room = room_of(host)
    assert room[CPU] == pytest.approx(16_000 - 8000 - 4000 - 1000)
    assert room[NET_RX] == pytest.approx(10_000e6 - 2 * 100e6)
