"""The board: what challengers said becomes one member, that of the best one there; bounded, and the same after any move of the fleet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator.forecast.challengers import MOST_STEPS, Board, ChallengerForecast
from coordinator.forecast.challengers.board import Spoken
from coordinator.model import F32, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS

NOW_S = 1_700_006_400 // BUCKET_S * BUCKET_S
ROW = {"a": 0, "b": 1}
SEEN: F32 = np.tile(np.array([50.0, 150.0, 100.0], dtype=np.float32), (2, N_RESOURCES, 100))  # newest value 100, range 50 to 150


def said(
    issued_s: int, vm_ids: tuple[str, ...], value: float, *, name: str = "auto_ets", steps: int = 24, slope: float = 0.1
) -> ChallengerForecast:
    mean = (value + slope * np.arange(steps, dtype=np.float32)) * np.ones((len(vm_ids), 1), dtype=np.float32)
    return ChallengerForecast(name=name, issued_s=issued_s, vm_ids=vm_ids, resource=np.zeros(len(vm_ids), dtype=np.int64), mean=mean)


def board(*names: str) -> Board:
    made = Board(names or ("auto_arima", "exponential smoothing"))
    made.rearrange(np.full(2, -1))
    return made


def lived(made: Board, actuals: list[float], start_s: int = NOW_S) -> Spoken:
    """Buckets of this demand everywhere; what it says after the last."""
    for i, actual in enumerate(actuals):
        made.learn(np.full((2, N_RESOURCES), actual), start_s + i * BUCKET_S)
    return made.speak(start_s + len(actuals) * BUCKET_S)


def test_it_shows_the_part_of_a_forecast_that_lies_ahead() -> None:
    made = board()
    assert made.names == ("auto_arima", "auto_ets")
    made.post(said(NOW_S, ("b", "gone"), 100.0), ROW, SEEN, NOW_S)
    mean, who = made.speak(NOW_S + 3 * BUCKET_S)
    np.testing.assert_allclose(mean[1, 0], 100.3 + 0.1 * np.arange(12), rtol=1e-6)
    assert np.isfinite(mean).sum() == HORIZON_STEPS
    assert who.tolist() == [[-1] * 5, [1, -1, -1, -1, -1]]
    late = made.speak(NOW_S + 20 * BUCKET_S).mean[1, 0]
    assert np.isfinite(late).tolist() == [True] * 4 + [False] * 8
    assert np.isnan(made.speak(NOW_S + MOST_STEPS * BUCKET_S).mean).all()
    assert made.held == 0, "run out: forgotten for good"


def test_of_one_challenger_and_series_only_the_newest_is_held() -> None:
    made = board()
    for turn in range(50):
        made.post(said(NOW_S, ("a", "b"), 100.0 + turn), ROW, SEEN, NOW_S)
    assert made.held == 2
    assert made.speak(NOW_S).mean[0, 0, 0] == 149.0
    made.post(said(NOW_S - BUCKET_S, ("a",), 7.0), ROW, SEEN, NOW_S)  # came late: it is the older one all the same
    assert made.held == 2
    assert made.speak(NOW_S).mean[0, 0, 0] == 149.0


def test_the_one_that_was_right_speaks() -> None:
    made = board()
    made.post(said(NOW_S, ("a", "b"), 120.0, slope=0.0), ROW, SEEN, NOW_S)
    made.post(said(NOW_S, ("a", "b"), 104.0, name="auto_arima", slope=0.0), ROW, SEEN, NOW_S)
    assert lived(made, [120.0] * 6).who[:, 0].tolist() == [1, 1]
    after = lived(made, [104.0] * 12, NOW_S + 6 * BUCKET_S)
    assert after.who[:, 0].tolist() == [0, 0]
    assert after.mean[0, 0, 0] == 104.0


def test_who_does_much_worse_than_the_last_value_is_silent_there() -> None:
    made = board("auto_ets")
    made.post(said(NOW_S, ("a",), 140.0, slope=0.0), ROW, SEEN, NOW_S)
    assert np.isfinite(made.speak(NOW_S).mean).any(), "nothing is known against it yet"
    assert np.isnan(lived(made, [101.0] * 6).mean).all()


def test_challengers_asked_at_different_times_are_compared_fairly() -> None:
    """One spoke in a wild hour and halved the last value's error, the other in a calm one and doubled it, with a smaller error."""
    made = board()
    made.post(said(NOW_S, ("a",), 130.0, slope=0.0), ROW, SEEN, NOW_S)  # ets
    lived(made, [160.0] * 6)
    later = NOW_S + 6 * BUCKET_S
    made.post(said(later, ("a",), 120.0, name="auto_arima", slope=0.0), ROW, SEEN, later)  # the last value is 100 again
    spoken = lived(made, [112.0] * 3 + [108.0] * 3, later)
    assert spoken.who[0, 0] == 1


def test_answers_far_beyond_all_that_was_seen_are_cut() -> None:
    made = board("auto_ets")
    made.post(said(NOW_S, ("a",), 1e9), ROW, SEEN, NOW_S)
    assert np.nanmax(made.speak(NOW_S).mean) == 250.0  # 150 and once more the range


def test_it_follows_the_fleet() -> None:
    made = board("auto_ets")
    made.post(said(NOW_S, ("a", "b"), 100.0), ROW, SEEN, NOW_S)
    made.post(said(NOW_S, ("b",), 77.0), ROW, SEEN, NOW_S)
    made.rearrange(np.array([-1, 1, -1]))
    mean = made.speak(NOW_S).mean
    assert mean.shape == (3, N_RESOURCES, HORIZON_STEPS)
    assert np.isfinite(mean).sum() == HORIZON_STEPS and mean[1, 0, 0] == 77.0
    assert made.held == 1


def test_what_nobody_can_place_is_passed_over_and_who_is_not_listened_to_refused() -> None:
    made = board()
    made.post(said(NOW_S + BUCKET_S, ("a",), 1.0), ROW, SEEN, NOW_S)  # of buckets that are not known here
    made.post(said(NOW_S - 400 * BUCKET_S, ("a",), 1.0), ROW, SEEN, NOW_S)
    made.post(said(NOW_S, ("gone",), 1.0), ROW, SEEN, NOW_S)
    made.post(said(NOW_S, ("a",), np.nan), ROW, SEEN, NOW_S)
    made.post(said(NOW_S, ("a",), 1.0), ROW, np.full_like(SEEN, np.nan), NOW_S)
    assert np.isnan(made.speak(NOW_S).mean).all()
    with pytest.raises(ValueError, match=r"'mstl'.*listens to auto_arima, auto_ets"):
        made.post(replace(said(NOW_S, ("a",), 1.0), name="mstl"), ROW, SEEN, NOW_S)
    with pytest.raises(ValueError, match="challenger 'oracle'"):
        Board(["oracle"])
    with pytest.raises(ValueError, match="listens to none"):
        Board([]).post(said(NOW_S, ("a",), 1.0), ROW, SEEN, NOW_S)
