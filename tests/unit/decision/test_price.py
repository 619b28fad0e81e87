"""Sizes bought at one price per host and resource."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.model import LEVELS, NoForecast
from coordinator.settings import sizing_policy
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.price import buy, curves_of, exceed_at
from coordinator.sizing.size import size_host
from shared.config import SizingConfig
from shared.units import CPU, GIB, MEMORY

Z = np.array([-1.96, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449, 1.96, 2.3263])


def normal(mean: float, stddev: float) -> list[float]:
    return [max(0.0, mean + z * stddev) for z in Z]


def bought(peaks: list[list[float]], price: float = 12.0, weight: list[float] | None = None, floor: float = 0.0) -> np.ndarray:
    n = len(peaks)
    return buy(
        curves_of(np.array(peaks), LEVELS),
        weight=np.ones(n) if weight is None else np.array(weight),
        floor=np.full(n, floor),
        top=np.full(n, 9000.0),
        price=price,
        capacity=10_000.0,
    )


def test_the_last_unit_is_worth_its_price_and_the_next_is_not() -> None:
    curves = curves_of(np.array([normal(1000, 100)]), LEVELS)
    (size,) = bought([normal(1000, 100)], price=12.0)
    k = int(np.flatnonzero(curves.size[0] == size)[0])
    gain = -np.diff(curves.exceed[0]) / np.diff(curves.size[0])
    assert gain[k] <= 12.0 / 10_000 <= gain[:k].max()
    assert np.all(np.diff(curves.size[0]) > 0) and np.all(np.diff(curves.exceed[0]) < 0)


def test_a_steady_vm_gets_a_higher_level_than_a_jumpy_one_at_the_same_price() -> None:
    peaks = [normal(1000, 20), normal(1000, 300)]
    steady, jumpy = exceed_at(curves_of(np.array(peaks), LEVELS), bought(peaks, price=16.0))
    assert steady < 0.02 < 2 * steady < jumpy


def test_a_lower_price_and_a_higher_weight_buy_more() -> None:
    peaks = [normal(1000, 200)] * 2
    assert np.all(bought(peaks, price=2.0) > bought(peaks, price=20.0))
    light, heavy = bought(peaks, weight=[0.5, 4.0])
    assert light < heavy


peaks_st = st.lists(st.lists(st.floats(0, 8000), min_size=9, max_size=9).map(sorted), min_size=1, max_size=8)


@given(peaks_st, st.floats(0.01, 1000), st.floats(0, 500))
def test_sizes_stay_within_floor_and_top(peaks: list[list[float]], price: float, floor: float) -> None:
    sizes = bought(peaks, price=price, floor=floor)
    assert np.all((sizes >= floor - 1e-9) & (sizes <= 9000.0))
    exceed = exceed_at(curves_of(np.array(peaks), LEVELS), sizes)
    assert np.all((exceed >= 0) & (exceed <= 0.5))


def test_the_host_keeps_a_reserve_and_the_trail_names_the_price(make: Any) -> None:
    vms = [make.vm("a", quota=1000), make.vm("b", quota=1000)]
    block = make.forecast(("a", "b"), np.stack([make.need(cpu=1500), make.need(cpu=1500)]), 50.0)
    policy = SizingPolicy(reserve_share=0.2, price=(12.0, 0.0, 0.0, 0.0, 0.0))
    wide, _ = size_host(make.host(*vms), block, policy, {})
    assert any("at price 12" in line for line in wide[0].trail) and not wide[0].clipped
    tight, _ = size_host(make.host(*vms, cpu_commit_millicores=3850), block, policy, {})
    assert sum(size.target[CPU] for size in tight) <= 0.8 * 3850 + 20
    assert tight[0].clipped == ("cpu_millicores",)
    assert tight[0].shadow_price["cpu_millicores"] > 0.0
    assert any(line.startswith("host_capacity: cpu price 12") for line in tight[0].trail)


def test_a_host_whose_sum_is_known_to_move_little_keeps_no_more_in_reserve_than_that(make: Any) -> None:
    vms = [make.vm("a", quota=1000), make.vm("b", quota=1000)]
    block = make.forecast(("a", "b"), np.stack([make.need(cpu=1400), make.need(cpu=1400)]), 200.0)
    host = make.host(*vms, cpu_commit_millicores=4000)
    policy = SizingPolicy(reserve_share=0.2, price=(3.0, 0.0, 0.0, 0.0, 0.0))

    def summed(deviations: float) -> float:
        margin = (deviations, *(np.inf,) * 4)
        sizes, _ = size_host(host, block, policy, {}, margin=margin)
        return float(sum(size.target[CPU] for size in sizes))

    assert summed(np.inf) <= 3200 + 20 < summed(700.0) <= 3300 + 20 < summed(0.0)
    assert summed(5000.0) == summed(np.inf)


def test_a_burning_error_budget_outweighs_the_price(make: Any) -> None:
    block = make.forecast(("a",), make.need(cpu=1500, memory=GIB), 200.0)
    calm, _ = size_host(make.host(make.vm()), block, SizingPolicy(), {}, burn_rate={"a": 0.5})
    burning, _ = size_host(make.host(make.vm()), block, SizingPolicy(), {}, burn_rate={"a": 3.0})
    assert burning[0].target[CPU] > calm[0].target[CPU]


def test_the_settings_defaults_are_the_policys() -> None:
    assert sizing_policy(SizingConfig()) == SizingPolicy()
    assert sizing_policy(SizingConfig(price=0.5, reserve_permille=50)).price[CPU] == SizingPolicy().price[CPU] / 2


def test_a_curve_with_a_hole_keeps_its_fixed_quantile(make: Any) -> None:
    block = make.forecast(("a", "b"), np.stack([make.need(cpu=1500)] * 2), 100.0)
    block.peak_quantiles[0, CPU, :, 1] = np.nan
    sizes, _ = size_host(make.host(make.vm("a"), make.vm("b")), block, SizingPolicy(), {})
    assert sizes[0].target[CPU] == 1670  # 1500 + 1.6449 * 100 in steps of 10: the .95 of priority normal
    assert any("at price" in line and line.startswith("cpu") for line in sizes[1].trail)


def test_out_of_calibration_gives_back_what_the_newest_peaks_did_not_need(make: Any) -> None:
    def sized(quota: int, peaks: list[float]) -> Any:
        evidence: Any = {}
        block = make.forecast(("a",), make.need(cpu=3000), 100.0, reason=int(NoForecast.OUT_OF_CALIBRATION))
        for peak in peaks:
            vm = make.vm(quota=quota, peak_now=np.array([peak, np.nan, np.nan, np.nan, np.nan]))
            (size,), evidence = size_host(make.host(vm), block, SizingPolicy(), evidence)
        return size

    shrinks = sized(4000, [1800.0, 1000.0])
    assert shrinks.target[CPU] == 2250 and shrinks.upper[CPU] < 4000  # the larger of two buckets and a quarter
    assert sized(4000, [1000.0]).upper[CPU] >= 4000  # one bucket is not enough
    grows = sized(1000, [1800.0, 1800.0])
    assert grows.lower[CPU] <= 1000 <= grows.upper[CPU]  # growth is the host's own
    assert np.isnan(shrinks.target[MEMORY])
