"""The parts of bench/league that its figures rest on: the oracle, the rivals' memories, the worsened forecasts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.acting.reactive import Demand, Situation
from bench.league import Run, joined, play_all
from bench.league_fleet import Case, fleet_of
from bench.league_oracle import SPACING, foresight, needed
from bench.league_policies import late, low
from bench.league_rivals import Histogram, MomKnobs, MomRule, VpaKnobs, VpaRule, fitted
from shared.config import ReactiveConfig
from shared.errors import ConfigError
from shared.model import VmSample
from shared.plan import StepKind
from shared.units import GIB, NS_PER_S

DEMANDS = st.lists(st.integers(1, 100), min_size=1, max_size=200).map(lambda values: np.array([values] * 4, np.float64))


def turns_of(row: Any) -> list[int]:
    """Buckets at which an allocation falls after it grew."""
    found, grown = [], False
    for b in range(1, len(row)):
        if row[b] > row[b - 1]:
            grown = True
        elif row[b] < row[b - 1] and grown:
            found.append(b)
            grown = False
    return found


@given(DEMANDS)
def test_the_oracle_covers_demand_and_turns_within_the_budget(demand: Any) -> None:
    ahead = foresight(demand)
    assert (ahead >= demand).all()
    turns = turns_of(ahead[0])
    # a stretch brings one turn at most, and only the first and the last may be short
    assert len(turns) <= max(0, len(demand[0]) - 2) // SPACING + 2


def test_the_oracle_follows_one_hump_closely_and_holds_short_dips() -> None:
    hump = np.concatenate([np.full(40, 10.0), np.full(10, 50.0), np.full(40, 10.0)])
    assert foresight(np.stack([hump] * 4))[0] == pytest.approx(1.01 * hump)
    dips = np.tile([50.0, 10.0], 20)
    assert (foresight(np.stack([dips] * 4))[0] > 50.0).sum() >= 36  # it follows two or three of twenty at most


def test_a_host_is_sized_for_growth_a_bucket_early() -> None:
    one, other = np.zeros((4, 3)), np.zeros((4, 3))
    one[:, 1], other[:, 2] = 5.0, 7.0
    assert needed([one, other]).tolist() == [12.0] * 4


def test_a_histogram_forgets_by_its_half_life_and_survives_long_times() -> None:
    histogram = Histogram(10.0, 3600.0, 0.0)
    histogram.add(1000.0, 0.0, 100.0)
    histogram.add(100.0, 10 * 3600.0, 1.0)
    assert histogram.percentile(0.9) == pytest.approx(100.0, rel=0.15)
    histogram.add(1000.0, 400 * 3600.0)
    histogram.add(50.0, 401 * 3600.0, 9.0)
    assert histogram.percentile(0.5) == pytest.approx(50.0, rel=0.15)
    assert Histogram(10.0, 3600.0, 0.0).percentile(0.9) == 0.0


def situation(memory: int, quota: int = 1000) -> Situation:
    in_force = {StepKind.CPU_QUOTA: quota, StepKind.VCPUS: 1, StepKind.MEMORY: memory}
    bounds = {StepKind.CPU_QUOTA: (100, 8000), StepKind.VCPUS: (1, 8), StepKind.MEMORY: (GIB // 4, 8 * GIB)}
    return Situation(in_force=in_force, bounds=bounds, vcpus_max=8, net_max_bits_per_s=10**10)


def test_the_vpa_like_rule_sizes_by_what_it_has_seen_and_adds_vcpus_first() -> None:
    past = np.full((5, 288), 3000.0, np.float32), np.full((5, 288), 3000.0, np.float32)
    rule = VpaRule(VpaKnobs(react=False, margin=1.15), ReactiveConfig(), [past], 86_400)
    reading = VmSample(cpu_used_millicores=100)
    asks = rule.asks(reading, situation(GIB), Demand(), 86_400 * NS_PER_S)
    cpu = [ask for ask in asks if ask.kind in (StepKind.VCPUS, StepKind.CPU_QUOTA)]
    assert [ask.kind for ask in cpu] == [StepKind.VCPUS, StepKind.CPU_QUOTA]
    assert 3000 * 1.15 <= cpu[1].value <= 3000 * 1.15 * 1.06


@pytest.mark.parametrize(("free", "value"), [(0.5, int(2.1 * GIB)), (0.1, int(1.9 * GIB))])
def test_the_mom_like_rule_takes_memory_only_while_the_host_is_short(free: float, value: int) -> None:
    rule = MomRule(MomKnobs(), ReactiveConfig(), lambda: free)
    asks = rule.asks(VmSample(memory_used_bytes=GIB // 2), situation(2 * GIB), Demand(), 0)
    assert [ask.value for ask in asks if ask.kind is StepKind.MEMORY] == [pytest.approx(value, abs=2)]


def test_sizes_that_do_not_fit_are_cut_alike_above_their_floors() -> None:
    cut = fitted(np.array([30.0, 50.0, np.nan]), np.array([10.0, 10.0, 10.0]), 50.0, 1.0)
    assert cut[:2].tolist() == [20.0, 30.0]
    assert np.isnan(cut[2])


def test_worsened_forecasts_are_half_an_hour_old_or_too_low(make: Any) -> None:
    block = make.forecast(("a",), make.need(), 10.0)
    foresee = late()
    first = replace(block, mean=block.mean + 7.0)
    assert foresee(first) is not None
    for i in range(1, 9):
        seen = foresee(replace(block, issued_s=block.issued_s + 300 * i, mean=block.mean + i))
    assert (seen.issued_s, float(np.nanmax(seen.mean - block.mean))) == (block.issued_s + 2400, 2.0)
    assert (low(block).peak_quantiles[..., -1] == block.peak_quantiles[..., 2]).all()


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="azure: nothing in"):
        fleet_of(Case(trace="azure", seed=1, hosts=1, vms=2, hours=1.0, room=1.0), tmp_path)


def test_finished_cases_are_not_run_again_and_scores_add_up(tmp_path: Path) -> None:
    """A trace of two jobs and five days is enough for a world of one host."""
    rng = np.random.default_rng(1)
    steps = 5 * 288
    rows = {
        "job": np.repeat([7, 8], steps),
        "day": np.tile(np.repeat(np.arange(1, 6), 288), 2),
        "step": np.tile(np.arange(288), 10),
        "cpu_pct": 20 + 5 * rng.random(2 * steps),
        "mem_pct": 30 + 5 * rng.random(2 * steps),
    }
    (tmp_path / "google2011_jobs").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "google2011_jobs" / "jobs.parquet")
    case = Case(trace="google", seed=1, hosts=1, vms=2, hours=0.75, room=1.1)
    runs = [Run(case=case, policy=policy, data=tmp_path) for policy in ("predictive", "oracle")]
    first = play_all(runs, 1, tmp_path / "scores")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()}
    assert play_all(runs, 1, tmp_path / "scores") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()} == kept
    assert first[0].vm_days == pytest.approx(2 * 0.25 / 24)
    assert (first[0].broken, first[0].peak) == (0, first[1].peak)
    assert first[1].violation_min == pytest.approx(sum(first[1].by_priority))
    both = joined(first)
    assert both.money == pytest.approx(first[0].money + first[1].money)
