"""What lies above a limit: Tobit within a bucket, Kaplan-Meier over the past, and the bounds of both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.demand.tails import LEAST, MOST, SILENT, Tails
from coordinator.model import N_RESOURCES
from shared.units import DISK, MEMORY, NET_RX

F64 = NDArray[np.float64]


def row(value: float, r: int = DISK) -> F64:
    out = np.full((1, N_RESOURCES), np.nan)
    out[0, r] = value
    return out


def taught(values: F64, blind: F64, r: int = DISK) -> Tails:
    tails = Tails()
    for value, share in zip(values, blind, strict=True):
        tails.learn(("a",), row(value, r), np.nan_to_num(row(share, r)))
    return tails


def above(tails: Tails, limit: float, *, share: float = 1.0, free: float = np.nan, r: int = DISK) -> float:
    return float(tails.excess(("a",), np.nan_to_num(row(limit, r)), np.nan_to_num(row(share, r)), row(free, r))[0, r])


def test_history_gives_the_mean_of_what_was_seen_above() -> None:
    values = 1e6 * np.random.default_rng(1).lognormal(0.0, 0.8, 2000)
    limit = float(np.quantile(values, 0.7))
    expected = values[values > limit].mean() - limit
    assert above(taught(values, np.zeros(2000)), limit) == pytest.approx(expected, rel=0.15)


def test_days_at_the_limit_do_not_teach_that_there_is_nothing_above() -> None:
    values = 1e6 * np.random.default_rng(2).lognormal(0.0, 0.8, 1500)
    limit = float(np.quantile(values, 0.7))
    capped = np.minimum(values, limit)
    tails = taught(np.concatenate([values[:500], capped[500:]]), np.concatenate([np.zeros(500), values[500:] > limit]))
    assert above(tails, limit) == pytest.approx(above(taught(values[:500], np.zeros(500)), limit), rel=0.1)


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0])
def test_the_free_samples_of_a_bucket_tell_of_the_held_ones(sigma: float) -> None:
    values = 1e6 * np.random.default_rng(3).lognormal(0.0, sigma, 20_000)
    limit = float(np.quantile(values, 0.6))
    found = above(Tails(), limit, share=0.4, free=values[values <= limit].mean())
    assert found == pytest.approx(values[values > limit].mean() - limit, rel=0.15)


def test_bounds_hold_whatever_the_history_says() -> None:
    wild = taught(np.array([1e9] * 20), np.zeros(20))
    assert above(wild, 1e5) == pytest.approx(MOST[DISK] * 1e5)
    low = taught(np.array([1e5] * 20), np.zeros(20))
    assert above(low, 1e6) == pytest.approx(SILENT * 1e6)
    close = taught(np.array([1.2e6] * 20), np.zeros(20))
    assert LEAST * 1e6 <= above(close, 1e6) <= 0.3e6
    memory = taught(np.array([2.0**36] * 20), np.zeros(20), MEMORY)
    assert above(memory, 2.0**32, r=MEMORY) == pytest.approx(0.25 * 2.0**32)


def test_unknown_vms_and_free_buckets() -> None:
    tails = Tails()
    assert above(tails, 1e6) == pytest.approx(SILENT * 1e6)
    assert above(tails, 1e6, share=0.0) == 0.0
    assert above(tails, np.nan) == 0.0
    tails.learn((), np.zeros((0, N_RESOURCES)), np.zeros((0, N_RESOURCES)))


def test_vms_keep_their_own_past_when_the_fleet_changes() -> None:
    tails = Tails()
    both = np.concatenate([row(4e6, NET_RX), row(9e6, NET_RX)])
    for _ in range(20):
        tails.learn(("b", "a"), both, np.zeros_like(both))
    limits = np.full((3, N_RESOURCES), 3e6)
    found = tails.excess(("new", "a", "b"), limits, np.ones_like(limits), np.full_like(limits, np.nan))[:, NET_RX]
    assert found[0] == pytest.approx(0.3e6)
    assert found[1] > 3 * found[2] > 3 * 0.3e6


def test_one_octave_of_weeks_later_the_old_level_has_faded() -> None:
    tails = Tails()
    for _ in range(10):
        tails.learn(("a",), row(8e6), np.zeros((1, N_RESOURCES)))
    nothing = np.full((1, N_RESOURCES), np.nan)
    for _ in range(2016 * 2):
        tails.learn(("a",), nothing, np.zeros((1, N_RESOURCES)))
    assert above(tails, 4e6) == pytest.approx(SILENT * 4e6)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 1e18) | st.just(float("nan")), max_size=30),
    st.floats(1e-3, 1e18),
    st.floats(0.0, 1.0),
    st.floats(0, 1e18) | st.just(float("nan")),
)
def test_what_is_added_stays_within_its_bounds(past: list[float], limit: float, share: float, free: float) -> None:
    added = above(taught(np.array(past), np.zeros(len(past))), limit, share=share, free=free)
    if share == 0:
        assert added == 0
    else:
        assert LEAST * limit * (1 - 1e-9) <= added <= MOST[DISK] * limit * (1 + 1e-9)
