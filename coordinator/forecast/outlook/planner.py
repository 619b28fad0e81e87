"""The outlook of one forecast shard: half-hour blocks of the next six hours, issued whenever a half hour closes.

Plans look farther than the hour that sizes need: hosts take minutes to wake, and moves belong into the valley before the ramp. Beyond an
hour the last value fades and the day's course counts; it moves slowly, so an issue each half hour is enough. The means are issued in
the tick that closes the block, the peaks in the one after it, so that no tick pays for both; then the whole is told.

Pure. State: 42 KiB a series, 3.5 of them blocks of eight days and a day's room, the rest two targets (target.py). Invariants: the same
calls give the same bytes; quantiles are monotone in level, inside [0, capacity], finite or NaN throughout a (VM, resource); no peak's below
its mean's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.history import DemandWindow
from coordinator.forecast.outlook.blocks import BLOCK_S, BUCKETS, DAY_BLOCKS, WEEK_BLOCKS, closes, fold
from coordinator.forecast.outlook.target import BlockTarget
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, N_RESOURCES, HistoryBlock, Outlook
from shared.units import BUCKET_S

KEEP: Final = WEEK_BLOCKS + DAY_BLOCKS
REPLAY: Final = 108  # blocks: the issues of two days and six hours are made and scored again on load


class OutlookPlanner:
    """Rows follow the engine's through `rearrange`."""

    def __init__(self, replay: int = REPLAY) -> None:
        self._replay = replay
        self._blocks = DemandWindow(KEEP, slack=DAY_BLOCKS)
        self._targets = (BlockTarget(), BlockTarget())
        self._end_s: int | None = None  # of the newest block
        self._half: F32 | None = None  # means of an issue whose peaks are to come
        self._whole: tuple[int, F32, F32] | None = None  # issue time, means, peaks, until they are taken

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows). New rows are unknown until the next half hour."""
        self._blocks.rearrange(take)
        for target in self._targets:
            target.rearrange(take)
        if self._half is not None:
            self._half = take_rows(self._half, take, 0, np.nan)
        if self._whole is not None:
            issued_s, mean, peak = self._whole
            self._whole = issued_s, take_rows(mean, take, 0, np.nan), take_rows(peak, take, 0, np.nan)

    def load(self, history: HistoryBlock) -> None:
        """Take the history's whole blocks and replay the newest. The rows are those of the last `rearrange`."""
        starts = history.end_s - BUCKET_S * np.arange(history.mean.shape[2])[::-1]
        whole = np.flatnonzero((starts + BUCKET_S) % BLOCK_S == 0)
        if not len(whole):
            return
        until = int(whole[-1]) + 1
        first = max(0, until - KEEP * BUCKETS)
        means, peaks = fold(history.mean[:, :, first:until], history.peak[:, :, first:until])
        count = means.shape[2]
        capacity = history.capacity.astype(np.float64)
        newest_s = int(starts[until - 1]) + BUCKET_S
        for b in range(count):
            self._end_s = newest_s - (count - 1 - b) * BLOCK_S
            self._blocks.append(means[:, :, b], peaks[:, :, b])
            if b >= count - self._replay:
                self._issue_means(capacity)
                self._issue_peaks(capacity)

    def bucket(self, start_s: int, window: DemandWindow, capacity: F64) -> None:
        """A bucket is in the window. capacity float64[v, r], NaN = unbounded."""
        if self._half is not None:
            self._issue_peaks(capacity)
        if not closes(start_s):
            return
        end_s = start_s + BUCKET_S
        if self._end_s is not None:
            self._skip((end_s - self._end_s) // BLOCK_S - 1)
        self._blocks.append(*self._newest(window))
        self._end_s = end_s
        self._issue_means(capacity)

    def again(self, start_s: int, window: DemandWindow, capacity: F64) -> None:
        """The newest bucket was told more: where it closed a block, the block's means are issued again."""
        if self._end_s != start_s + BUCKET_S:
            return
        self._blocks.merge_newest(*self._newest(window))
        self._half = None
        self._targets[0].withdraw()
        self._half = self._targets[0].issue(self._blocks.means(KEEP), self._end_s, capacity)

    def take(self, vm_ids: Sequence[str]) -> Outlook | None:
        """The newest issue, whose rows are these VMs; None = it was taken before."""
        if self._whole is None:
            return None
        (issued_s, mean, peak), self._whole = self._whole, None
        return Outlook(
            issued_s=issued_s,
            vm_ids=tuple(vm_ids),
            quantiles=mean,
            peak_quantiles=peak,
            coverage=self._targets[0].coverage(),
        )

    def _newest(self, window: DemandWindow) -> tuple[F32, F32]:
        mean, peak = fold(window.means(BUCKETS), window.peaks(BUCKETS))
        return mean[:, :, 0], peak[:, :, 0]

    def _skip(self, missing: int) -> None:
        """Blocks that never came, so that seasons stay in phase."""
        if missing <= 0:
            return
        nothing = np.full((*self._blocks.means(1).shape[:1], N_RESOURCES), np.nan, dtype=np.float32)
        for ahead in range(min(missing, KEEP)):
            self._end_s = (self._end_s or 0) + BLOCK_S * (1 if ahead or missing <= KEEP else 1 + missing - KEEP)
            self._blocks.append(nothing, nothing)
            for target in self._targets:
                target.learn(nothing, self._end_s)
                target.pause()

    def _issue_means(self, capacity: F64) -> None:
        end_s, target = self._end_s or 0, self._targets[0]
        target.learn(self._blocks.means(1)[:, :, 0], end_s)
        self._half = target.issue(self._blocks.means(KEEP), end_s, capacity)

    def _issue_peaks(self, capacity: F64) -> None:
        """The other half of the newest issue."""
        if self._half is None:
            return
        end_s, target = self._end_s or 0, self._targets[1]
        target.learn(self._blocks.peaks(1)[:, :, 0], end_s)
        peak = target.issue(self._blocks.peaks(KEEP), end_s, capacity)
        self._whole, self._half = (end_s, self._half, np.fmax(peak, self._half)), None
