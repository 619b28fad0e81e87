"""GuestProbe: whose turn it is (with times given), and that the worker keeps counters, reasons and silence apart."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sampling.guest import HURRY_NS, LONGEST_PAUSE_NS, LOST_AFTER, GuestProbe, ProbeSchedule, parse_oom_kills
from shared.clock import ManualClock
from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

PERIOD = 60 * NS_PER_S
VMSTAT = b"nr_free_pages 14\noom_kill %d\nballoon_inflate 0\n"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (VMSTAT % 3, 3),
        (b"oom_kill 0\n", 0),
        (b"nr_free_pages 14\n", None),
        (b"", None),
        (b"oom_kill -1\n", None),
        (b"xoom_kill 4\n", None),
        (b"oom_kill " + b"9" * 40 + b"\n", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_counter_is_a_sane_number_or_unknown(text: bytes, count: int | None) -> None:
    assert parse_oom_kills(text) == count


def test_every_vm_has_its_turn_once_a_period() -> None:
    schedule = ProbeSchedule(PERIOD)
    schedule.follow(["a", "b"], 0)
    assert schedule.next(0) == ("a", 0)
    schedule.done("a", 10, failed=False)
    assert schedule.next(10) == ("b", 0)
    schedule.done("b", 20, failed=False)
    assert schedule.next(20) == (None, PERIOD - 10)
    assert schedule.next(PERIOD + 10) == ("a", 0)
    schedule.follow(["b"], PERIOD)
    assert schedule.next(PERIOD + 10) == (None, 10)


def test_a_failing_agent_is_asked_half_as_often_each_time_up_to_an_hour() -> None:
    schedule, now, pauses = ProbeSchedule(PERIOD), 0, []
    schedule.follow(["a"], now)
    for _ in range(8):
        assert schedule.next(now) == ("a", 0)
        schedule.done("a", now, failed=True)
        _, pause = schedule.next(now)
        pauses.append(pause // NS_PER_S)
        now += pause
    assert pauses == [120, 240, 480, 960, 1920, 3600, 3600, 3600]
    schedule.done("a", now, failed=False)
    assert schedule.next(now) == (None, PERIOD)


def test_a_hurried_vm_goes_first_but_not_at_every_call() -> None:
    schedule = ProbeSchedule(PERIOD)
    schedule.follow(["a", "b", "c"], 0)
    assert schedule.hurry("c", 0)
    assert not schedule.hurry("c", 0), "it is hurried already"
    assert schedule.next(0) == ("c", 0)
    schedule.done("c", 0, failed=False)
    schedule.hurry("c", 1)
    assert schedule.next(1)[0] == "a", "just asked: not again at once"
    for vm in ("a", "b"):
        schedule.done(vm, 1, failed=False)
    assert schedule.next(1) == (None, HURRY_NS - 1)
    assert not schedule.hurry("unknown", 0)


def test_a_failing_agent_is_hurried_ever_less() -> None:
    schedule = ProbeSchedule(PERIOD)
    schedule.follow(["a"], 0)
    for failures in (1, 2, 3):
        schedule.done("a", 0, failed=True)
        schedule.hurry("a", 1)
        assert schedule.next(1) == (None, (HURRY_NS << failures) - 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["done", "fail", "hurry"]), st.integers(0, PERIOD)), max_size=40))
def test_somebody_is_due_within_an_hour_whatever_happens(steps: list[tuple[str, str, int]]) -> None:
    schedule, now = ProbeSchedule(PERIOD), 0
    schedule.follow("abc", now)
    for vm, what, pause in steps:
        now += pause
        if what == "hurry":
            schedule.hurry(vm, now)
        else:
            schedule.done(vm, now, failed=what == "fail")
        due, wait = schedule.next(now)
        assert (due is not None and wait == 0) or 0 < wait <= LONGEST_PAUSE_NS


class Guests:
    """Guest agents by script; counts how often each was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Exception] = {}
        self.asked: list[str] = []
        self.changed = threading.Condition()
        self.hang: dict[str, threading.Event] = {}

    def read_file(self, vm_id: str, path: str) -> bytes:
        assert path == "/proc/vmstat"
        with self.changed:
            self.asked.append(vm_id)
            self.changed.notify_all()
        if vm_id in self.hang:
            self.hang[vm_id].wait(30)
        answer = self.answers[vm_id]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait_until_asked(self, *vm_ids: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked == list(vm_ids), 10), self.asked


@pytest.fixture
def guests() -> Guests:
    return Guests()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_795_000_000 * NS_PER_S)


@pytest.fixture
def probe(guests: Guests, clock: ManualClock) -> Iterator[GuestProbe]:
    probe = GuestProbe(guests, clock, 60)
    probe.start()
    yield probe
    probe.close(10)
    assert not any(thread.name == "tidegate guest probe" for thread in threading.enumerate())


def again(probe: GuestProbe, guests: Guests, clock: ManualClock, *vm_ids: str) -> None:
    """Ask all anew: an hour later every one is due."""
    guests.asked.clear()
    guests.answers = {vm_id: guests.answers[vm_id] for vm_id in vm_ids}
    clock.advance(3600)
    probe.follow(vm_ids)  # wakes the worker
    guests.wait_until_asked(*vm_ids)


def settled(probe: GuestProbe, guests: Guests) -> None:
    """The worker has taken in all answers so far: it is asked about a VM that is new."""
    new = f"new-{len(guests.answers)}"
    vms = [*guests.answers, new]
    guests.answers[new] = b"oom_kill 0\n"
    probe.follow(vms)
    with guests.changed:
        assert guests.changed.wait_for(lambda: new in guests.asked, 10)


def test_counters_and_reasons(probe: GuestProbe, guests: Guests) -> None:
    guests.answers = {
        "a": VMSTAT % 2,
        "b": HostError("QEMU guest agent is not connected"),
        "c": Refusal(RefusalCode.NOT_CAPABLE, "QEMU guest agent is not configured"),
        "d": b"nr_free_pages 14\n",
    }
    probe.follow("abcd")
    guests.wait_until_asked("a", "b", "c", "d")
    settled(probe, guests)
    assert [probe.newest(vm) for vm in "abcd"] == [2, None, None, None]
    assert probe.obstacle("a") is None
    assert "not connected" in (probe.obstacle("b") or "")
    assert "not configured" in (probe.obstacle("c") or "")
    assert "does not count" in (probe.obstacle("d") or "")
    probe.follow("b")
    assert (probe.newest("a"), probe.obstacle("c")) == (None, None)


def test_one_failure_keeps_the_counter_and_more_lose_it(probe: GuestProbe, guests: Guests, clock: ManualClock) -> None:
    guests.answers["a"] = VMSTAT % 2
    probe.follow("a")
    guests.wait_until_asked("a")
    guests.answers["a"] = HostError("slow")
    for failure in range(1, LOST_AFTER + 1):
        settled(probe, guests)
        assert probe.newest("a") == 2
        again(probe, guests, clock, "a")
        assert failure <= LOST_AFTER
    settled(probe, guests)
    assert probe.newest("a") is None
    guests.answers["a"] = VMSTAT % 5
    again(probe, guests, clock, "a")
    settled(probe, guests)
    assert (probe.newest("a"), probe.obstacle("a")) == (5, None)


def test_a_hanging_agent_holds_up_nobody_who_reads(probe: GuestProbe, guests: Guests) -> None:
    guests.answers = {"a": VMSTAT % 1, "b": VMSTAT % 2}
    guests.hang["a"] = threading.Event()
    probe.follow("ab")
    guests.wait_until_asked("a")
    assert (probe.newest("a"), probe.newest("b"), probe.obstacle("a")) == (None, None, None)
    probe.hurry("b")
    guests.hang["a"].set()
    guests.wait_until_asked("a", "b")
    settled(probe, guests)
    assert (probe.newest("a"), probe.newest("b")) == (1, 2)


def test_a_vm_under_pressure_is_asked_before_its_time(probe: GuestProbe, guests: Guests, clock: ManualClock) -> None:
    guests.answers["a"] = VMSTAT % 0
    probe.follow("a")
    guests.wait_until_asked("a")
    settled(probe, guests)
    guests.asked.clear()
    guests.answers["a"] = VMSTAT % 1
    clock.advance(6)
    probe.hurry("a")
    guests.wait_until_asked("a")
    settled(probe, guests)
    assert probe.newest("a") == 1


def test_a_bug_is_not_swallowed_by_the_worker(probe: GuestProbe, guests: Guests) -> None:
    guests.answers["a"] = ZeroDivisionError()
    probe.follow("a")
    guests.wait_until_asked("a")
    probe._thread.join(10)
    with pytest.raises(ZeroDivisionError):
        probe.newest("a")
