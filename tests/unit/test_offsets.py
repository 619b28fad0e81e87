"""Clock offsets of hosts, from messages that arrive late."""

from __future__ import annotations

from coordinator.gateway.offsets import KEPT, ClockOffsets
from shared.units import NS_PER_S

NOW = 1_700_000_000 * NS_PER_S


def test_the_least_delayed_of_the_last_messages_counts() -> None:
    offsets = ClockOffsets()
    assert offsets.offset_s("h") is None
    assert offsets.largest_s() == 0
    for delay_s in (5, 1, 3):
        offsets.note("h", NOW + (20 - delay_s) * NS_PER_S, NOW)
    assert offsets.offset_s("h") == 19
    offsets.note("behind", NOW - 50 * NS_PER_S, NOW)
    assert offsets.largest_s() == 50


def test_a_clock_that_was_set_is_seen_after_some_messages_or_with_the_next_hello() -> None:
    offsets = ClockOffsets()
    offsets.note("h", NOW + 100 * NS_PER_S, NOW)
    for _ in range(KEPT - 1):
        offsets.note("h", NOW - NS_PER_S, NOW)
    assert offsets.offset_s("h") == 100
    offsets.note("h", NOW - NS_PER_S, NOW)
    assert offsets.offset_s("h") == -1
    offsets.restart("h")
    assert offsets.offset_s("h") is None
