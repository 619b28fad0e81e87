"""What every PerfEvents must do, and a PerfEvents of numbers for tests. A subclass gives the fixtures `events`, `tid` and `work`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from agent.sampling.perf import HARDWARE, SOFTWARE, GroupReading, PerfEvent, PerfEvents, PerfTarget, PerfUnavailable
from shared.errors import HostError

GONE = 2**22 + 1  # above every possible pid


class FakeGroup:
    def __init__(self, owner: FakePerfEvents, target: PerfTarget, events: tuple[PerfEvent, ...]) -> None:
        self.owner, self.target, self.events = owner, target, events
        self.began = owner.now
        self.closed = False

    def read(self) -> GroupReading:
        if self.closed:
            raise HostError("closed")
        grown = self.owner.now - self.began
        return GroupReading(enabled_ns=grown, running_ns=grown * self.owner.running_permille // 1000, values=(grown,) * len(self.events))

    def close(self) -> None:
        self.closed = True


class FakePerfEvents:
    """Every counter grows by one with each unit of `now`. `absent` events do not exist; `forbidden` refuses all."""

    def __init__(self) -> None:
        self.now = 0
        self.running_permille = 1000
        self.absent: frozenset[PerfEvent] = frozenset()
        self.forbidden = False
        self.limit = 1000
        self.online: tuple[int, ...] = (0, 1)
        self.groups: list[FakeGroup] = []

    def cpus(self) -> Sequence[int]:
        return self.online

    def descriptors_most(self) -> int:
        return self.limit

    def open(self, target: PerfTarget, events: Sequence[PerfEvent]) -> FakeGroup:
        if self.forbidden:
            raise PerfUnavailable("not for you", everything=True)
        if target.tid == GONE:
            raise HostError("the thread is gone")
        there = tuple(event for event in events if event not in self.absent)
        if not there:
            raise PerfUnavailable("no such event", everything=False)
        self.groups.append(FakeGroup(self, target, there))
        return self.groups[-1]

    @property
    def still_open(self) -> list[FakeGroup]:
        return [group for group in self.groups if not group.closed]


class PerfContract:
    """Subclass as `TestX(PerfContract)`."""

    @pytest.fixture
    def events(self) -> PerfEvents:
        raise NotImplementedError

    @pytest.fixture
    def tid(self) -> int:
        """A thread that may be counted."""
        raise NotImplementedError

    @pytest.fixture
    def work(self) -> Callable[[], None]:
        """Makes that thread use CPU time and fault pages in."""
        raise NotImplementedError

    def test_a_group_counts_what_its_thread_does(self, events: PerfEvents, tid: int, work: Callable[[], None]) -> None:
        group = events.open(PerfTarget(tid=tid), SOFTWARE)
        assert group.events == SOFTWARE
        before = group.read()
        work()
        after = group.read()
        group.close()
        assert after.enabled_ns >= after.running_ns > before.running_ns
        for event in (PerfEvent.TASK_CLOCK, PerfEvent.PAGE_FAULTS):
            at = SOFTWARE.index(event)
            assert after.values[at] > before.values[at]
        assert all(now >= then for now, then in zip(after.values, before.values, strict=True))

    def test_a_closed_group_cannot_be_read_and_closes_again(self, events: PerfEvents, tid: int) -> None:
        group = events.open(PerfTarget(tid=tid), SOFTWARE[:1])
        group.close()
        group.close()
        with pytest.raises(HostError):
            group.read()

    def test_a_thread_that_is_gone_is_an_error_and_no_lack_of_events(self, events: PerfEvents) -> None:
        with pytest.raises(HostError) as caught:
            events.open(PerfTarget(tid=GONE), SOFTWARE)
        assert not isinstance(caught.value, PerfUnavailable)

    def test_hardware_events_are_there_or_said_to_be_missing(self, events: PerfEvents, tid: int) -> None:
        try:
            group = events.open(PerfTarget(tid=tid), HARDWARE)
        except PerfUnavailable as error:
            assert not error.everything and str(error)
        else:
            assert set(group.events) <= set(HARDWARE) and len(group.read().values) == len(group.events) > 0
            group.close()

    def test_cpus_and_descriptors_are_bounded_numbers(self, events: PerfEvents) -> None:
        assert len(events.cpus()) == len(set(events.cpus())) > 0
        assert events.descriptors_most() > 0
