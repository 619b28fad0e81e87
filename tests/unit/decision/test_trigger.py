"""The trigger: when a forecast calls for action."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.trigger import bucket_that_matters, confidence, fires
from shared.errors import ConfigError


def test_the_highest_priority_acts_before_the_mean_reaches_the_allocation() -> None:
    policy = SizingPolicy()
    fired = [fires(950.0, 100.0, 1000.0, confidence(policy, p)) for p in range(4)]
    assert fired == [False, False, False, True]
    assert [fires(1060.0, 100.0, 1000.0, confidence(policy, p)) for p in range(4)] == [False, True, True, True]


@pytest.mark.parametrize(("lead", "step"), [(0, 0), (299.9, 0), (300, 1), (900, 3), (1e9, 11)])
def test_the_bucket_is_the_one_in_which_the_change_takes_effect(lead: float, step: int) -> None:
    assert bucket_that_matters(lead) == step


def test_unknown_figures_never_fire_and_unknown_spread_counts_as_none() -> None:
    assert not fires(math.nan, 1.0, 10.0, 0.0)
    assert not fires(20.0, 1.0, math.nan, 0.0)
    assert fires(20.0, math.nan, 10.0, 5.0)


@given(st.floats(0, 1e4), st.floats(0, 1e3), st.floats(0, 1e4))
def test_a_higher_priority_fires_whenever_a_lower_one_does(mean: float, stddev: float, allocation: float) -> None:
    fired = [fires(mean, stddev, allocation, confidence(SizingPolicy(), p)) for p in range(4)]
    assert fired == sorted(fired)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("confidence_multiplier", (0.0, 1.0, 1.0, 1.0)),
        ("size_quantile", (0.99, 0.9, 0.9, 0.9)),
        ("size_quantile", (0.9, 0.9, 0.9, math.nan)),
        ("lower_quantile", (0.95, 0.95, 0.95, 0.99)),
        ("steps", (0, 1, 1, 1, 1)),
        ("shrink_evidence", (2, 2, 2, 2, 0)),
        ("penalty", (2.0, 1.0, 1.0, 1.0)),
        ("spare_hosts", 2),
        ("critical_pool", (1.5, 0.0, 0.0, 0.0, 0.0)),
        ("granule", (0.0, 1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_a_policy_out_of_range_is_refused_by_the_name_of_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"sizing.{field}"):
        SizingPolicy(**{field: value})  # type: ignore[arg-type]
