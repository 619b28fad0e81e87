"""Clocks that are off: ahead at once, behind by evidence, a spool never."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from coordinator.demand.buckets import BucketFolder
from coordinator.demand.clocks import HostClocks
from shared.model import HostSample, VmSample
from shared.units import BUCKET_S, NS_PER_S

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S
MINUTES = 60


def seen(clocks: HostClocks, samples: Iterable[tuple[int, int, int]]) -> list[int]:
    """Corrected less true time, seconds, of samples (true time, what the host's clock says, arrival), seconds from T0."""
    return [
        (clocks.wall_ns("h", (T0 + wall) * NS_PER_S, (10_000 + true) * NS_PER_S, (T0 + now) * NS_PER_S) // NS_PER_S) - T0 - true
        for true, wall, now in samples
    ]


@pytest.mark.parametrize("off", [0, 50, -50])
def test_a_clock_that_is_hardly_off_is_not_touched(off: int) -> None:
    clocks = HostClocks()
    assert set(seen(clocks, ((t, t + off, t + 1) for t in range(0, 1200, 5)))) == {off}
    assert (clocks.corrected, clocks.ahead_ns()) == (0, {})


def test_a_clock_ahead_is_seen_at_once() -> None:
    clocks = HostClocks()
    assert set(seen(clocks, ((t, t + 10 * MINUTES, t + 1) for t in range(0, 600, 5)))) == {1}
    assert clocks.ahead_ns() == {"h": (10 * MINUTES - 1) * NS_PER_S}


def test_a_clock_behind_is_seen_after_five_minutes() -> None:
    found = seen(HostClocks(), ((t, t - 10 * MINUTES, t + 1) for t in range(0, 600, 5)))
    assert set(found[:60]) == {-10 * MINUTES}
    assert set(found[61:]) == {1}


def test_a_spool_is_late_and_not_behind() -> None:
    clocks = HostClocks()
    live = [(t, t, t + 1) for t in range(0, 600, 5)]
    spool = [(t, t, 7800 + t // 60) for t in range(600, 7800, 5)]
    after = [(t, t, t + 1) for t in range(7950, 8400, 5)]
    assert set(seen(clocks, [*live, *spool, *after])) == {0}
    assert clocks.corrected == 0


def test_a_clock_set_right_again_is_believed() -> None:
    clocks = HostClocks()
    seen(clocks, ((t, t + 10 * MINUTES, t) for t in range(0, 300, 5)))
    assert set(seen(clocks, ((t, t, t) for t in range(300, 900, 5)))) == {0}
    assert clocks.ahead_ns() == {}


def test_a_clock_that_is_slewed_back_ends_untouched() -> None:
    clocks = HostClocks()
    slewing = [(t, t + max(0, 600 - t // 6), t) for t in range(0, 7200, 5)]
    assert set(seen(clocks, slewing)[-60:]) == {0}
    assert clocks.ahead_ns() == {}


def test_the_folder_puts_samples_of_a_wrong_clock_into_the_right_bucket() -> None:
    folder = BucketFolder()
    for true in range(5, 300, 5):
        for host, ahead in (("right", 0), ("ahead", 20 * MINUTES)):
            sample = HostSample(
                wall_ns=(T0 + true + ahead) * NS_PER_S,
                monotonic_ns=true * NS_PER_S,
                period_ns=5 * NS_PER_S,
                vms={f"vm-{host}": VmSample(cpu_used_millicores=100)},
            )
            folder.add(host, sample, (T0 + true) * NS_PER_S)
    assert folder.open_starts() == (T0,)
    block = folder.close(T0)
    assert block.vm_ids == ("vm-ahead", "vm-right")
    assert block.samples.tolist() == [59, 59]
    assert folder.clocks.ahead_ns() == {"ahead": 20 * MINUTES * NS_PER_S}
