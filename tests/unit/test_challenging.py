"""When challengers have a turn, who is asked, what it costs, and what is said of failures; and the settings behind it."""

from __future__ import annotations

from itertools import count

import msgspec
import numpy as np
import pytest

from coordinator.forecast.challengers import Report, Standing, Turn, take_turn
from coordinator.forecast.challengers import rows as challenger_rows
from coordinator.forecast.challengers.turn import PART
from coordinator.learning.challenging import STEPS_A_TURN, ChallengeSchedule, narrowed, standing_of
from coordinator.learning.retraining import EVERY_CYCLES
from coordinator.model import N_RESOURCES, HistoryBlock
from coordinator.settings import challenge_schedule, forecast_options
from shared.config import CoordinatorConfig, ForecastConfig
from shared.errors import ConfigError
from shared.model import Priority
from shared.units import BUCKET_S

NAMES = ("sf_window_average", "auto_ets")


def standing(n: int = 400) -> Standing:
    return Standing(priority=np.ones(n), size=np.arange(n, dtype=float), burden=np.full(n, np.nan))


def history(v: int = 12, b: int = 60) -> HistoryBlock:
    mean = np.random.default_rng(1).lognormal(5, 0.3, (v, N_RESOURCES, b)).astype(np.float32)
    capacity = np.full((v, N_RESOURCES), np.nan, dtype=np.float32)
    names = tuple(f"vm{i}" for i in range(v))
    return HistoryBlock(vm_ids=names, end_s=0, mean=mean, peak=mean, censored=mean * 0, capacity=capacity)


def config(**forecast: object) -> CoordinatorConfig:
    return CoordinatorConfig(forecast=msgspec.convert(forecast, ForecastConfig))


def test_a_turn_comes_regularly_and_not_with_a_training() -> None:
    schedule = ChallengeSchedule(NAMES, 1800, 30.0, 1)
    assert [cycle for cycle in range(1, 15) if schedule.due(cycle)] == [3, 9]
    assert not any(schedule.due(EVERY_CYCLES * n) for n in range(1, 10))
    assert all(ChallengeSchedule(NAMES, 300, 30.0, 1).due(cycle) for cycle in range(1, 5))
    assert not any(ChallengeSchedule((), 1800, 30.0, 1).due(cycle) for cycle in range(1, 15))
    for every_s in (0, (STEPS_A_TURN + 1) * BUCKET_S):
        with pytest.raises(ValueError, match=f"every_s {every_s}: allowed 300 to 17100"):
            ChallengeSchedule(NAMES, every_s, 30.0, 1)


def test_an_answer_reaches_until_the_next_one_is_there_and_an_hour_on() -> None:
    assert ChallengeSchedule(NAMES, 1800, 30.0, 1).turn(standing()).steps == 6 + 12 + 3
    assert ChallengeSchedule(NAMES, 17_100, 30.0, 1).turn(standing()).steps == 72


def test_costs_are_learned_and_fill_the_budget_cheapest_first() -> None:
    schedule = ChallengeSchedule(NAMES, 300, 10.0, 1)
    first = schedule.turn(standing())
    assert {name: len(rows) for name, rows in first.chosen.items()} == {"auto_ets": 8, "sf_window_average": 8}
    schedule.heard(
        [Report(name="auto_ets", asked=8, answered=8, cpu_s=0.8), Report(name="sf_window_average", asked=8, answered=8, cpu_s=0.08)]
    )
    second = schedule.turn(standing())
    assert list(second.chosen) == ["sf_window_average", "auto_ets"]
    assert {name: len(rows) for name, rows in second.chosen.items()} == {"sf_window_average": 400, "auto_ets": 60}  # 4 s and 6 s
    assert set(range(370, 400)) <= set(second.chosen["auto_ets"].tolist()), "half of its places go to the largest"
    assert second.seed != first.seed


def test_failures_are_told_once() -> None:
    schedule = ChallengeSchedule(NAMES, 300, 10.0, 1)
    report = Report(name="auto_ets", asked=3, answered=0, cpu_s=0.1, failures=("ValueError: tiny (3 series)", "KeyError: 'x' (1 series)"))
    assert schedule.heard([report]) == [("auto_ets", "ValueError: tiny (3 series)"), ("auto_ets", "KeyError: 'x' (1 series)")]
    assert schedule.heard([report]) == []


def test_what_matters_is_priority_size_and_loss() -> None:
    ceiling = {"a": [1000.0] * 5, "b": [3000.0] * 5}
    loss = np.full((3, N_RESOURCES), np.nan)
    loss[1, 0] = 400.0
    made = standing_of(["a", "b", "new"], {"a": Priority.LOW, "b": Priority.CRITICAL}, ceiling, loss)
    np.testing.assert_allclose(made.size[:10], [0.25] * 5 + [0.75] * 5)
    assert made.priority[:10].tolist() == [0.0] * 5 + [3.0] * 5
    assert made.burden[5] == pytest.approx(0.1)
    assert np.isnan(made.burden[[0, 6]]).all() and np.isnan(made.size[10:]).all() and np.isnan(made.priority[10:]).all()
    assert np.argmax(made.importance()) == 5


def test_a_turn_is_narrowed_to_the_vms_it_asks_about() -> None:
    turn = Turn(chosen={"auto_ets": np.array([2, 21, 24]), "auto_ces": np.array([10])}, steps=20, budget_s=1.0)
    vm_ids, small = narrowed(turn, [f"vm{i}" for i in range(6)])
    assert vm_ids == ("vm0", "vm2", "vm4")
    assert {name: rows.tolist() for name, rows in small.chosen.items()} == {"auto_ets": [2, 11, 14], "auto_ces": [5]}
    assert narrowed(Turn(chosen={}, steps=20, budget_s=1.0), ["a"])[0] == ()


def test_a_turn_ends_when_its_budget_is_spent_or_it_is_stopped() -> None:
    seconds = count()
    turn = Turn(chosen={name: np.arange(50) for name in NAMES}, steps=20, budget_s=4.5)
    said, (first,) = take_turn(history(), turn, lambda: float(next(seconds)))
    assert first.name == "sf_window_average" and first.cpu_s > 0
    assert first.asked == first.answered == 2 * PART
    assert [len(answer.vm_ids) for answer in said] == [first.asked]
    whole, reports = take_turn(history(), turn, lambda: 0.0)
    assert [report.asked for report in reports] == [50, 50]
    assert whole[0].name == "sf_window_average" and whole[0].mean.shape == (50, 20)
    assert take_turn(history(), turn, lambda: 0.0, lambda: True) == ((), ())


def test_what_is_missing_is_a_failure_of_the_turn_not_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenger_rows, "find_spec", lambda module: None if module == "fracast" else object())
    turn = Turn(chosen={"fracast": np.arange(3), "sf_window_average": np.arange(3)}, steps=20, budget_s=60.0)
    _, (missing, other) = take_turn(history(), turn, lambda: 0.0)
    assert (missing.asked, other.answered) == (0, 3)
    assert "pip install 'tidegate[neural]'" in missing.failures[0]


def test_settings_name_challengers_by_either_name() -> None:
    assert forecast_options(CoordinatorConfig()).challengers == ("auto_ets", "auto_ces", "auto_arima", "mfles")
    assert forecast_options(config(challengers=["ARIMA", "auto_arima", "mstl"])).challengers == ("auto_arima", "mstl")
    assert forecast_options(config(challengers=[])).challengers == ()
    with pytest.raises(ConfigError, match=r"forecast\.challengers: challenger 'oracle': allowed auto_arima, .*ARIMA"):
        forecast_options(config(challengers=["oracle"]))


def test_a_challenger_whose_extra_is_missing_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenger_rows, "find_spec", lambda module: None if module in {"torch", "prophet"} else object())
    schedule, left_out = challenge_schedule(config(challengers=["lstm", "auto_ets", "prophet"], challenge_every_s=600))
    assert schedule.names == ("auto_ets",)
    assert schedule.due(3) and not schedule.due(2)
    assert set(left_out) == {"lstm", "prophet"} and "tidegate[neural]" in left_out["lstm"]
