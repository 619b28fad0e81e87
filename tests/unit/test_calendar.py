"""Days as people count them."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from coordinator.forecast.calendar import DAY_FEATURES, DAY_S, day_features, phases, slot_of


def at(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp())  # type: ignore[misc]  # year, month, day, hour, minute


def test_phases_know_the_day_and_the_weekend() -> None:
    saturday = phases(np.array([at(2026, 11, 21, 6)]))[0]
    assert np.allclose(saturday, [1.0, 0.0, 2 / 7, 1.0])
    assert slot_of(at(2026, 11, 21, 6)) == 12


def test_month_ends_and_starts_are_felt_five_days_away() -> None:
    found = day_features(np.array([at(2026, 2, 28, 23), at(2026, 3, 1), at(2028, 2, 28), at(2026, 3, 15)]))
    end, start = DAY_FEATURES.index("to_month_end"), DAY_FEATURES.index("from_month_start")
    assert np.allclose(found[:, end], [1.0, 0.0, 0.8, 0.0])  # 2028 is a leap year
    assert np.allclose(found[:, start], [0.0, 1.0, 0.0, 0.0])
    assert np.all(found[:, DAY_FEATURES.index("day_of_month")] < 1.0)


def test_holidays_have_an_eve_and_a_day_after_but_are_neither_themselves() -> None:
    christmas = np.array([[at(2026, 12, 25), at(2026, 12, 27)]])
    days = at(2026, 12, 23) + DAY_S * np.arange(6) + 3600
    found = day_features(days, christmas)[:, DAY_FEATURES.index("holiday") :]
    assert found[:, 0].tolist() == [0, 0, 1, 1, 0, 0]
    assert found[:, 1].tolist() == [0, 1, 0, 0, 0, 0]
    assert found[:, 2].tolist() == [0, 0, 0, 0, 1, 0]


def test_shapes_and_nothing_known() -> None:
    found = day_features(np.full((2, 3), at(2026, 12, 25)), np.zeros((0, 2), dtype=np.int64))
    assert found.shape == (2, 3, len(DAY_FEATURES))
    assert not found[..., DAY_FEATURES.index("holiday") :].any()
