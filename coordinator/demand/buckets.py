"""Five-second samples to five-minute buckets of demand. Sans-I/O: samples go in, closed buckets come out, time comes with the samples.

Averages weigh each sample by its period. A VM seen on two hosts within a bucket (a migration) runs on one at a time: what it used is
summed over both and divided by the time that both cover together, so the idle twin that waits on the target dilutes nothing.
Invariants: a sample counts once (host, wall_ns); nothing accepted is lost: samples for a closed bucket (an agent comes back and empties
its spool) make it grow, and it is closed again; all buckets kept are bounded.
Where the limit hid all (blind readings, see `censoring`), `tails` adds what the VM's own past says of demand above it.
Samples wait in a list and are folded column-wise, 4,096 at a time: 4 microseconds a VM and sample, most of it reading the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.demand.censoring import columns_of, demand_of_columns
from coordinator.demand.clocks import HostClocks
from coordinator.demand.minutes import MINUTE_S, MinuteBlock, MinuteSums, values_of
from coordinator.demand.sums import BucketSums
from coordinator.demand.tails import FREE_SHARE, Tails
from coordinator.model import BucketBlock, HistoryBlock
from shared.model import HostSample, VmSample
from shared.units import BUCKET_NS, BUCKET_S, NS_PER_S, bucket_start_s

MAX_OPEN: Final = 36  # three hours: a host whose clock runs ahead cannot open buckets without end
MAX_CLOSED: Final = 48  # four hours of closed buckets stay ready to grow; a spool replays in order, so the oldest touched may go
MAX_LATE_S: Final = 7 * 86_400  # samples older than this before the newest closed bucket are refused
REMEMBERED: Final = 6  # of a history every sixth bucket is taken
MAX_PENDING: Final = 4096  # VM samples of one bucket kept unfolded, about 1.5 MB


@dataclass
class _OpenBucket:
    rows: dict[tuple[str, str], int] = field(default_factory=dict)  # (VM, host)
    first_ns: list[int] = field(default_factory=list)  # per row: what its samples cover
    last_ns: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    known: set[tuple[str, int]] = field(default_factory=set)
    pending: list[tuple[int, int, int, VmSample]] = field(default_factory=list)  # (row, minute, period_ns, sample)
    sums: BucketSums = field(default_factory=BucketSums)
    minutes: MinuteSums = field(default_factory=MinuteSums)


class BucketFolder:
    """Collects samples of all hosts and closes buckets on demand.

    `closed_until_s`: start of the newest bucket stored before a restart (None = none). Counters, all since the start, in host
    samples: `late` (bucket already closed), `duplicates`, `refused` (too old, or too many open buckets).
    """

    def __init__(self, closed_until_s: int | None = None) -> None:
        self.late = 0
        self.duplicates = 0
        self.refused = 0
        self.clocks = HostClocks()
        self._open: dict[int, _OpenBucket] = {}
        self._closed: dict[int, _OpenBucket] = {}  # least recently touched first
        self._grown: set[int] = set()
        self._closed_s = -1 if closed_until_s is None else closed_until_s
        self._tails = Tails()
        self._learned_s = -1

    def remember(self, history: HistoryBlock) -> None:
        """After a restart: what the VMs' demand was, so that a limit met today is judged by their past. Its buckets count as seen.

        One bucket stands for half an hour: a week of 10,000 VMs takes 2 s.
        """
        for b in range(history.mean.shape[2] - 1, -1, -REMEMBERED)[::-1]:
            free = history.censored[:, :, b] < FREE_SHARE
            mean = np.where(free, history.mean[:, :, b], np.nan).astype(np.float64)
            self._tails.learn(history.vm_ids, mean, np.zeros_like(mean), REMEMBERED)
        self._learned_s = max(self._learned_s, history.end_s)

    def add(self, host_id: str, sample: HostSample, now_ns: int | None = None) -> None:
        """Take one host sample; it belongs to the bucket that holds its `wall_ns`, by our clock where `now_ns` says what that is."""
        wall_ns = sample.wall_ns
        if now_ns is not None:
            wall_ns = self.clocks.wall_ns(host_id, wall_ns, sample.monotonic_ns, now_ns)
        start_s = bucket_start_s(wall_ns)
        bucket = self._bucket(start_s)
        if bucket is None:
            self.refused += 1
            return
        key = (host_id, sample.wall_ns)
        if key in bucket.known:
            self.duplicates += 1
            return
        if start_s in self._closed:
            self.late += 1
            self._grown.add(start_s)
        bucket.known.add(key)
        weight = min(max(sample.period_ns, 1), BUCKET_NS)
        minute = (wall_ns // NS_PER_S - start_s) // MINUTE_S
        rows, pending = bucket.rows, bucket.pending
        for vm_id, vm in sample.vms.items():
            row = rows.get((vm_id, host_id))
            if row is None:
                row = rows[vm_id, host_id] = len(rows)
                bucket.first_ns.append(wall_ns - weight)
                bucket.last_ns.append(wall_ns)
                bucket.counts.append(1)
            else:
                bucket.counts[row] += 1
                if wall_ns > bucket.last_ns[row]:
                    bucket.last_ns[row] = wall_ns
                elif wall_ns - weight < bucket.first_ns[row]:
                    bucket.first_ns[row] = wall_ns - weight
            pending.append((row, minute, weight, vm))
        if len(pending) >= MAX_PENDING:
            _fold(bucket)

    def open_starts(self) -> tuple[int, ...]:
        """Starts of the buckets that hold samples and are not closed, oldest first."""
        return tuple(sorted(self._open))

    def grown_starts(self) -> tuple[int, ...]:
        """Starts of closed buckets that have grown since they were closed, oldest first."""
        return tuple(sorted(self._grown))

    def close(self, start_s: int) -> BucketBlock:
        """Close one bucket, or close a grown one again. A bucket nobody reported in gives a block of no VMs. VMs come sorted by id.

        Raises ValueError when `start_s` is not a bucket start.
        """
        if start_s % BUCKET_S:
            raise ValueError(f"start_s {start_s}: must be a multiple of {BUCKET_S}")
        known = self._closed.get(start_s)
        bucket = known or self._open.pop(start_s, None) or _OpenBucket()
        self._closed_s = max(self._closed_s, start_s)
        self._grown.discard(start_s)
        if known is None:
            self._keep(start_s, bucket)
        else:
            # No touch: after a long replay it would make the newest bucket, still to grow, the first to be forgotten.
            self._forget()
        _fold(bucket)
        return self._block(start_s, bucket)

    def minutes(self, start_s: int) -> MinuteBlock | None:
        """The minutes of a bucket that was just closed; None where it is no longer kept."""
        bucket = self._closed.get(start_s)
        if bucket is None or not bucket.rows:
            return None
        rows_of = _rows_of(bucket)
        rows = [[row for _, row in rows_of[vm_id]] for vm_id in sorted(rows_of)]
        samples = np.array([sum(bucket.counts[row] for row in own) for own in rows], np.int64)
        return bucket.minutes.block(start_s, tuple(sorted(rows_of)), rows, samples)

    def _block(self, start_s: int, bucket: _OpenBucket) -> BucketBlock:
        vm_ids, hosts, counts, sums = _by_vm(bucket)
        totals = sums.totals(vm_ids, self._tails, learn=start_s > self._learned_s)
        self._learned_s = max(self._learned_s, start_s)
        return BucketBlock(start_s=start_s, vm_ids=vm_ids, host_ids=hosts, samples=counts, **totals._asdict())

    def _bucket(self, start_s: int) -> _OpenBucket | None:
        bucket = self._open.get(start_s)
        if bucket is not None:
            return bucket
        if start_s > self._closed_s:
            if len(self._open) < MAX_OPEN:
                bucket = self._open[start_s] = _OpenBucket()
            return bucket
        if start_s < self._closed_s - MAX_LATE_S:
            return None
        bucket = self._closed.pop(start_s, None) or _OpenBucket()
        self._keep(start_s, bucket)
        return bucket

    def _keep(self, start_s: int, bucket: _OpenBucket) -> None:
        """Newest place in the order of touch."""
        self._closed[start_s] = bucket
        self._forget()

    def _forget(self) -> None:
        """Let the longest untouched go when there are too many, up to the first that still owes its growth; the next tick settles that."""
        while len(self._closed) > MAX_CLOSED:
            oldest = next(iter(self._closed))
            if oldest in self._grown:
                return
            del self._closed[oldest]


def _by_vm(bucket: _OpenBucket) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.int64], BucketSums]:
    """(VM ids sorted, host of each at the bucket's end, samples of each, sums), one row a VM whatever hosts it was on."""
    rows_of = _rows_of(bucket)
    vm_ids = tuple(sorted(rows_of))
    hosts = [rows_of[vm_id][0][0] for vm_id in vm_ids]
    counts = np.array([sum(bucket.counts[row] for _, row in rows_of[vm_id]) for vm_id in vm_ids], dtype=np.int64)
    sums = bucket.sums.of(np.array([rows_of[vm_id][0][1] for vm_id in vm_ids], dtype=np.int64))
    for i, vm_id in enumerate(vm_ids):
        seen = rows_of[vm_id]
        if len(seen) > 1:
            hosts[i] = max(seen, key=lambda entry: (bucket.last_ns[entry[1]], entry[0]))[0]
            rows = sorted(row for _, row in seen)
            covered_s = _union_ns([(bucket.first_ns[row], bucket.last_ns[row]) for row in rows]) / NS_PER_S
            sums.join(i, bucket.sums.of(np.array(rows, dtype=np.int64)), covered_s)
    return vm_ids, tuple(hosts), counts, sums


def _rows_of(bucket: _OpenBucket) -> dict[str, list[tuple[str, int]]]:
    """VM -> (host, row) of each host that it was on."""
    rows_of: dict[str, list[tuple[str, int]]] = {}
    for (vm_id, host_id), row in bucket.rows.items():
        rows_of.setdefault(vm_id, []).append((host_id, row))
    return rows_of


def _union_ns(spans: list[tuple[int, int]]) -> int:
    """Time covered by at least one of the spans."""
    total, reached = 0, -1
    for first, last in sorted(spans):
        total += max(0, last - max(first, reached))
        reached = max(reached, last)
    return total


def _fold(bucket: _OpenBucket) -> None:
    """Add the pending samples to the sums."""
    if not bucket.pending:
        return
    rows = np.array([row for row, _, _, _ in bucket.pending], dtype=np.int64)
    minutes = np.array([minute for _, minute, _, _ in bucket.pending], dtype=np.int64)
    seconds = np.array([weight for _, _, weight, _ in bucket.pending], dtype=np.float64) / NS_PER_S
    columns = columns_of([vm for _, _, _, vm in bucket.pending])
    demand = demand_of_columns(columns)
    bucket.sums.add(len(bucket.rows), rows, seconds, demand)
    bucket.minutes.add(len(bucket.rows), rows, minutes, seconds, values_of(columns, demand))
    bucket.pending.clear()
