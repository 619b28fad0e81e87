"""The Clock port: the only way the product reads or waits for time.

Invariant: decision code receives `now_ns` as an argument and never holds a Clock; only drivers do.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import msgspec

from shared.units import NS_PER_S


class Clock(Protocol):
    """Wall time for stamping and comparing across machines, monotonic time for intervals on one."""

    def wall_ns(self) -> int:
        """Unix time in nanoseconds."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds that never run backwards within one process."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds` of this clock's time."""
        ...


class SystemClock:
    """Real time."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class ClockAnchor(msgspec.Struct, frozen=True, kw_only=True):
    """Ties simulated to real time so that several processes share one simulated clock.

    simulated = simulated_start_ns + (real - real_start_ns) * speed; it stands still until real_start_ns, so that all can get ready.
    """

    simulated_start_ns: int
    real_start_ns: int
    speed: float


class ScaledClock:
    """Simulated wall time that runs `speed` times as fast as real time, the same in every process with this anchor."""

    def __init__(self, anchor: ClockAnchor) -> None:
        if not 0.01 <= anchor.speed <= 10_000:
            raise ValueError(f"speed {anchor.speed!r}: allowed 0.01 to 10000")
        self.anchor = anchor

    def wall_ns(self) -> int:
        real = max(0, time.time_ns() - self.anchor.real_start_ns)
        return self.anchor.simulated_start_ns + int(real * self.anchor.speed)

    def monotonic_ns(self) -> int:
        return int(time.monotonic_ns() * self.anchor.speed)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds) / self.anchor.speed)


class ManualClock:
    """A clock that moves only when told to; for tests and the single-threaded simulation."""

    def __init__(self, start_ns: int = 0) -> None:
        self.now_ns = start_ns

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * NS_PER_S)

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)
