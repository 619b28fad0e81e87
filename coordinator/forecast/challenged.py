"""What the pool says, bettered by challengers where these have shown that they are better there.

The pool's forecast and the challenger's (see challengers/board.py) are weighed against each other by a Combiner of their own. It hears both
only at the same origins: a challenger speaks for an hour or two, and beside members that have been scored for days, through wilder and
calmer hours than it has seen, its record would be luck (measured as one more member of the pool: up to 12 % worse on Bitbrains' network).
Until it was scored LEAST times for a series, or LEAST_FLEET times for that resource in the fleet, nothing leans on it.

Only VMs that challengers spoke of of late have a place here: no cost where there are none. Pure; axes as in combine.py, c = challenged VM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.challengers import Board, ChallengerForecast
from coordinator.forecast.combine import GROUP_OF_STEP, Combiner
from coordinator.forecast.rows import NEW
from coordinator.model import F32, F64

I64 = NDArray[np.int64]

MEMBERS: Final = ("pool", "challenger")
FLEET_EVIDENCE: Final = 48.0  # four hours: what overlapping hours say of one series repeats itself
LEAST: Final = 6.0
LEAST_FLEET: Final = 60.0
LINGER: Final = 48  # buckets that a VM keeps its scores after its last forecast has run out


class Challenge:
    """Of the challengers `names`; call once per bucket `learn`, then `issue` or `pause`."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises ValueError for a name that is not registered."""
        self._board = Board(names)
        self._combiner = Combiner(MEMBERS, FLEET_EVIDENCE)
        self._vms: I64 = np.zeros(0, dtype=np.int64)  # [c] rows of the fleet
        self._quiet: I64 = np.zeros(0, dtype=np.int64)  # [c] buckets since its last forecast

    @property
    def names(self) -> tuple[str, ...]:
        """The challengers listened to."""
        return self._board.names

    def post(self, forecasts: Sequence[ChallengerForecast], row: Mapping[str, int], seen: F32, now_s: int) -> None:
        """As Board.post, each of them."""
        for forecast in forecasts:
            self._board.post(forecast, row, seen, now_s)

    def rearrange(self, take: I64) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._board.rearrange(take)
        if len(self._vms):
            old = take != NEW
            place = np.full(max(self._vms.max(), take.max(initial=NEW)) + 1, NEW, dtype=np.int64)
            place[take[old]] = np.flatnonzero(old)
            kept = np.flatnonzero(place[self._vms] != NEW)
            self._settle(place[self._vms[kept]], kept, self._quiet[kept])

    def learn(self, newest: F64, actual: F64, slots: tuple[int, ...], start_s: int) -> None:
        """Score what the bucket that started at `start_s` decides: newest float64[v, r]; actual and slots as of Combiner.learn."""
        self._board.learn(newest, start_s)
        if len(self._vms):
            self._combiner.learn(actual[self._vms], slots)

    def issue(self, slot: int, point: F64, now_s: int) -> tuple[F64, NDArray[np.int8]]:
        """The pool's point [v, r, 12] at `now_s`, the end of the newest bucket -> (bettered point, who leads int8[v, r]; -1 = the pool)."""
        led = np.full(point.shape[:2], -1, dtype=np.int8)
        if not self._board.held and not len(self._vms):
            return point, led
        mean, who = self._board.speak(now_s)
        self._admit(np.unique(np.nonzero(who >= 0)[0]))
        vms = self._vms
        if not len(vms):
            return point, led
        pool, other = point[vms], mean[vms]
        both = np.stack([np.where(np.isnan(other), np.nan, pool), np.where(np.isnan(pool), np.nan, other)])
        mixed, weights, leader = self._combiner.issue(slot, both)
        evidence = self._combiner.evidence[1]  # [g, c, r] of the challenger
        proven = (evidence >= LEAST) | (evidence.sum(axis=1, keepdims=True) >= LEAST_FLEET)
        use = np.moveaxis(proven, 0, -1) & (weights.sum(axis=0) > 0)
        out = point.copy()
        out[vms] = np.where(use[..., GROUP_OF_STEP], mixed, pool)
        led[vms] = np.where((leader == 1) & use.any(axis=-1), who[vms], -1)
        return out, led

    def pause(self) -> None:
        """A bucket without an issue."""
        if len(self._vms):
            self._combiner.pause()

    def withdraw(self) -> None:
        """Take back the newest issue, because its bucket is issued again."""
        if len(self._vms):
            self._combiner.withdraw()

    def _admit(self, speaking: I64) -> None:
        """Places for the VMs (rows of the fleet) that challengers speak of now, and for those of late."""
        self._quiet = np.where(np.isin(self._vms, speaking), 0, self._quiet + 1)
        kept = np.flatnonzero(self._quiet <= LINGER)
        new = np.setdiff1d(speaking, self._vms[kept])
        if len(new) or len(kept) < len(self._vms):
            take = np.append(kept, np.full(len(new), NEW))
            self._settle(np.append(self._vms[kept], new), take, np.append(self._quiet[kept], np.zeros(len(new), dtype=np.int64)))

    def _settle(self, vms: I64, take: I64, quiet: I64) -> None:
        self._vms, self._quiet = vms, quiet
        self._combiner.rearrange(take)
