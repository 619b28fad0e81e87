"""Host clocks that are off: a sample's wall time as the coordinator's clock would have read. Pure; time comes with the calls.

A sample's own wall time decides its bucket, so a host ten minutes ahead would report into buckets that nobody closes yet, and one behind
into buckets that are closed. Late is not behind: an agent that empties its spool sends old samples faster than they were taken. So a host
counts as behind only when its samples come as fast as its monotonic clock runs, for five minutes, and still carry old times; from the
future no sample can come, so ahead is seen at once. A step of the host's clock or a boot (wall less monotonic time jumps) starts anew.
Invariant: a clock within TOLERANCE of ours is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shared.units import NS_PER_S

TOLERANCE_NS: Final = 60 * NS_PER_S  # delivery and our own clock may take this much
STEP_NS: Final = NS_PER_S  # between two samples: NTP slews far less
PACE_NS: Final = 30 * NS_PER_S  # samples come several to a frame
EVIDENCE_NS: Final = 300 * NS_PER_S


@dataclass
class _Clock:
    anchor_ns: int  # wall less monotonic time
    from_now_ns: int
    from_monotonic_ns: int
    ahead_ns: int = 0


class HostClocks:
    """One entry a host. `corrected` counts the samples that were moved."""

    def __init__(self) -> None:
        self.corrected = 0
        self._clocks: dict[str, _Clock] = {}

    def wall_ns(self, host_id: str, wall_ns: int, monotonic_ns: int, now_ns: int) -> int:
        """The wall time of a sample of `host_id` that arrives at `now_ns`, by our clock."""
        anchor = wall_ns - monotonic_ns
        clock = self._clocks.get(host_id)
        if clock is None or abs(anchor - clock.anchor_ns) > STEP_NS:
            clock = self._clocks[host_id] = _Clock(anchor, now_ns, monotonic_ns)
        clock.anchor_ns = anchor
        waited, lived = now_ns - clock.from_now_ns, monotonic_ns - clock.from_monotonic_ns
        if abs(waited - lived) > PACE_NS:
            clock.from_now_ns, clock.from_monotonic_ns = now_ns, monotonic_ns
        off = wall_ns - clock.ahead_ns - now_ns
        if off > TOLERANCE_NS or (off < -TOLERANCE_NS and lived >= EVIDENCE_NS and abs(waited - lived) <= PACE_NS):
            skew = wall_ns - now_ns
            clock.ahead_ns = skew if abs(skew) > TOLERANCE_NS else 0  # slewed back: right again
        self.corrected += clock.ahead_ns != 0
        return wall_ns - clock.ahead_ns

    def ahead_ns(self) -> dict[str, int]:
        """Hosts whose clocks are off, and by how much (negative = behind)."""
        return {host_id: clock.ahead_ns for host_id, clock in self._clocks.items() if clock.ahead_ns}
