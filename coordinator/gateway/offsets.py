"""How far hosts' clocks are from ours, by what their messages say of the moment they were sent. Pure; time comes with the calls.

A message arrives later than it was sent, so a clock looks further behind than it is, by the delay. Of the last KEPT messages the one that
looks furthest ahead was delayed least: its offset is the estimate. Samples are no measure: a spool sends old ones.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from shared.units import NS_PER_S

KEPT: Final = 8  # two minutes of heartbeats: a clock that was set is seen by then


class ClockOffsets:
    """One short row a host; as many hosts as have ever spoken to this process."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[int]] = {}

    def note(self, host_id: str, wall_ns: int, now_ns: int) -> None:
        """A message that was sent at `wall_ns` by the host's clock arrived at `now_ns` by ours."""
        self._seen.setdefault(host_id, deque(maxlen=KEPT)).append(wall_ns - now_ns)

    def restart(self, host_id: str) -> None:
        """The host said Hello: what its clock was before says nothing."""
        self._seen.pop(host_id, None)

    def offset_s(self, host_id: str) -> float | None:
        """Host's clock less ours in seconds, positive = ahead; None = not measured."""
        seen = self._seen.get(host_id)
        return max(seen) / NS_PER_S if seen else None

    def largest_s(self) -> float:
        """The largest offset of any host, either way; 0 = none is measured."""
        return max((abs(max(seen)) / NS_PER_S for seen in self._seen.values()), default=0.0)
