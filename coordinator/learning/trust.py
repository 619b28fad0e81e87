"""Which forecasts not to act on now: a series whose band failed at once, cycle after cycle, drops to the reactive rule.

The engine's own verdict rests on the coverage of the last hours, so it needs hours to fall. This watch is the fast one, and knows nothing
of the engine: RUN actuals in a row outside the one-step 95 % band, and the series is out of calibration from the next plan on; RUN in a row
inside, and it is back, if the engine agrees. By chance alone (.05 ** 3) one series in 8,000 drops in a cycle. A miss by less than a change
that sizing would make (its dead band) is none: an idle VM's band may be a hair.

Pure; kept in memory only, so after a restart it takes RUN cycles again. Axes as in coordinator/model.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.rows import NEW, take_rows
from coordinator.learning.accuracy import FLOORS
from coordinator.model import F64, N_RESOURCES, BucketBlock, ForecastBlock, NoForecast

RUN: Final = 3  # cycles
SLACK: Final = 0.02  # of the bound that was passed, on top of FLOORS


class CalibrationWatch:
    """Give it every closed bucket and every issued forecast, in time order; what `mark` gives back is what may be acted on."""

    def __init__(self) -> None:
        self._vm_ids: tuple[str, ...] = ()
        self._said: tuple[int, F64, F64] | None = None  # issued_s, lower and upper bound of its first step [v, r]
        self._missed: NDArray[np.int64] = np.zeros((0, N_RESOURCES), np.int64)  # in a row
        self._held: NDArray[np.int64] = np.zeros((0, N_RESOURCES), np.int64)
        self._off: NDArray[np.bool_] = np.zeros((0, N_RESOURCES), np.bool_)

    def bucket(self, bucket: BucketBlock) -> None:
        """A bucket closed: score what the newest forecast said of it first. Unknown demand or another bucket: nothing changes."""
        if self._said is None or self._said[0] != bucket.start_s:
            return
        _, low, high = self._said
        self._said = None
        place = {vm_id: row for row, vm_id in enumerate(bucket.vm_ids)}
        actual: F64 = take_rows(bucket.mean, np.array([place.get(vm_id, NEW) for vm_id in self._vm_ids], np.int64), 0, np.nan)
        missed = (actual > high * (1.0 + SLACK) + FLOORS) | (actual < low * (1.0 - SLACK) - FLOORS)
        known = np.isfinite(actual) & np.isfinite(low) & np.isfinite(high)
        self._missed = np.where(known, np.where(missed, self._missed + 1, 0), self._missed)
        self._held = np.where(known, np.where(missed, 0, self._held + 1), self._held)
        self._off = (self._missed >= RUN) | (self._off & (self._held < RUN))

    def mark(self, forecast: ForecastBlock) -> ForecastBlock:
        """The forecast, with OUT_OF_CALIBRATION as the reason of series that had one and are off."""
        self._follow(forecast.vm_ids)
        low, high = (int(np.argmin(np.abs(np.array(forecast.levels) - level))) for level in (0.025, 0.975))
        first = forecast.quantiles[:, :, 0].astype(np.float64)
        self._said = (forecast.issued_s, first[..., low], first[..., high])
        off = self._off & (forecast.reason == NoForecast.OK)
        if not off.any():
            return forecast
        return replace(forecast, reason=np.where(off, NoForecast.OUT_OF_CALIBRATION, forecast.reason).astype(np.int8))

    def _follow(self, vm_ids: tuple[str, ...]) -> None:
        if vm_ids == self._vm_ids:
            return
        row = {vm_id: i for i, vm_id in enumerate(self._vm_ids)}
        take = np.array([row.get(vm_id, NEW) for vm_id in vm_ids], np.int64)
        self._missed, self._held = take_rows(self._missed, take, 0, 0), take_rows(self._held, take, 0, 0)
        self._off = take_rows(self._off, take, 0, False)
        self._vm_ids = vm_ids
