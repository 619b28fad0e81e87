"""The peaks of CPU use and of waiting between two sampling rounds, from looks in between. Pure."""

from __future__ import annotations

from typing import Final

# A shorter interval is joined to the next: the scheduler and a cgroup's accounting move in jumps of up to 10 ms.
LEAST_NS: Final = 200_000_000


class Peaks:
    """Largest rates of one VM over the intervals between looks."""

    __slots__ = ("_at_ns", "_delay", "_looks", "_ready", "_throttled", "_used", "_used_peak")

    def __init__(self) -> None:
        self._at_ns = 0
        self._used: int | None = None
        self._delay: int | None = None
        self._throttled: int | None = None
        self._looks = 0
        self._used_peak: int | None = None
        self._ready: int | None = None

    def look(self, now_ns: int, used: int | None, delay: int | None, throttled: int | None) -> None:
        """Take in the counters (ns) at monotonic `now_ns`; `throttled` None = the VM cannot have been held back by a quota."""
        elapsed = now_ns - self._at_ns
        if self._at_ns and elapsed < LEAST_NS:
            return
        if self._at_ns:
            self._looks += 1
            self._used_peak = _larger(self._used_peak, _rate(self._used, used, 0, elapsed))
            held = 0 if throttled is None or self._throttled is None else max(0, throttled - self._throttled)
            self._ready = _larger(self._ready, _rate(self._delay, delay, held, elapsed))
        self._at_ns = now_ns
        self._used, self._delay, self._throttled = used, delay, throttled

    def take(self) -> tuple[int | None, int | None]:
        """(millicores, permille of one CPU) since the last call. None, None when there was no look in between: the mean says as much."""
        peaks = (self._used_peak, self._ready) if self._looks > 1 else (None, None)
        self._looks, self._used_peak, self._ready = 0, None, None
        return peaks


def _rate(before: int | None, now: int | None, less: int, elapsed_ns: int) -> int | None:
    if before is None or now is None or now < before:
        return None
    return (max(0, now - before - less) * 1000 + elapsed_ns // 2) // elapsed_ns


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
