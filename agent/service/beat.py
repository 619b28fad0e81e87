"""The beat that the agent's timers share, so that one wake-up of the process serves all of them.

Why: a wake-up costs 0.1 to 0.2 ms whatever is done in it (cold caches, a poll, a timer), more than a tick, a look at the pause file, or
handing a look over to the sampling thread. Timers of the same period that began at different times would wake the process once each.
Invariant: beats are multiples of their period on the machine's monotonic clock; a period of 0.5 s therefore hits each one of 1 s.
"""

from __future__ import annotations

from shared.units import NS_PER_S

BEAT_NS = NS_PER_S  # sampling rounds begin on these


def until_next(period_s: float, now_s: float) -> float:
    """Seconds from monotonic `now_s` to the next beat of `period_s`: more than 0, at most `period_s`."""
    return period_s - now_s % period_s


def beat_before(now_ns: int) -> int:
    """The newest beat of a second at or before monotonic `now_ns`."""
    return now_ns - now_ns % BEAT_NS
