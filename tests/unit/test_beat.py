"""The shared beat of the agent's timers: always ahead, never further than a period, and the slow ones fall on the fast ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.service.beat import beat_before, until_next
from agent.service.pausing import WATCH_PERIOD_S
from agent.service.process import TICK_S
from shared.units import NS_PER_S


@given(now_s=st.floats(0, 1e8), period_s=st.sampled_from([0.5, 1.0, 5.0]))
def test_the_next_beat_is_ahead_by_a_period_at_most(now_s: float, period_s: float) -> None:
    wait_s = until_next(period_s, now_s)
    assert 0 < wait_s <= period_s
    beats = (now_s + wait_s) / period_s
    assert beats == pytest.approx(round(beats), abs=1e-6)


@given(now_ns=st.integers(0, 10**18))
def test_rounds_begin_on_beats(now_ns: int) -> None:
    beat_ns = beat_before(now_ns)
    assert beat_ns % NS_PER_S == 0 and 0 <= now_ns - beat_ns < NS_PER_S


def test_all_timers_meet() -> None:
    assert TICK_S % WATCH_PERIOD_S == 0 and (TICK_S * NS_PER_S) % NS_PER_S == 0
    assert WATCH_PERIOD_S <= 0.5, "a pause is promised within 1 s, and the loop may be busy"
