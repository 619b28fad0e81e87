"""Folding samples into buckets: weights, duplicates, late samples, migrations, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.demand.buckets import MAX_CLOSED, MAX_OPEN, MAX_PENDING, BucketFolder
from coordinator.demand.censoring import FIELDS
from coordinator.model import HistoryBlock
from shared.model import HostSample, VmSample
from shared.units import BUCKET_S, CPU, MEMORY, NET_RX, NS_PER_S

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


def both_hosts(old_cpu: int, new_cpu: int, *, overlap_s: int) -> tuple[float, float]:
    """Mean and peak of a VM that moved at 150 s, while the target already showed its twin for `overlap_s`."""
    folder = BucketFolder()
    for at in range(5, 155, 5):
        folder.add("old", host_sample(T0 + at, a=old_cpu))
    for at in range(155 - overlap_s, 300, 5):
        folder.add("new", host_sample(T0 + at, a=0 if at < 155 else new_cpu))
    block = folder.close(T0)
    assert block.vm_ids == ("a",)
    assert block.host_ids == ("new",)
    return float(block.mean[0, CPU]), float(block.peak[0, CPU])


def test_an_idle_twin_on_the_target_dilutes_nothing() -> None:
    plain, peak = both_hosts(1000, 400, overlap_s=0)
    assert plain == pytest.approx((30 * 1000 + 29 * 400) / 59)
    with_twin, same_peak = both_hosts(1000, 400, overlap_s=60)
    assert with_twin == pytest.approx(plain)
    assert same_peak == peak


def test_reboots_and_counter_resets_leave_gaps_not_zeros() -> None:
    """What agents send after a reset: gauges only, every rate None, period 0."""
    folder = BucketFolder()
    folder.add("h", host_sample(T0 + 5, a=800))
    folder.add("h", host_sample(T0 + 10, 0, a=None))
    folder.add("h", host_sample(T0 + 15, a=800))
    block = folder.close(T0)
    assert (block.mean[0, CPU], block.peak[0, CPU], block.samples[0]) == (800, 800, 3)


def net_sample(at_s: float, bits: int, ceiling: int) -> HostSample:
    vms = {"a": VmSample(net_rx_bits_per_s=bits, net_rx_ceil_bits_per_s=ceiling)}
    return HostSample(wall_ns=int(at_s * NS_PER_S), monotonic_ns=0, period_ns=5 * NS_PER_S, vms=vms)


def test_a_bucket_at_its_ceiling_is_judged_by_the_past_and_history_serves_as_one() -> None:
    def capped(folder: BucketFolder, at_s: int) -> float:
        for second in range(5, 305, 5):
            folder.add("h", net_sample(at_s + second - 1, 1_000_000, 1_000_000))
        return float(folder.close(at_s).mean[0, NET_RX])

    cold, lived, restarted = BucketFolder(), BucketFolder(), BucketFolder()
    for b in range(20):
        lived.add("h", net_sample(T0 + b * BUCKET_S + 5, 2_000_000, 10_000_000))
        lived.close(T0 + b * BUCKET_S)
    past = np.full((1, 5, 20), np.nan, dtype=np.float32)
    past[0, NET_RX] = 2_000_000
    restarted.remember(
        HistoryBlock(
            vm_ids=("a",),
            end_s=T0 + 19 * BUCKET_S,
            mean=past,
            peak=past,
            censored=np.where(np.isnan(past), np.nan, np.float32(0)),
            capacity=past[:, :, 0],
        )
    )
    at_s = T0 + 20 * BUCKET_S
    assert capped(cold, at_s) == pytest.approx(1_100_000)
    assert capped(lived, at_s) == pytest.approx(2_000_000, rel=0.1)
    assert capped(restarted, at_s) == pytest.approx(2_000_000, rel=0.1)


LIMITS = ("cpu_quota_millicores", "disk_limit_bytes_per_s", "disk_ops_limit_per_s", "net_rx_ceil_bits_per_s", "net_tx_ceil_bits_per_s")
readings = st.builds(VmSample, **{name: st.none() | st.integers(-1 if name in LIMITS else 0, 2**50) for name in FIELDS})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 310), st.sampled_from(["h1", "h2"]), readings), min_size=1, max_size=20))
def test_whatever_hosts_send_the_bucket_is_lawful(sent: list[tuple[int, str, VmSample]]) -> None:
    folder = BucketFolder()
    for at_s, host, vm in sent:
        folder.add(host, HostSample(wall_ns=(T0 + at_s) * NS_PER_S, monotonic_ns=0, period_ns=5 * NS_PER_S, vms={"a": vm}))
    for start_s in folder.open_starts():
        block = folder.close(start_s)
        known = ~np.isnan(block.usage)
        assert (np.isnan(block.mean) == ~known).all()
        assert np.isfinite(block.peak[known]).all()
        assert (block.mean[known] >= block.usage[known] * (1 - 1e-9)).all()
        assert (block.peak[known] >= block.mean[known] * (1 - 1e-9)).all()
        assert ((block.censored[known] >= 0) & (block.censored[known] <= 1)).all()
