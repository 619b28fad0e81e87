"""What was said of each step ahead, kept until its bucket comes: a ring of h + 1 origins for step h, as no older one is ever read.

That is 78 rows where a ring of whole issues has 144. The row that step h of an issue takes is the one whose bucket has just come, so each
tick reads and then writes the same twelve rows, each of them contiguous over the fleet.

Pure. Invariant: `spoke` is true for a step exactly where an issue was made h + 1 buckets ago, is not withdrawn, and said something.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.rows import NEW, take_rows
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

_SIZES: Final = np.arange(1, HORIZON_STEPS + 1)
_STARTS: Final = np.cumsum(_SIZES) - _SIZES
ROWS: Final = int(_SIZES.sum())


class Decided(NamedTuple):
    """What was said of the newest bucket, and what came."""

    rows: F32  # [78, >= s, width]
    places: NDArray[np.int64]  # [h] the rows that say it
    spoke: NDArray[np.bool_]  # [h]
    came: F32  # [s, h]


class Triangle:
    """Rows float32[78, s, width], 312 bytes a series for each of `width`, and room for an eighth more; not there before something is said.

    The room makes a VM that comes cheap: a copy of these rows takes longer than a tick.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._rows: F32 | None = None
        self._vms = 0
        self._origin = 0  # the issue to come
        self._spoke: NDArray[np.bool_] = np.zeros(HORIZON_STEPS, dtype=bool)  # of the newest twelve, by number modulo twelve

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._vms = len(take)
        if self._rows is None:
            return
        if self._vms > self._rows.shape[1]:
            self._rows = take_rows(self._rows, np.append(take, np.full(_room(self._vms), NEW)), 1, np.nan)
            return
        moved = np.flatnonzero(take != np.arange(self._vms))
        if not len(moved):
            return
        first, fresh = moved[0], np.flatnonzero(take == NEW)
        for row in self._rows:
            if len(fresh) < len(moved):
                row[first : self._vms] = row[take[first:]]
            row[fresh] = np.nan

    @property
    def rows(self) -> F32:
        """float32[78, >= v * r, width], to read and to write."""
        if self._rows is None:
            self._rows = np.full((ROWS, self._vms + _room(self._vms), N_RESOURCES, self._width), np.nan, dtype=np.float32)
        return self._rows.reshape(ROWS, -1, self._width)

    @property
    def places(self) -> NDArray[np.int64]:
        """int64[h]: the row that says something of the newest bucket, and then of the issue to come."""
        return _STARTS + self._origin % _SIZES

    @property
    def origins(self) -> NDArray[np.int64]:
        """int64[h]: number modulo twelve of the issue that speaks of the newest bucket."""
        return (self._origin - _SIZES) % HORIZON_STEPS

    @property
    def newest(self) -> int:
        """Number modulo twelve of the issue to come."""
        return self._origin % HORIZON_STEPS

    @property
    def spoke(self) -> NDArray[np.bool_]:
        """bool[h]: whether that issue said anything."""
        known: NDArray[np.bool_] = self._spoke[self.origins]
        return known

    def decided(self, actual: F32 | F64) -> Decided | None:
        """What the newest bucket decides; actual float[v, r, h], NaN = not known. None where nothing was said of it."""
        spoke = self.spoke
        if not spoke.any():
            return None
        came = np.ascontiguousarray(actual, dtype=np.float32).reshape(-1, actual.shape[-1])
        return Decided(self.rows, self.places, spoke, came)

    def said_last(self, vm: int) -> F32 | None:
        """What the newest issue said of one VM, float32[h, r, width]; None where it said nothing."""
        if self._rows is None or not self._spoke[(self._origin - 1) % HORIZON_STEPS]:
            return None
        said: F32 = self._rows[_STARTS + (self._origin - 1) % _SIZES, vm]
        return said

    def close(self, spoke: bool) -> None:
        """The issue is made, its rows are written; `spoke` false: it said nothing."""
        self._spoke[self.newest] = spoke
        self._origin += 1

    def forget(self) -> None:
        """Nothing that was said counts any more."""
        self._spoke[:] = False

    def withdraw(self) -> None:
        """Take back the newest issue: the next one takes its place."""
        self._origin -= 1
        self._spoke[self.newest] = False


def _room(vms: int) -> int:
    return vms // 8
