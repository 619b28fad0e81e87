"""The sampling period gives way while the host starves and comes back afterwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sampling.pace import MOST, next_period_s


def run(pressures: list[int | None], round_seconds: float = 0.1, start: float = 5.0) -> list[float]:
    periods = [start]
    for pressure in pressures:
        periods.append(next_period_s(periods[-1], 5.0, pressure, round_seconds, 800))
    return periods[1:]


def test_period_doubles_up_to_its_bound_and_comes_back() -> None:
    assert run([900, 801, 900, 900]) == [10, 20, 20, 20]
    assert run([700, 800, 600], start=20) == [20, 20, 20], "between the thresholds nothing swings"
    assert run([599, 100, 0, 0], start=20) == [10, 5, 5, 5]
    assert run([0, 900, 0, 900]) == [5, 10, 5, 10]


@pytest.mark.parametrize(("seconds", "expected"), [(2.5, 5.0), (2.6, 10.0)])
def test_a_slow_round_makes_the_next_come_later(seconds: float, expected: float) -> None:
    assert run([None], round_seconds=seconds) == run([0], round_seconds=seconds) == [expected]


def test_a_threshold_of_1000_is_never_passed() -> None:
    assert next_period_s(5, 5, 1000, 0.1, 1000) == 5


def test_another_setting_is_taken_over_within_a_round() -> None:
    assert next_period_s(20, 2, 900, 0.1, 800) == 8
    assert next_period_s(20, 2, 0, 0.1, 800) == 4
    assert next_period_s(5, 30, 700, 0.1, 800) == 30


@given(st.floats(0.1, 300), st.integers(1, 60), st.none() | st.integers(0, 1000), st.floats(0, 100), st.integers(1, 1000))
def test_never_faster_than_configured_never_slower_than_the_bound(
    current: float, configured: int, pressure: int | None, seconds: float, starved: int
) -> None:
    assert configured <= next_period_s(current, configured, pressure, seconds, starved) <= configured * MOST
