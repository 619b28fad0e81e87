"""How often a caller may ask: one token bucket each, and only so many buckets. Pure: the caller gives the time.

A bucket holds BURST_S seconds of its rate, so a page that loads or a script that catches up is not slowed. The least recently seen callers
are forgotten first, which gives them a full bucket again: 10,000 addresses in rotation get past this, and the connection limit stops them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

BURST_S: Final = 4.0
MAX_CALLERS: Final = 10_000


class Rate:
    """`per_s` a second, lasting, for each key."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._most = max(1.0, per_s * BURST_S)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (left, at)

    def wait_s(self, key: str, now_s: float) -> float:
        """0.0 = it may, and one is taken; else seconds until it may."""
        left, at = self._left.pop(key, (self._most, now_s))
        left = min(self._most, left + max(0.0, now_s - at) * self.per_s)
        wait = 0.0 if left >= 1.0 else (1.0 - left) / self.per_s
        self._left[key] = (left if wait else left - 1.0, now_s)
        if len(self._left) > MAX_CALLERS:
            self._left.popitem(last=False)
        return wait
