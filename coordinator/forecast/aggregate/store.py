"""What the aggregates must remember of single VMs: a day of demand and the twelve newest forecasts. Pure.

With both at hand a group's past is re-summed for whoever its members are now, so a group never shows the demand of VMs that left.
Bounded: (WINDOW + 2 x 12 x 12) x r float32 a VM, 12 KB; 10,000 VMs take 120 MB. Time is the first axis, newest at `ago` 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.rows import NEW, take_rows
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

DAY: Final = 288
WINDOW: Final = DAY + 12  # a day and the hour before it
FORGET_AFTER: Final = DAY  # buckets a VM may be away before its row is given up


class MemberStore:
    """Rows of VMs; `demand` float32[WINDOW, v, r], `mean` and `stddev` float32[12 issues, v, r, 12]: rings over their first axis."""

    def __init__(self) -> None:
        self.row: dict[str, int] = {}
        self.demand: F32 = np.full((WINDOW, 0, N_RESOURCES), np.nan, dtype=np.float32)
        self.mean: F32 = np.full((HORIZON_STEPS, 0, N_RESOURCES, HORIZON_STEPS), np.nan, dtype=np.float32)
        self.stddev: F32 = self.mean.copy()
        self.capacity: F64 = np.full((0, N_RESOURCES), np.nan)
        self.level: F64 = np.zeros((0, N_RESOURCES))  # what the VM is expected to need now: its weight among others
        self.unseen: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.bucket = 0  # slot of the newest bucket
        self.issue = 0  # slot of the newest issue

    def follow(self, vm_ids: Sequence[str]) -> NDArray[np.int64] | None:
        """Give rows to new VMs and drop those long away. Returns the old row of each row now (rows.NEW = new), None = nothing changed."""
        new = [vm_id for vm_id in vm_ids if vm_id not in self.row]
        stale = self.unseen >= FORGET_AFTER
        if not new and not stale.any():
            return None
        wanted = set(vm_ids)
        kept = [(vm_id, row) for vm_id, row in self.row.items() if not stale[row] or vm_id in wanted]
        take = np.array([row for _, row in kept] + [NEW] * len(new), dtype=np.int64)
        self.row = {vm_id: i for i, vm_id in enumerate([vm_id for vm_id, _ in kept] + new)}
        self.demand, self.mean, self.stddev = (take_rows(array, take, 1, np.nan) for array in (self.demand, self.mean, self.stddev))
        self.capacity, self.unseen = take_rows(self.capacity, take, 0, np.nan), take_rows(self.unseen, take, 0, 0)
        self.level = take_rows(self.level, take, 0, 0.0)
        return take

    def rows_of(self, vm_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of VMs that all have one."""
        return np.array([self.row[vm_id] for vm_id in vm_ids], dtype=np.int64)

    def append(self, rows: NDArray[np.int64], values: F64) -> None:
        """The next bucket: demand float64[n, r] of these rows, NaN for all others."""
        self.bucket = (self.bucket + 1) % WINDOW
        self.demand[self.bucket] = np.nan
        self.unseen += 1
        self.put(rows, values)

    def put(self, rows: NDArray[np.int64], values: F64) -> None:
        """Demand float64[n, r] in the newest bucket; NaN leaves what is there."""
        known = ~np.isnan(values)
        self.demand[self.bucket, rows] = np.where(known, values, self.demand[self.bucket, rows])
        self.level[rows] = np.where(known, values, self.level[rows])
        self.unseen[rows] = 0

    def expected(self) -> F32:
        """What the newest issue said of the bucket that closes now: float32[v, r]."""
        said: F32 = self.mean[self.issue, :, :, 0]
        return said

    def remember(self, rows: NDArray[np.int64], mean: F32, stddev: F32) -> None:
        """The next issue: float32[n, r, 12] of these rows, NaN for all others."""
        self.issue = (self.issue + 1) % HORIZON_STEPS
        for ring, values in ((self.mean, mean), (self.stddev, stddev)):
            ring[self.issue] = np.nan
            ring[self.issue, rows] = values
        self.level[rows] = np.where(np.isnan(mean[:, :, 0]), self.level[rows], mean[:, :, 0])

    def buckets_ago(self, ago: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of the buckets closed `ago` buckets before the newest one."""
        slots: NDArray[np.int64] = (self.bucket - ago) % WINDOW
        return slots
