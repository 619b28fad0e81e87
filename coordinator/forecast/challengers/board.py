"""What challengers said, as members of the pool: for each tick the part of their forecasts that lies in the next hour.

A forecast stays on the board until it has run out; where two of one challenger speak of the same series, the newer one counts. A series
that no challenger was asked about is NaN: its weight goes elsewhere, as with every silent member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from coordinator.forecast.challengers.port import ChallengerForecast
from coordinator.forecast.challengers.registry import find
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS


class Board:
    """`names`: the challengers listened to. Raises ValueError for one that is not registered."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names: tuple[str, ...] = tuple(find(name).name for name in names)
        self._posted: dict[str, list[ChallengerForecast]] = {name: [] for name in self.names}

    def post(self, forecast: ChallengerForecast) -> None:
        """Take a forecast. Raises ValueError when its challenger is not listened to."""
        if forecast.name not in self._posted:
            raise ValueError(f"forecast of {forecast.name!r}: this board listens to {', '.join(self.names) or 'none'}")
        posted = self._posted[forecast.name]
        posted.append(forecast)
        posted.sort(key=lambda one: one.issued_s)

    def members(self, vm_ids: Sequence[str], now_s: int) -> F64:
        """The next hour from `now_s` (the end of the newest bucket) for these VMs: float64[k, v, r, 12] in the order of `names`."""
        out = np.full((len(self.names), len(vm_ids), N_RESOURCES, HORIZON_STEPS), np.nan)
        self._lay(out, vm_ids, now_s, lambda one: one.as_of(now_s))
        return out

    def quantiles(self, vm_ids: Sequence[str], now_s: int) -> F64:
        """Likewise what challengers say of LEVELS themselves: float64[k, v, r, 12, q]; NaN from those that give a mean only."""
        out = np.full((len(self.names), len(vm_ids), N_RESOURCES, HORIZON_STEPS, len(LEVELS)), np.nan)
        self._lay(out, vm_ids, now_s, lambda one: one.quantiles_as_of(now_s))
        return out

    def _lay(self, out: F64, vm_ids: Sequence[str], now_s: int, part: Callable[[ChallengerForecast], F32 | None]) -> None:
        place = {vm_id: row for row, vm_id in enumerate(vm_ids)}
        for k, name in enumerate(self.names):
            self._posted[name] = [one for one in self._posted[name] if one.issued_s + one.mean.shape[1] * BUCKET_S > now_s]
            for one in self._posted[name]:
                said = part(one)
                if said is None:
                    continue
                row = np.array([place.get(vm_id, -1) for vm_id in one.vm_ids], dtype=np.int64)
                there = np.flatnonzero(row >= 0)
                held = out[k, row[there], one.resource[there]]
                out[k, row[there], one.resource[there]] = np.where(np.isnan(said[there]), held, said[there])
