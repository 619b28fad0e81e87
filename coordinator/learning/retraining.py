"""When the global model is trained anew: every so many cycles, and soon after a drift was told. Pure: whoever asks brings the time.

A drift waits until the last training is LEAST_S old: data that a training has just seen teach the next one nothing. It is not forgotten
meanwhile, for the drift watch asks once and then rests for hours.
"""

from __future__ import annotations

from typing import Final

from shared.units import NS_PER_S

EVERY_CYCLES: Final = 24  # two hours
LEAST_S: Final = 1800
SCHEDULE: Final = "schedule"


class RetrainSchedule:
    """Ask `due` once a cycle; call `begin` when a training starts. Times in ns of one clock."""

    def __init__(self) -> None:
        self._drift: str | None = None
        self._began_ns: int | None = None

    def drifted(self, reason: str) -> None:
        """The forecasts have worsened; of several reasons before one training the newest counts."""
        self._drift = reason

    def due(self, cycle: int, now_ns: int) -> bool:
        """Whether to train after this decision cycle (counted from 1)."""
        if cycle % EVERY_CYCLES == 0:
            return True
        rested = self._began_ns is None or now_ns - self._began_ns >= LEAST_S * NS_PER_S
        return self._drift is not None and rested

    def begin(self, now_ns: int) -> str:
        """A training starts, on all data up to now: what asked for it, SCHEDULE or the drift's reason."""
        reason, self._drift, self._began_ns = self._drift or SCHEDULE, None, now_ns
        return reason
