"""BulkStatistics: a VM that holds up libvirt costs the others no more than the rounds it takes to find it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from agent.adapters.libvirt_statistics import BUSY_ROUNDS, BulkStatistics, Connections
from shared.errors import HostError

VMS = ("a", "b", "c")


class Libvirt:
    """Answers for every VM but the locked ones, at which it hangs until they are unlocked."""

    def __init__(self) -> None:
        self.locked: dict[str, threading.Event] = {}
        self.busy: set[str] = set()
        self.gone: set[str] = set()
        self.reached = threading.Semaphore(0)

    def lock(self, vm_id: str) -> None:
        self.locked[vm_id] = threading.Event()

    def unlock(self, vm_id: str) -> None:
        self.locked.pop(vm_id).set()

    def read_one(self, vm_id: str) -> Mapping[str, object] | None:
        lock = self.locked.get(vm_id)
        if lock is not None:
            self.reached.release()
            assert lock.wait(30)
        if vm_id in self.gone:
            return None
        known: dict[str, object] = {"balloon.current": 1, "block.count": 1}
        return known if vm_id in self.busy else known | {"block.0.rd.bytes": 5}

    def read_all(self) -> Mapping[str, Mapping[str, object]]:
        found = {vm_id: self.read_one(vm_id) for vm_id in VMS}
        return {vm_id: stats for vm_id, stats in found.items() if stats is not None}


@pytest.fixture
def libvirt() -> Libvirt:
    return Libvirt()


@pytest.fixture
def statistics(libvirt: Libvirt) -> BulkStatistics:
    statistics = BulkStatistics(libvirt.read_all, libvirt.read_one)
    statistics.follow(VMS)
    return statistics


@pytest.fixture
def hang(libvirt: Libvirt, statistics: BulkStatistics) -> Iterator[Callable[[], threading.Thread]]:
    """Begins a read that hangs, and returns when it does."""
    threads = []

    def begin() -> threading.Thread:
        thread = threading.Thread(target=statistics.read)
        threads.append(thread)
        thread.start()
        assert libvirt.reached.acquire(timeout=10)
        return thread

    yield begin
    for vm_id in list(libvirt.locked):
        libvirt.unlock(vm_id)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_all_at_once_while_nothing_hangs(statistics: BulkStatistics) -> None:
    assert statistics.read().keys() == set(VMS)
    assert statistics.quarantined() == {}


def test_a_locked_vm_is_found_passed_by_named_and_asked_again(
    libvirt: Libvirt, statistics: BulkStatistics, hang: Callable[[], threading.Thread]
) -> None:
    libvirt.lock("b")
    all_at_once = hang()
    one_by_one = hang()
    assert statistics.quarantined() == {}, "one call may simply be slow"
    for _ in range(3):
        assert statistics.read().keys() == {"a", "c"}
        assert statistics.quarantined() == {"b": "quarantined: libvirt does not answer for it"}
    libvirt.unlock("b")
    for thread in (all_at_once, one_by_one):
        thread.join(10)
    assert statistics.quarantined() == {}
    assert statistics.read().keys() == set(VMS)


def test_two_locked_vms_cost_a_call_each(libvirt: Libvirt, statistics: BulkStatistics, hang: Callable[[], threading.Thread]) -> None:
    for vm_id in ("a", "c"):
        libvirt.lock(vm_id)
    for _ in range(3):
        hang()
    assert statistics.read().keys() == {"b"}
    assert statistics.quarantined().keys() == {"a", "c"}
    statistics.follow(["b", "c"])
    assert statistics.quarantined().keys() == {"c"}, "who is gone is not named"


def test_a_vm_that_stays_busy_is_named_until_it_answers(libvirt: Libvirt, statistics: BulkStatistics) -> None:
    libvirt.busy.add("c")
    for _ in range(BUSY_ROUNDS + 1):
        statistics.read()
    assert statistics.quarantined() == {}, "nothing was ever known of it, so nothing is missing"
    libvirt.busy.clear()
    statistics.read()
    libvirt.busy.add("c")
    for number in range(1, BUSY_ROUNDS + 2):
        assert statistics.read().keys() == set(VMS)
        assert statistics.quarantined().keys() == ({"c"} if number >= BUSY_ROUNDS else set())
    libvirt.busy.clear()
    statistics.read()
    assert statistics.quarantined() == {}


def test_a_vm_that_is_gone_is_left_out_and_an_error_ends_the_call(
    libvirt: Libvirt, statistics: BulkStatistics, hang: Callable[[], threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    libvirt.lock("a")
    for _ in range(2):
        hang()
    libvirt.gone.add("b")
    assert statistics.read().keys() == {"c"}

    def fail(_: str) -> Any:
        raise HostError("libvirtd is away")

    monkeypatch.setattr(statistics, "_read_one", fail)
    with pytest.raises(HostError):
        statistics.read()
    monkeypatch.undo()
    assert statistics.read().keys() == {"c"}, "a call that failed hangs no more"


class Opened:
    """A connection that knows whether it is closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_calls_at_once_have_a_connection_each_and_one_is_kept() -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(Opened())
        return made[-1]

    connections = Connections(make)
    with connections.one() as first:
        with connections.one() as second:
            assert first is not second
        assert not made[1].closed
    assert made[0].closed, "one is enough to keep"
    with connections.one() as again:
        assert again is second
        connections.close()
        assert not made[1].closed, "its call has not come back"
    assert made[1].closed
    connections.close()
    assert len(made) == 2
