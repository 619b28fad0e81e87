"""Which forecasts are not acted on: three misses in a row and a series is out, three hits and it is back; unknown is neither."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from forecast_blocks import forecast_block
from hypothesis import given
from hypothesis import strategies as st

from coordinator.learning.trust import RUN, CalibrationWatch
from coordinator.model import LEVELS, BucketBlock, ForecastBlock, NoForecast
from shared.units import BUCKET_S, CPU, MEMORY, MIB

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S
HIT, MISS, GAP = 1000.0, 1500.0, float("nan")


def forecast(step: int, vm_ids: tuple[str, ...] = ("a",), reason: NoForecast = NoForecast.OK, wide: float = 0.1) -> ForecastBlock:
    """1000 and a band of 10 % around it."""
    v = len(vm_ids)
    levels = 1000.0 * (1.0 + 2 * wide * (np.asarray(LEVELS, np.float32) - 0.5))
    quantiles = np.broadcast_to(levels, (v, 5, 12, len(LEVELS))).astype(np.float32)
    spread, codes = np.full((v, 5, 12), 1000, np.float32), np.full((v, 5), reason, np.int8)
    return forecast_block(vm_ids, T0 + step * BUCKET_S, 1000.0, stddev=spread, quantiles=quantiles, models=("theta",), reason=codes)


def bucket(step: int, cpu: Sequence[float], vm_ids: tuple[str, ...] = ("a",)) -> BucketBlock:
    """All other resources hit."""
    values = np.full((len(vm_ids), 5), HIT)
    values[:, CPU] = cpu
    return BucketBlock(
        start_s=T0 + step * BUCKET_S,
        vm_ids=vm_ids,
        host_ids=("h",) * len(vm_ids),
        mean=values,
        peak=values,
        usage=values,
        censored=values * 0,
        allocation=values,
        samples=np.full(len(vm_ids), 60),
    )


def verdicts(came: Sequence[float]) -> list[bool]:
    """After each bucket: is CPU out of calibration?"""
    watch, found = CalibrationWatch(), []
    watch.mark(forecast(0))
    for step, cpu in enumerate(came):
        watch.bucket(bucket(step, [cpu]))
        marked = watch.mark(forecast(step + 1))
        assert marked.reason[0, MEMORY] == NoForecast.OK
        found.append(bool(marked.reason[0, CPU] == NoForecast.OUT_OF_CALIBRATION))
    return found


@pytest.mark.parametrize(
    ("came", "out"),
    [
        ([MISS] * 4, [False, False, True, True]),
        ([MISS, MISS, HIT, MISS, MISS], [False] * 5),
        ([MISS, 500.0, MISS, HIT, HIT, HIT, HIT], [False, False, True, True, True, False, False]),
        ([MISS] * 3 + [HIT, HIT, MISS, HIT, HIT, HIT], [False, False] + [True] * 6 + [False]),
        ([MISS, GAP, MISS, GAP, MISS], [False] * 4 + [True]),
        ([MISS] * 3 + [GAP] * 4, [False, False] + [True] * 5),
    ],
)
def test_a_run_of_misses_drops_it_and_a_run_of_hits_brings_it_back(came: list[float], out: list[bool]) -> None:
    assert verdicts(came) == out


@given(st.lists(st.sampled_from([HIT, MISS, GAP]), max_size=40))
def test_it_is_out_exactly_from_a_run_of_misses_to_a_run_of_hits(came: list[float]) -> None:
    told = [(value, out) for value, out in zip(came, verdicts(came), strict=True) if value == value]
    for i, (_, out) in enumerate(told):
        newest = [value for value, _ in told[max(0, i + 1 - RUN) : i + 1]]
        if newest == [MISS] * RUN:
            assert out
        elif newest == [HIT] * RUN:
            assert not out
        else:
            assert out == (told[i - 1][1] if i else False)


@pytest.mark.parametrize(("resource", "floor"), [(CPU, 2.0), (MEMORY, float(MIB))])
def test_a_miss_too_small_to_act_on_is_none(resource: int, floor: float) -> None:
    for beyond, out in ((0.5, False), (2.0, True)):
        watch = CalibrationWatch()
        for step in range(RUN):
            watch.mark(forecast(step, wide=0.0))
            block = bucket(step, [HIT])
            block.mean[0, resource] = 1000.0 * 1.02 + beyond * floor
            watch.bucket(block)
        assert (watch.mark(forecast(RUN)).reason[0, resource] == NoForecast.OUT_OF_CALIBRATION) == out


def test_a_series_without_a_model_keeps_its_own_reason_and_a_forecast_that_is_fine_its_arrays() -> None:
    watch = CalibrationWatch()
    for step in range(RUN):
        watch.mark(forecast(step))
        watch.bucket(bucket(step, [MISS]))
    cold = forecast(RUN, reason=NoForecast.COLD_START)
    assert watch.mark(cold) is cold
    assert watch.mark(forecast(RUN)).reason[0, CPU] == NoForecast.OUT_OF_CALIBRATION


def test_each_vm_keeps_its_run_as_others_come_and_go() -> None:
    watch = CalibrationWatch()
    fleets = (("a", "b"), ("c", "b", "a"), ("b", "a"))
    for step, vm_ids in enumerate(fleets):
        watch.mark(forecast(step, vm_ids))
        watch.bucket(bucket(step, [MISS if vm_id == "a" else HIT for vm_id in sorted(vm_ids)], tuple(sorted(vm_ids))))
    marked = watch.mark(forecast(3, ("a", "b", "c")))
    assert marked.reason[:, CPU].tolist() == [NoForecast.OUT_OF_CALIBRATION, NoForecast.OK, NoForecast.OK]


def test_a_bucket_that_no_newest_forecast_speaks_of_says_nothing() -> None:
    watch = CalibrationWatch()
    watch.mark(forecast(0))
    for step in range(1, 2 * RUN):
        watch.bucket(bucket(step, [MISS]))
    assert watch.mark(forecast(2 * RUN)).reason[0, CPU] == NoForecast.OK
