"""Which closed buckets the folder forgets: the newest, which regularly grow once more, must outlive a long replay of older ones."""

from __future__ import annotations

from coordinator.demand.buckets import MAX_CLOSED, BucketFolder
from shared.model import HostSample, VmSample
from shared.units import BUCKET_S, NS_PER_S

START_S = 1_795_219_200
BUCKETS = MAX_CLOSED + 12


def sample(second: int) -> HostSample:
    return HostSample(
        wall_ns=(START_S + second) * NS_PER_S,
        monotonic_ns=second * NS_PER_S,
        period_ns=5 * NS_PER_S,
        vms={"vm-1": VmSample(cpu_used_millicores=500)},
    )


def test_the_newest_bucket_outlives_a_long_replay() -> None:
    """After a restart the log (or a spool of many hours) touches more old buckets than are kept, then the newest one closes first."""
    newest_s = START_S + (BUCKETS - 1) * BUCKET_S
    folder = BucketFolder(closed_until_s=newest_s - BUCKET_S)
    for bucket in range(BUCKETS):
        folder.add("host-1", sample(bucket * BUCKET_S))
    assert folder.close(newest_s).samples.tolist() == [1]
    for start_s in folder.grown_starts():
        folder.close(start_s)
    folder.add("host-1", sample((BUCKETS - 1) * BUCKET_S + 5))
    assert folder.grown_starts() == (newest_s,)
    assert folder.close(newest_s).samples.tolist() == [2]


def test_what_is_kept_stays_bounded() -> None:
    folder = BucketFolder(closed_until_s=START_S + 3 * BUCKETS * BUCKET_S)
    for bucket in range(3 * BUCKETS):
        folder.add("host-1", sample(bucket * BUCKET_S))
    for start_s in folder.grown_starts():
        folder.close(start_s)
    assert len(folder._closed) == MAX_CLOSED
