"""What the PlanetLab benches are made of: the planner inside the simulator, hosts for the next hour, days from a folder, the plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.cloudsim import days, simulate
from bench.cloudsim_hosts import NOWHERE, SAMPLES
from bench.planetlab_hosts import HOST_MIPS, best_fit, forecasts, measured, own_variance, problem_of
from bench.planetlab_planner import Knobs, TickPlanner
from bench.planetlab_plot import Curve, pareto_plot


def noise(vms: int, level: int) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 2 * level, (vms, SAMPLES))


def test_our_planner_saves_energy_with_few_moves_and_without_overload() -> None:
    samples = noise(40, 12)
    spread, ours, policy = simulate(samples, "DVFS"), simulate(samples, TickPlanner(40)), simulate(samples, "THR")
    # 40 VMs want about 7,200 MIPS: two G5 hold them, first fit by nominal size takes fifteen hosts or more
    assert ours.energy_kwh < 0.5 * spread.energy_kwh
    assert ours.moves <= 2 * 40 < policy.moves and ours.esv < 0.1 * policy.esv
    assert ours.left == 40


def test_the_planner_learns_levels_and_counts_a_newcomer_as_usual() -> None:
    planner = TickPlanner(4, Knobs(prior=(0.1, 0.15), prior_ticks=(1.0, 3.0)))
    home = np.array([1, 3, 5, NOWHERE], np.int32)
    planner(np.array([[0.0], [1000.0], [500.0], [0.0]]), home)
    mean, variance = planner.levels()
    assert mean.tolist() == pytest.approx([125.0, 600.0, 300.0, 25.0])  # half way between what was seen and a tenth
    assert (variance > 0).all()
    for _ in range(200):
        vms, targets = planner(np.array([[250.0], [250.0], [250.0], [0.0]]), home)
        assert 3 not in vms  # removed
        home[vms] = targets
    mean, variance = planner.levels()
    assert mean[:3] == pytest.approx(250.0, abs=20.0) and np.sqrt(variance[:3]).max() < 150.0
    assert len(set(home[:3].tolist())) == 1


def test_margins_are_pooled_on_the_host() -> None:
    mean, variance = np.full((8, 1), 500.0), np.full((8, 1), 300.0**2)
    # five have 2500 + 2 x 300 x root(5) = 3842, seven 5087, eight 5697 of 5320
    place = best_fit(problem_of(mean, variance, 2.0))
    assert np.bincount(place).tolist() == [7, 1]
    alone = best_fit(problem_of(mean + 2.0 * np.sqrt(variance), np.zeros((8, 1)), 0.0))
    assert np.bincount(alone).tolist() == [4, 4]


def test_the_hour_that_came_is_laid_over_an_assignment() -> None:
    actual = np.zeros((3, 12))
    actual[0, 3] = actual[1, 3] = 0.6 * HOST_MIPS
    actual[2] = HOST_MIPS
    told = measured(np.array([0, 0, 2], np.int32), actual)
    assert told.hosts == 2 and told.violated == 1 and told.share == 1 / 24


def test_forecasts_come_each_hour_from_what_is_known() -> None:
    mips = np.array([1000.0, 2000.0, 500.0])
    wanted = noise(3, 10) / 100.0 * mips[:, None]
    said = {b: (mean, stddev) for b, mean, stddev in forecasts(wanted, mips, 98)}
    assert list(said) == [72, 84, 96]
    changed = wanted.copy()
    changed[:, 84:] = 0.0
    again = {b: (mean, stddev) for b, mean, stddev in forecasts(changed, mips, 98)}
    assert (again[84][0] == said[84][0]).all() and (again[84][1] == said[84][1]).all() and (again[96][0] != said[96][0]).any()
    assert own_variance(np.array([[1.0, 3.0], [2.0, 2.0]])) == pytest.approx([1.0, 0.0], abs=1e-3)


def test_days_are_sorted_by_name_and_time(tmp_path: Path) -> None:
    assert days(tmp_path) == {}
    frame = pd.DataFrame({"t": [1, 0], "b": [3, 4], "a": [1, 2], "B": [5, 6]})
    frame.to_parquet(tmp_path / "some_day.parquet", index=False)
    assert days(tmp_path)["some_day"].tolist() == [[6, 5], [2, 1], [4, 3]]


def test_the_plot_names_everybody(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    pareto_plot([Curve("ours", [(100.0, 1e-5), (120.0, 1e-6)]), Curve("a < b", [(800.0, 0.0)])], "title", path)
    text = path.read_text()
    assert "ours" in text and "a &lt; b (ESV 0)" in text and text.count("<circle") == 3
    with pytest.raises(ValueError, match="at least one point"):
        pareto_plot([], "title", path)
