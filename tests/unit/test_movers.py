"""The threads around a Migrator: each instruction's answer, the bounds, and that nothing waits for anything that hangs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from agent import events as ev
from agent.ports import MigrationProgress
from agent.service.movers import Movers
from shared.errors import HostError, Refusal
from shared.model import Allocation, Domain
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode
from shared.units import MBIT

LIMITS = Allocation(net_rx_bits_per_s=MBIT)


class Scripted:
    """A Migrator whose `migrate` waits for the test."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.result: Exception | MigrationProgress | None = None
        self.calls: queue.Queue[tuple[str, ...]] = queue.Queue()
        self.limits: dict[str, Allocation | Exception] = {}
        self.hang = threading.Event()
        self.hang.set()

    def migrate(self, vm_id: str, uri: str, bits_per_s: int, limits: Allocation) -> MigrationProgress | None:
        self.calls.put(("migrate", vm_id, uri, str(bits_per_s)))
        assert limits == LIMITS
        assert self.go.wait(10)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def progress(self, vm_id: str) -> MigrationProgress | None:
        self.calls.put(("progress", vm_id))
        assert self.hang.wait(10)
        return MigrationProgress(elapsed_ms=7)

    def set_bandwidth(self, vm_id: str, bits_per_s: int) -> None:
        self.calls.put(("bandwidth", vm_id, str(bits_per_s)))

    def abort(self, vm_id: str) -> None:
        self.calls.put(("abort", vm_id))
        raise HostError("no libvirt")  # an order that fails is logged, and costs nothing else

    def arrived(self, vm_id: str) -> Allocation | None:
        limits = self.limits.get(vm_id)
        if isinstance(limits, Exception):
            raise limits
        return limits

    def taken_up(self, vm_id: str) -> None:
        self.calls.put(("taken_up", vm_id))


@pytest.fixture
def migrator() -> Scripted:
    return Scripted()


@pytest.fixture
def events() -> queue.Queue[ev.Event]:
    return queue.Queue()


@pytest.fixture
def movers(migrator: Scripted, events: queue.Queue[ev.Event]) -> Iterator[Movers]:
    movers = Movers(migrator, events.put, max_outgoing=1)
    yield movers
    migrator.go.set()
    migrator.hang.set()
    movers.close()


def start(n: int = 1) -> ev.StartMigration:
    step = Step(id=f"s{n}", vm_id=f"vm-{n}", kind=StepKind.MIGRATE, value=MBIT, target="h2", deadline_ns=1)
    return ev.StartMigration(step=step, uri="there", bits_per_s=MBIT, limits=LIMITS)


@pytest.mark.parametrize(
    ("result", "ended"),
    [
        (None, ev.MigrationEnded(step_id="s1", moved=True)),
        (MigrationProgress(elapsed_ms=9), ev.MigrationEnded(step_id="s1", moved=True, progress=MigrationProgress(elapsed_ms=9))),
        (HostError("no route"), ev.MigrationEnded(step_id="s1", moved=False, detail="no route")),
        (
            Refusal(RefusalCode.NOT_CAPABLE, "vfio"),
            ev.MigrationEnded(step_id="s1", moved=False, code=RefusalCode.NOT_CAPABLE, detail="vfio"),
        ),
    ],
    ids=["moved", "figures", "failed", "refused"],
)
def test_every_move_is_answered(
    movers: Movers, migrator: Scripted, events: queue.Queue[ev.Event], result: Exception | None, ended: ev.MigrationEnded
) -> None:
    migrator.result = result
    movers.perform(start())
    assert migrator.calls.get(timeout=10) == ("migrate", "vm-1", "there", str(MBIT))
    assert len(movers) == 1
    migrator.go.set()
    assert events.get(timeout=10) == ended
    assert len(movers) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_adapter_is_answered_too(movers: Movers, migrator: Scripted, events: queue.Queue[ev.Event]) -> None:
    migrator.result = KeyError("bug")
    movers.perform(start())
    (thread,) = (t for t in threading.enumerate() if t.name.startswith("migrate-"))
    migrator.go.set()
    thread.join(10)
    ended = events.get(timeout=10)
    assert isinstance(ended, ev.MigrationEnded)
    assert not ended.moved
    assert "KeyError" in ended.detail


def test_no_more_at_a_time_than_allowed(movers: Movers, migrator: Scripted, events: queue.Queue[ev.Event]) -> None:
    movers.perform(start(1))
    migrator.calls.get(timeout=10)
    movers.perform(start(2))
    ended = events.get(timeout=10)
    assert isinstance(ended, ev.MigrationEnded)
    assert (ended.step_id, ended.code) == ("s2", RefusalCode.MIGRATION_BUSY)


def test_a_host_without_a_migrator_says_so(events: queue.Queue[ev.Event]) -> None:
    movers = Movers(None, events.put, max_outgoing=1)
    for instruction in (start(), ev.WatchMigration(vm_id="vm-1"), ev.AbortMigration(vm_id="vm-1")):
        movers.perform(instruction)
    movers.inventory([Domain(vm_id="vm-1", name="a", vcpus_max=1, memory_max_bytes=1)])
    ended = events.get(timeout=10)
    assert isinstance(ended, ev.MigrationEnded)
    assert ended.code is RefusalCode.NOT_CAPABLE
    movers.close()
    assert events.empty()


def test_orders_pass_a_question_that_hangs(movers: Movers, migrator: Scripted, events: queue.Queue[ev.Event]) -> None:
    migrator.hang.clear()
    for _ in range(5):
        movers.perform(ev.WatchMigration(vm_id="vm-1"))  # asked once
    assert migrator.calls.get(timeout=10) == ("progress", "vm-1")
    movers.perform(ev.AbortMigration(vm_id="vm-1"))
    movers.perform(ev.TuneMigration(vm_id="vm-1", bits_per_s=5))
    movers.perform(ev.TakenUp(vm_id="vm-1"))
    assert [migrator.calls.get(timeout=10)[0] for _ in range(3)] == ["abort", "bandwidth", "taken_up"]
    migrator.hang.set()
    assert events.get(timeout=10) == ev.MigrationProgressed(vm_id="vm-1", progress=MigrationProgress(elapsed_ms=7))
    assert migrator.calls.empty()


def test_newly_running_vms_are_asked_for_limits_once(movers: Movers, migrator: Scripted, events: queue.Queue[ev.Event]) -> None:
    def domains(*running: bool) -> list[Domain]:
        return [Domain(vm_id=f"vm-{n}", name="x", vcpus_max=1, memory_max_bytes=1, running=up) for n, up in enumerate(running)]

    def asked(then: Callable[[], None]) -> list[ev.Event]:
        then()
        movers.perform(ev.WatchMigration(vm_id="fence"))  # same thread, after them
        got: list[ev.Event] = []
        while not isinstance(event := events.get(timeout=10), ev.MigrationProgressed):
            got.append(event)
        return got

    migrator.limits = {"vm-1": LIMITS, "vm-0": HostError("busy")}
    assert asked(lambda: movers.inventory(domains(True, False))) == []
    assert asked(lambda: movers.inventory(domains(True, True))) == [ev.LimitsArrived(vm_id="vm-1", limits=LIMITS)]
    migrator.limits["vm-0"] = LIMITS
    assert asked(lambda: movers.inventory(domains(True, True))) == [ev.LimitsArrived(vm_id="vm-0", limits=LIMITS)]
    assert asked(lambda: movers.inventory(domains(True, True))) == []


def test_nothing_is_answered_after_the_end(migrator: Scripted, events: queue.Queue[ev.Event]) -> None:
    movers = Movers(migrator, events.put, max_outgoing=1)
    movers.perform(start())
    migrator.calls.get(timeout=10)
    (thread,) = (t for t in threading.enumerate() if t.name.startswith("migrate-"))
    assert thread.daemon
    movers.close()
    migrator.go.set()
    thread.join(10)
    assert events.empty()
