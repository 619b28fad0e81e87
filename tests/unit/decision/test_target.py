"""The size's quantile: horizon, interpolation, error budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.model import LEVELS
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.target import at_level, interpolate, last_step, raised
from shared.units import CPU, MEMORY

VALUES = np.array([10.0, 20, 30, 40, 50, 60, 70, 80, 90])


def test_quantiles_between_the_levels_are_interpolated_and_held_outside() -> None:
    want = np.array([0.001, 0.025, 0.5, 0.925, 0.99, 1.0])
    got = interpolate(np.broadcast_to(VALUES, (6, 9)), LEVELS, want)
    assert got == pytest.approx([10, 10, 40, 65, 90, 90])


def test_an_unknown_quantile_spoils_only_what_needs_it() -> None:
    values = VALUES.copy()
    values[-1] = np.nan
    got = interpolate(np.stack([values, values]), LEVELS, np.array([0.975, 0.98]))
    assert got[0] == 80
    assert np.isnan(got[1])


@given(st.lists(st.floats(0, 1e9), min_size=9, max_size=9), st.floats(0, 1), st.floats(0, 1))
def test_interpolation_is_monotone_in_the_level(values: list[float], a: float, b: float) -> None:
    block = np.broadcast_to(np.sort(values), (2, 9))
    low, high = interpolate(block, LEVELS, np.array([min(a, b), max(a, b)]))
    assert low <= high * (1 + 1e-12)


@given(st.lists(st.floats(0, 1e9) | st.just(np.nan), min_size=18, max_size=18), st.floats(0, 1) | st.sampled_from(LEVELS))
def test_one_level_for_all_is_the_same_to_the_bit(values: list[float], level: float) -> None:
    block = np.array(values).reshape(2, 9)
    np.testing.assert_array_equal(at_level(block, LEVELS, level), interpolate(block, LEVELS, np.full(2, level)))


def test_the_horizon_covers_the_lead_time_and_one_cycle() -> None:
    policy = SizingPolicy(steps=(2, 4, 2, 2, 2))
    assert last_step(policy, CPU, 1.0) == 1
    assert last_step(policy, MEMORY, 60.0) == 3
    assert last_step(policy, MEMORY, 1500.0) == 5  # 1500 s + 300 s = 6 steps
    assert last_step(policy, MEMORY, 1e6) == 11


def test_the_error_budgets_burn_raises_the_quantile_up_to_the_top_level() -> None:
    policy = SizingPolicy(burn_full=3.0)
    assert [raised(0.9, burn, policy, 0.99) for burn in (float("nan"), 0.5, 1.0)] == [0.9, 0.9, 0.9]
    assert raised(0.9, 2.0, policy, 0.99) == pytest.approx(0.945)
    assert raised(0.9, 50.0, policy, 0.99) == pytest.approx(0.99)
