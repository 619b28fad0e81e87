"""PerfReader: totals that never fall, what a missing event or permission leads to, and descriptors that follow a VM's life."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perf_contract import GONE, FakePerfEvents
from structlog.testing import capture_logs

from agent.ports import PerfCounts
from agent.sampling.perf import HARDWARE, SOFTWARE, Counted, GroupReading, PerfEvent, PerfReader, PerfTarget, advance, parse_group

CGROUP = Path("/sys/fs/cgroup/machine/qemu-1-web.libvirt-qemu")


@pytest.fixture
def events() -> FakePerfEvents:
    return FakePerfEvents()


@pytest.fixture
def reader(events: FakePerfEvents) -> PerfReader:
    return PerfReader(events)


def test_threads_are_summed_and_totals_start_at_their_opening(events: FakePerfEvents, reader: PerfReader) -> None:
    events.now = 50
    assert reader.read("vm", 1, [10, 11], CGROUP) == PerfCounts(**{event.column: 0 for event in PerfEvent})
    events.now += 7
    assert reader.read("vm", 1, [10, 11], CGROUP) == PerfCounts(**{event.column: 14 for event in PerfEvent})
    assert {group.target for group in events.groups} == {PerfTarget(tid=10), PerfTarget(tid=11)}
    assert reader.descriptors == 2 * len(PerfEvent)
    assert reader.obstacle("vm") is None


def test_more_vcpus_than_cpus_are_counted_by_group_and_cpu(events: FakePerfEvents, reader: PerfReader) -> None:
    reader.read("wide", 1, [10, 11, 12], CGROUP)
    assert {group.target for group in events.groups} == {PerfTarget(cgroup=CGROUP, cpu=0), PerfTarget(cgroup=CGROUP, cpu=1)}
    reader.read("without a group", 2, [20, 21, 22], None)
    assert {group.target.tid for group in events.groups} == {0, 20, 21, 22}


def test_a_group_that_will_not_do_says_nothing_about_the_events(events: FakePerfEvents, reader: PerfReader) -> None:
    events.absent = frozenset(PerfEvent)
    assert reader.read("wide", 1, [10, 11, 12], CGROUP) is None
    events.absent = frozenset()
    assert reader.read("vm", 2, [20], CGROUP) is not None


def test_an_unplugged_vcpu_leaves_its_counts_and_an_added_one_starts_at_nothing(events: FakePerfEvents, reader: PerfReader) -> None:
    reader.read("vm", 1, [10, 11], None)
    events.now = 100
    assert reader.read("vm", 1, [10], None) == PerfCounts(**{event.column: 200 for event in PerfEvent})
    assert {group.target.tid for group in events.still_open} == {10}
    reader.read("vm", 1, [10, 12], None)
    events.now = 110
    assert reader.read("vm", 1, [10, 12], None) == PerfCounts(**{event.column: 220 for event in PerfEvent})


def test_another_process_begins_anew_and_forget_closes_all(events: FakePerfEvents, reader: PerfReader) -> None:
    reader.read("vm", 1, [10], None)
    events.now = 9
    assert reader.read("vm", 2, [20], None) == PerfCounts(**{event.column: 0 for event in PerfEvent})
    assert {group.target.tid for group in events.still_open} == {20}
    reader.forget("vm")
    reader.forget("vm")
    assert (events.still_open, reader.descriptors) == ([], 0)


def test_absent_hardware_is_said_once_and_asked_for_once(events: FakePerfEvents, reader: PerfReader) -> None:
    events.absent = frozenset(HARDWARE)
    with capture_logs() as logs:
        for vm in range(3):
            counts = reader.read(f"vm{vm}", vm, [10 + vm], None)
    assert counts is not None
    assert (counts.task_clock_ns_total, counts.cycles_total, counts.instructions_total) == (0, None, None)
    assert len(logs) == len(HARDWARE)
    assert "cycles, instructions, cache_misses: no such event" in (reader.obstacle("vm0") or "")
    assert reader.descriptors == 3 * len(SOFTWARE)


def test_forbidden_perf_is_said_once_and_may_come_with_the_next_vm(events: FakePerfEvents, reader: PerfReader) -> None:
    events.forbidden = True
    with capture_logs() as logs:
        assert [reader.read(vm, 1, [10], None) for vm in ("a", "a", "b")] == [None, None, None]
    assert [line["event"] for line in logs] == ["perf is not available"]
    assert reader.obstacle("a") == "perf is not available: not for you"
    events.forbidden = False
    assert reader.read("a", 1, [10], None) is None, "not tried again each round"
    assert reader.read("c", 2, [20], None) is not None
    assert reader.obstacle("c") is None


def test_a_vcpu_that_cannot_be_counted_makes_the_sum_unknown(events: FakePerfEvents, reader: PerfReader) -> None:
    assert reader.read("vm", 1, [10, GONE], None) is None
    assert reader.read("vm", 1, [10], None) is not None
    assert reader.read("none", 3, [], None) is None


def test_descriptors_are_bounded_and_a_vm_is_counted_when_others_leave_room(events: FakePerfEvents, reader: PerfReader) -> None:
    events.limit = 2 * len(PerfEvent)
    for number, vm in enumerate(("a", "b", "c")):
        reader.read(vm, number, [10 + number], None)
    assert reader.descriptors == events.limit
    assert reader.read("c", 2, [12], None) is None
    assert reader.obstacle("c") == f"perf: the {events.limit} descriptors for it are used up"
    reader.forget("a")
    assert reader.read("c", 2, [12], None) is not None
    assert reader.obstacle("c") is None


def test_a_shared_pmu_is_scaled_and_a_lost_interval_is_unknown(events: FakePerfEvents, reader: PerfReader) -> None:
    events.running_permille = 250
    reader.read("vm", 1, [10], None)
    events.now = 100
    counts = reader.read("vm", 1, [10], None)
    assert counts is not None and counts.cycles_total == 400
    start = advance(None, GroupReading(enabled_ns=10, running_ns=10, values=(5,)))
    lost = advance(start, GroupReading(enabled_ns=30, running_ns=10, values=(5,)))
    assert (lost.known, lost.totals) == (False, (5,))
    found = advance(lost, GroupReading(enabled_ns=50, running_ns=30, values=(25,)))
    assert found == Counted(totals=(45,), seen=GroupReading(enabled_ns=50, running_ns=30, values=(25,))), "20 in a half of the time are 40"
    idle = advance(found, found.seen)
    assert (idle.known, idle.totals) == (True, (45,))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 1000)), max_size=20))
def test_totals_never_fall(steps: list[tuple[int, int, int]]) -> None:
    enabled = running = value = 0
    counted: Counted | None = None
    before = 0
    for idle, busy, growth in steps:
        enabled, running, value = enabled + idle + busy, running + busy, value + growth
        counted = advance(counted, GroupReading(enabled_ns=enabled, running_ns=running, values=(value,)))
        assert counted.totals[0] >= before
        before = counted.totals[0]


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (struct.pack("=5Q", 2, 10, 9, 7, 8), (7, 8)),
        (struct.pack("=3Q", 0, 10, 9), ()),
        (struct.pack("=4Q", 2, 10, 9, 7), None),
        (b"", None),
        (b"x" * 25, None),
    ],
)
def test_a_read_is_parsed_or_refused(data: bytes, values: tuple[int, ...] | None) -> None:
    reading = parse_group(data)
    assert (None if reading is None else reading.values) == values
