"""DirtyRates: one measurement at a time, bounded waiting, and failures that take only their own VM."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.sampling.dirty import MOST_WAITING, RESULT_DEADLINE_S, DirtyRates, DirtyState
from shared.clock import ManualClock
from shared.errors import HostError
from shared.units import MIB, NS_PER_S


class Source:
    """Measurements that end when told; fails the test when two run at once."""

    def __init__(self) -> None:
        self.running: str | None = None
        self.started: list[str] = []
        self.results: dict[str, int | None] = {}
        self.refused: set[str] = set()
        self.bug = False
        self.changed = threading.Condition()

    def start(self, vm_id: str, seconds: int) -> None:
        assert seconds == 1
        if self.bug:
            raise ZeroDivisionError
        if vm_id in self.refused:
            raise HostError("no such domain")
        with self.changed:
            assert self.running is None
            self.running = vm_id
            self.started.append(vm_id)
            self.changed.notify_all()

    def result(self, vm_id: str) -> int | None:
        assert self.running in (vm_id, None)
        rate = self.results.get(vm_id)
        if rate is not None:
            self.running = None
        return rate

    def wait_for(self, vm_id: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: vm_id in self.started, 10)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_795_000_000 * NS_PER_S)


@pytest.fixture
def rates(source: Source, clock: ManualClock) -> Iterator[DirtyRates]:
    rates = DirtyRates(source, clock, poll_s=0.001)
    yield rates
    rates.close(10)
    assert not any(thread.name == "tidegate dirty rates" for thread in threading.enumerate())


def measured(rates: DirtyRates, source: Source, vm_id: str, rate: int) -> None:
    """Ask for one more VM and wait for its result: whatever was asked before is done then."""
    source.results[vm_id] = rate
    assert rates.request(vm_id)
    source.wait_for(vm_id)
    done = threading.Event()
    while rates.newest(vm_id) is None:
        done.wait(0.001)  # bounded by the test's timeout


def test_requests_are_measured_one_after_the_other(rates: DirtyRates, source: Source, clock: ManualClock) -> None:
    assert (rates.newest("a"), rates.age_ns("a")) == (None, None)
    assert not any(thread.name == "tidegate dirty rates" for thread in threading.enumerate())
    assert rates.request("a")
    source.wait_for("a")
    for vm in ("b", "a", "b"):  # a is being measured and b waits: neither is taken twice
        assert rates.request(vm)
    source.results = {"a": 28 * MIB, "b": 0}
    measured(rates, source, "c", 7)
    assert source.started == ["a", "b", "c"]
    assert [rates.newest(vm) for vm in "abc"] == [28 * MIB, 0, 7]
    clock.advance(3)
    assert rates.age_ns("c") == 3 * NS_PER_S
    rates.forget("c")
    assert rates.newest("c") is None


def test_a_refused_measurement_and_one_without_an_end_take_only_themselves(rates: DirtyRates, source: Source, clock: ManualClock) -> None:
    source.refused.add("gone")
    assert rates.request("gone")
    assert rates.request("hangs")
    source.wait_for("hangs")
    source.running = None  # QEMU finishes by itself some time
    clock.advance(2 + int(RESULT_DEADLINE_S))
    measured(rates, source, "c", 5)
    assert (rates.newest("gone"), rates.newest("hangs"), rates.newest("c")) == (None, None, 5)
    assert rates.state("gone").failure == "no such domain" and "no result" in rates.state("hangs").failure
    source.refused.clear()
    clock.advance(1)
    assert rates.state("c") == DirtyState(measuring=False, bytes_per_s=5, age_ms=1000)
    assert rates.request("gone")
    assert rates.state("gone") == DirtyState(measuring=True)


def test_waiting_is_bounded(rates: DirtyRates, source: Source) -> None:
    assert rates.request("first")
    source.wait_for("first")
    assert all(rates.request(f"vm{i}") for i in range(MOST_WAITING))
    assert not rates.request("one more")
    rates.close(10)
    assert not rates.request("late")


def test_a_bug_is_not_swallowed_by_the_worker(rates: DirtyRates, source: Source) -> None:
    source.bug = True
    assert rates.request("a")
    assert rates._thread is not None
    rates._thread.join(10)
    with pytest.raises(ZeroDivisionError):
        rates.newest("a")
