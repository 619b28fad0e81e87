"""The PerfEvents contract on numbers and on the kernel: there our own thread is what is counted, and a group that we make."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from perf_contract import FakePerfEvents, PerfContract

from agent.adapters.perf_events import KernelPerfEvents
from agent.sampling.cgroup import UNIFIED, parse_mountinfo
from agent.sampling.perf import SOFTWARE, PerfEvent, PerfReader, PerfTarget, PerfUnavailable
from shared.errors import HostError


class TestFakePerfEvents(PerfContract):
    @pytest.fixture
    def events(self) -> FakePerfEvents:
        return FakePerfEvents()

    @pytest.fixture
    def tid(self) -> int:
        return 7

    @pytest.fixture
    def work(self, events: FakePerfEvents) -> Callable[[], None]:
        def run() -> None:
            events.now += 100

        return run


@pytest.fixture
def kernel() -> KernelPerfEvents:
    events = KernelPerfEvents()
    try:
        events.open(PerfTarget(tid=threading.get_native_id()), SOFTWARE).close()
    except PerfUnavailable as error:
        pytest.skip(f"perf is not available here: {error}")
    return events


def burn() -> None:
    """CPU time, and 5,120 page faults: a new mapping has no pages yet."""
    for _ in range(5):
        with mmap.mmap(-1, 1024 * mmap.PAGESIZE) as pages:
            for at in range(0, len(pages), mmap.PAGESIZE):
                pages[at] = 1


def descriptors_of(kind: str) -> list[int]:
    """Our descriptors whose link names `kind`."""
    found = []
    for path in sorted(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the one that lists the directory
            if kind in str(path.readlink()):
                found.append(int(path.name))
    return found


class TestKernelPerfEvents(PerfContract):
    @pytest.fixture
    def events(self, kernel: KernelPerfEvents) -> KernelPerfEvents:
        return kernel

    @pytest.fixture
    def tid(self) -> int:
        return threading.get_native_id()

    @pytest.fixture
    def work(self) -> Callable[[], None]:
        return burn

    def test_the_task_clock_is_the_threads_cpu_time(self, events: KernelPerfEvents, tid: int) -> None:
        group = events.open(PerfTarget(tid=tid), SOFTWARE)
        began, first = time.thread_time_ns(), group.read()
        burn()
        last, ended = group.read(), time.thread_time_ns()
        group.close()
        assert last.values[0] - first.values[0] == pytest.approx(ended - began, rel=0.05)

    def test_an_ended_thread_still_gives_its_last_values(self, events: KernelPerfEvents) -> None:
        started, end = threading.Event(), threading.Event()
        tids: list[int] = []

        def run() -> None:
            tids.append(threading.get_native_id())
            started.set()
            end.wait(10)
            burn()

        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(10)
        reader = PerfReader(events)
        reader.read("vm", os.getpid(), tids, None)
        end.set()
        thread.join(10)
        own = threading.get_native_id()
        counts = reader.read("vm", os.getpid(), [own], None)
        reader.close()
        assert counts is not None and counts.task_clock_ns_total is not None and counts.task_clock_ns_total > 1_000_000
        assert counts.page_faults_total is not None and counts.page_faults_total > 4000

    def test_no_descriptor_is_left_and_none_is_inherited(self, events: KernelPerfEvents, tid: int) -> None:
        assert descriptors_of("perf_event") == []
        reader = PerfReader(events)
        assert reader.read("vm", os.getpid(), [tid], None) is not None
        kept = descriptors_of("perf_event")
        assert len(kept) == reader.descriptors >= len(SOFTWARE)
        assert not any(os.get_inheritable(number) for number in kept)
        reader.close()
        assert (descriptors_of("perf_event"), reader.descriptors) == ([], 0)

    def test_a_directory_that_is_no_group_is_an_error(self, events: KernelPerfEvents, tmp_path: Path) -> None:
        for directory in (tmp_path, tmp_path / "absent"):
            with pytest.raises(HostError):
                events.open(PerfTarget(cgroup=directory, cpu=0), SOFTWARE)


@pytest.fixture
def group() -> Iterator[Path]:
    """A v2 group with us in it."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    unified = next((Path(mount.mount_point) for mount in mounts if UNIFIED in mount.controllers), None)
    if unified is None or os.geteuid() != 0:
        pytest.skip("no cgroup v2 mounted, or not root")
    ours = next(line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    home = unified / ours.lstrip("/")
    made = home / f"tidegate-perf-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made: {error}")
    (made / "cgroup.procs").write_text(str(os.getpid()))
    yield made
    (home / "cgroup.procs").write_text(str(os.getpid()))
    with contextlib.suppress(OSError):
        made.rmdir()


@pytest.mark.realhost
def test_a_group_is_counted_on_every_cpu(kernel: KernelPerfEvents, group: Path) -> None:
    reader = PerfReader(kernel)
    tids = list(range(1, len(kernel.cpus()) + 2))  # more vCPUs than CPUs: the group is cheaper
    first = reader.read("vm", os.getpid(), tids, group)
    # A task that was running when the events were opened is counted from its next context switch on.
    time.sleep(0.001)
    burn()
    last = reader.read("vm", os.getpid(), tids, group)
    descriptors = reader.descriptors
    reader.close()
    assert descriptors >= len(kernel.cpus()) * len(SOFTWARE)
    assert first is not None and last is not None
    assert last.task_clock_ns_total is not None and first.task_clock_ns_total is not None
    assert last.task_clock_ns_total - first.task_clock_ns_total > 1_000_000
    assert last.page_faults_total is not None and last.page_faults_total > 4000
    assert PerfEvent.CYCLES.column == "cycles_total"
