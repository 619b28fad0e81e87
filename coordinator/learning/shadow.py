"""What the plan would have given, scored against the demand that came: so observe mode earns trust before anything is changed.

For every VM and resource of the bucket that followed a sizing: unmet = demand peak above the grant, spare = grant above the demand mean,
both for the planned grant and for the allocation that was really in force. Sums by the mode of the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from coordinator.model import F64, N_RESOURCES, BucketBlock, HostState, VmSize
from coordinator.sizing.levers import in_force
from shared.model import Mode

PLANNED_UNMET, PLANNED_SPARE, REAL_UNMET, REAL_SPARE, DEMAND, SHORT_PLANNED, SHORT_REAL, COUNT = range(8)
MODES: Final = tuple(Mode)


@dataclass(frozen=True, kw_only=True)
class ShadowScore:
    """Means over VM-buckets, as shares of the mean demand, [r]; NaN = nothing scored. `short`: share of buckets with a peak above it."""

    planned_unmet: F64
    planned_spare: F64
    planned_short: F64
    real_unmet: F64
    real_spare: F64
    real_short: F64
    count: F64


@dataclass
class ShadowLedger:
    """Holds the newest grants per VM until the next bucket has closed."""

    grants: dict[str, tuple[F64, F64]] = field(default_factory=dict)  # vm_id -> (planned, real) [r]
    sums: F64 = field(default_factory=lambda: np.zeros((len(MODES), 8, N_RESOURCES)))

    def propose(self, host: HostState, sizes: Sequence[VmSize]) -> None:
        """Remember what each VM was to get and what it had."""
        vms = {vm.domain.vm_id: vm for vm in host.vms}
        for size in sizes:
            vm = vms.get(size.vm_id)
            if vm is not None:
                real = np.array(in_force(vm))
                held = ((size.lower <= real) & (real <= size.upper)) | np.isnan(size.target)
                self.grants[size.vm_id] = (np.where(held, real, size.target), real)

    def score(self, bucket: BucketBlock, modes: Mapping[str, Mode]) -> None:
        """Score the grants against the bucket that followed them, then forget them."""
        rows = [i for i, vm_id in enumerate(bucket.vm_ids) if vm_id in self.grants]
        if rows:
            planned = np.array([self.grants[bucket.vm_ids[i]][0] for i in rows])
            real = np.array([self.grants[bucket.vm_ids[i]][1] for i in rows])
            mode_of = np.array([MODES.index(modes.get(bucket.host_ids[i], Mode.OFF)) for i in rows])
            mean, peak = bucket.mean[rows], bucket.peak[rows]
            known = np.isfinite(planned) & np.isfinite(real) & np.isfinite(mean) & np.isfinite(peak)
            figures = (
                np.maximum(0.0, peak - planned),
                np.maximum(0.0, planned - mean),
                np.maximum(0.0, peak - real),
                np.maximum(0.0, real - mean),
                mean,
                peak > planned,
                peak > real,
                known,
            )
            for m in np.unique(mode_of):
                pick = known & (mode_of == m)[:, None]
                self.sums[m] += [np.where(pick, figure, 0.0).sum(axis=0) for figure in figures]
        self.grants.clear()

    def score_of(self, mode: Mode) -> ShadowScore:
        """Everything scored so far on hosts in this mode."""
        sums = self.sums[MODES.index(mode)]
        with np.errstate(invalid="ignore", divide="ignore"):
            return ShadowScore(
                planned_unmet=sums[PLANNED_UNMET] / sums[DEMAND],
                planned_spare=sums[PLANNED_SPARE] / sums[DEMAND],
                planned_short=sums[SHORT_PLANNED] / sums[COUNT],
                real_unmet=sums[REAL_UNMET] / sums[DEMAND],
                real_spare=sums[REAL_SPARE] / sums[DEMAND],
                real_short=sums[SHORT_REAL] / sums[COUNT],
                count=sums[COUNT].copy(),
            )
