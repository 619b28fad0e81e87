"""Folding samples into buckets: weights, duplicates, late samples, migrations, bounds."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.demand.buckets import MAX_CLOSED, MAX_OPEN, MAX_PENDING, BucketFolder
from shared.model import HostSample, VmSample
from shared.units import BUCKET_S, CPU, MEMORY, NS_PER_S

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S


def host_sample(at_s: float, period_s: float = 5, **cpu: int | None) -> HostSample:
    vms = {name: VmSample(cpu_used_millicores=value, vcpus=8, cpu_quota_millicores=4000) for name, value in cpu.items()}
    return HostSample(wall_ns=int(at_s * NS_PER_S), monotonic_ns=0, period_ns=int(period_s * NS_PER_S), vms=vms)


def test_means_weigh_by_period_and_peaks_do_not() -> None:
    folder = BucketFolder()
    folder.add("h", host_sample(T0 + 5, 5, a=100))
    folder.add("h", host_sample(T0 + 20, 15, a=500))
    block = folder.close(T0)
    assert block.vm_ids == ("a",)
    assert block.mean[0, CPU] == pytest.approx(400)
    assert block.peak[0, CPU] == 500
    assert block.allocation[0, CPU] == 4000
    assert block.samples[0] == 2
    assert np.isnan(block.mean[0, MEMORY])
    assert np.isnan(block.peak[0, MEMORY])


def test_duplicates_change_nothing_and_late_samples_make_a_closed_bucket_grow() -> None:
    folder = BucketFolder()
    for _ in range(3):
        folder.add("h", host_sample(T0 + 5, a=100))
    folder.add("other", host_sample(T0 + 5, b=1))
    block = folder.close(T0)
    assert (folder.duplicates, block.vm_ids, tuple(block.samples)) == (2, ("a", "b"), (1, 1))
    folder.add("h", host_sample(T0 + 10, a=300))
    assert (folder.late, folder.open_starts(), folder.grown_starts()) == (1, (), (T0,))
    grown = folder.close(T0)
    assert (tuple(grown.samples), grown.mean[0, CPU], folder.grown_starts()) == ((2, 1), 200, ())


def test_a_spool_from_before_a_restart_fills_buckets_and_stays_bounded() -> None:
    folder = BucketFolder(closed_until_s=T0)
    for i in range(MAX_CLOSED + 10):
        folder.add("h", host_sample(T0 - i * BUCKET_S + 5, a=i))
        assert folder.close(folder.grown_starts()[0]).samples[0] == 1
    assert folder.open_starts() == ()
    folder.add("h", host_sample(T0 - 8 * 86_400, a=1))
    assert (folder.refused, folder.grown_starts()) == (1, ())


def test_the_later_host_wins_whatever_the_order_of_arrival() -> None:
    for order in ((0, 1), (1, 0)):
        arrivals = [("old", host_sample(T0 + 100, a=100)), ("new", host_sample(T0 + 200, a=300))]
        folder = BucketFolder()
        for i in order:
            folder.add(*arrivals[i])
        block = folder.close(T0)
        assert block.host_ids == ("new",)
        assert block.mean[0, CPU] == pytest.approx(200)


def test_unknown_readings_stay_unknown_beside_known_ones() -> None:
    folder = BucketFolder()
    folder.add("h", host_sample(T0 + 5, a=None))
    folder.add("h", host_sample(T0 + 10, a=700))
    assert folder.close(T0).mean[0, CPU] == pytest.approx(700)


def test_censored_is_a_share_of_time() -> None:
    folder = BucketFolder()
    folder.add("h", host_sample(T0 + 5, a=4000))
    folder.add("h", host_sample(T0 + 20, 15, a=100))
    block = folder.close(T0)
    assert block.censored[0, CPU] == pytest.approx(0.25)
    assert block.usage[0, CPU] < block.mean[0, CPU]


def test_an_older_open_bucket_can_still_be_filled_and_closed() -> None:
    folder = BucketFolder()
    folder.add("h", host_sample(T0 + 5, a=1))
    folder.add("h", host_sample(T0 + BUCKET_S + 5, a=2))
    assert folder.open_starts() == (T0, T0 + BUCKET_S)
    folder.close(T0 + BUCKET_S)
    folder.add("h", host_sample(T0 + 10, a=3))
    assert folder.close(T0).samples[0] == 2


def test_a_clock_that_runs_away_is_bounded() -> None:
    folder = BucketFolder()
    for i in range(MAX_OPEN + 5):
        folder.add("h", host_sample(T0 + i * BUCKET_S, a=1))
    assert (len(folder.open_starts()), folder.refused) == (MAX_OPEN, 5)


def test_folding_in_parts_equals_folding_at_once() -> None:
    folder = BucketFolder()
    values = np.arange(MAX_PENDING + 500) % 977
    for i, value in enumerate(values):
        folder.add("h", host_sample(T0 + i / 100, a=int(value)))
    block = folder.close(T0)
    assert block.mean[0, CPU] == pytest.approx(values.mean())
    assert block.samples[0] == len(values)


def test_empty_and_impossible_buckets() -> None:
    folder = BucketFolder()
    assert folder.close(T0).vm_ids == ()
    with pytest.raises(ValueError, match="multiple of 300"):
        folder.close(T0 + 1)
