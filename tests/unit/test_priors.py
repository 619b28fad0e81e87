"""Cold start from class priors: who resembles whom, how own readings take over, bounds, and held-out VMs of a real trace."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from coordinator.forecast import priors
from coordinator.forecast.priors import COLD_BUCKETS, FLOORS, ClassKey, ClassPriors, flavour
from coordinator.forecast.rows import NEW
from coordinator.learning.errors import pinball
from coordinator.model import LEVELS, N_RESOURCES
from shared.units import BUCKET_S, CPU, GIB, MEMORY

DATA = Path(os.environ.get("TIDEGATE_DATA", Path(__file__).parents[3] / "shared" / "data"))
T0 = 1_700_006_400 // 86_400 * 86_400
MEDIAN = LEVELS.index(0.5)
WEB, BATCH = ClassKey("acme", "web", "4x8"), ClassKey("acme", "batch", "4x8")
CAPACITY = np.array([4000.0, 8.0 * GIB, 1e8, 1e9, 1e9])


def fleet(web: int = 10, batch: int = 10, days: int = 2, seed: int = 1) -> tuple[ClassPriors, int]:
    """Web VMs use 60 % by day and 10 % by night, batch VMs 20 % always. Returns the priors and the start of the next bucket."""
    rng = np.random.default_rng(seed)
    found = ClassPriors()
    found.rearrange(np.full(web + batch, NEW))
    found.classify(np.arange(web + batch), [WEB] * web + [BATCH] * batch)
    capacity = np.tile(CAPACITY, (web + batch, 1))
    for t in range(days * 288):
        share = np.r_[np.full(web, 0.6 if 96 <= t % 288 < 192 else 0.1), np.full(batch, 0.2)]
        mean = share[:, None] * CAPACITY * rng.lognormal(0, 0.1, (web + batch, N_RESOURCES))
        found.learn(mean, 1.3 * mean, capacity, T0 + t * BUCKET_S)
    return found, T0 + days * 86_400


def newcomers(found: ClassPriors, keys: list[ClassKey]) -> np.ndarray:
    old = len(found.readings)
    found.rearrange(np.r_[np.arange(old), np.full(len(keys), NEW)])
    rows = np.arange(old, old + len(keys))
    found.classify(rows, keys)
    return rows


def feed(found: ClassPriors, own: np.ndarray, start_s: int) -> None:
    """A bucket in which only the newest VMs are heard."""
    n = len(found.readings)
    mean = np.full((n, N_RESOURCES), np.nan)
    mean[n - len(own) :] = own
    found.learn(mean, mean, np.tile(CAPACITY, (n, 1)), start_s)


def test_without_a_reading_the_class_speaks_by_time_of_day() -> None:
    found, midnight = fleet()
    strangers = [WEB, BATCH, ClassKey("other", "", "64x512"), ClassKey("acme", "web", "16x64")]
    rows = newcomers(found, strangers)
    capacity = np.tile(CAPACITY, (4, 1))
    night, _ = found.prior(rows, capacity, midnight + 3600)
    noon, peak = found.prior(rows, capacity, midnight + 12 * 3600)
    share = [quantiles[:, CPU, 0, MEDIAN] / CAPACITY[CPU] for quantiles in (night, noon)]
    assert share[0][0] == pytest.approx(0.1, rel=0.4)
    assert share[1][0] == pytest.approx(0.6, rel=0.3)
    assert share[0][1] == pytest.approx(0.2, rel=0.3)
    assert share[1][1] == pytest.approx(0.2, rel=0.3)
    assert share[1][3] == pytest.approx(0.6, rel=0.3)  # another flavour of the same application
    assert noon[2, CPU, 0, 1] < 0.25 * CAPACITY[CPU] < 0.45 * CAPACITY[CPU] < noon[2, CPU, 0, -2]  # a stranger may be either
    assert (peak[0, CPU, :, MEDIAN] > 1.1 * noon[0, CPU, :, MEDIAN]).all()


def test_own_readings_take_over_within_ten_minutes_and_the_spread_is_the_class_s() -> None:
    found, midnight = fleet()
    rows = newcomers(found, [WEB])
    capacity = CAPACITY[None]
    for k in range(2):
        feed(found, 0.35 * CAPACITY[None], midnight + k * BUCKET_S)
    quantiles, _ = found.prior(rows, capacity, midnight + 2 * BUCKET_S)
    band = quantiles[0, CPU, 0] / CAPACITY[CPU]
    assert band[MEDIAN] == pytest.approx(0.35, rel=0.1)
    assert 1.05 < band[LEVELS.index(0.9)] / band[MEDIAN] < 1.6
    calm = band[-1] - band[0]
    for k in range(2, 20):
        feed(found, 0.35 * CAPACITY[None], midnight + k * BUCKET_S)
    later, _ = found.prior(rows, capacity, midnight + 20 * BUCKET_S)
    assert (later[0, CPU, 0, -1] - later[0, CPU, 0, 0]) / CAPACITY[CPU] < 0.7 * calm  # it moves less than its class
    assert found.readings[rows[0], CPU] == 20 < COLD_BUCKETS


def test_quantiles_are_monotone_bounded_and_peaks_cumulative() -> None:
    found, midnight = fleet(seed=3)
    rng = np.random.default_rng(4)
    rows = newcomers(found, [ClassKey()] * 6)
    own = rng.lognormal(0, 3, (6, N_RESOURCES)) * CAPACITY
    own[0], own[1] = 0.0, np.nan
    capacity = np.tile(CAPACITY, (6, 1))
    capacity[2] = np.nan
    for k in range(4):
        feed(found, own, midnight + k * BUCKET_S)
        quantiles, peaks = found.prior(rows, capacity, midnight + (k + 1) * BUCKET_S)
        for values in (quantiles, peaks):
            assert values.shape == (6, N_RESOURCES, 12, len(LEVELS))
            assert np.isfinite(values).all()
            assert (np.diff(values, axis=-1) >= 0).all()
            assert (values >= 0).all()
            known = ~np.isnan(capacity[:, 0])
            assert (values[known] <= capacity[known].astype(np.float32)[:, :, None, None]).all()
        assert (np.diff(peaks, axis=2) >= 0).all()
        assert (peaks >= quantiles).all()


def test_nothing_learned_is_nan_and_bounds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ClassPriors()
    rows = newcomers(found, [WEB])
    quantiles, peaks = found.prior(rows, CAPACITY[None], T0)
    assert np.isnan(quantiles).all()
    assert np.isnan(peaks).all()
    monkeypatch.setattr(priors, "MAX_CLASSES", 4)
    many = newcomers(found, [ClassKey(f"client{i}") for i in range(10)])
    for t in range(COLD_BUCKETS):
        assert np.isnan(found.prior(many, np.tile(CAPACITY, (10, 1)), T0 + t * BUCKET_S)[0]).all()  # not one has taught its class yet
        feed(found, np.tile(0.2 * CAPACITY, (10, 1)), T0 + t * BUCKET_S)
    for _ in range(priors.REFRESH):
        feed(found, np.tile(0.2 * CAPACITY, (10, 1)), T0)
    late = newcomers(found, [ClassKey("client11")])
    quantiles, _ = found.prior(late, CAPACITY[None], T0)  # beyond the bound the fleet stands in
    assert quantiles[0, :, 0, MEDIAN] == pytest.approx(0.2 * CAPACITY, rel=0.3)
    assert found.prior(np.zeros(0, np.int64), np.zeros((0, N_RESOURCES)), T0)[0].shape == (0, N_RESOURCES, 12, len(LEVELS))
    assert flavour(4, 8 * GIB) == flavour(4, 8 * GIB - 1) == "4x8"
    assert ClassKey("", "", "4x8").wider() == (("", "", ""), ("", "", "4x8"))
    assert len(WEB.wider()) == 7


def _bitbrains() -> tuple[Any, Any]:
    file = DATA / "bitbrains_rnd" / "bitbrains_rnd.parquet"
    if not file.exists():
        pytest.skip(f"{file} is absent: set TIDEGATE_DATA")
    first, buckets = 1_373_500_800, 3 * 288
    names = ["vm", "t", "cores", "cpu_pct", "mem_cap_kb", "mem_kb"]
    table = pq.read_table(file, columns=names, filters=[("t", ">=", first), ("t", "<", first + buckets * 300), ("cores", ">", 0)])
    column = {name: table[name].to_numpy().astype(np.float64) for name in names}
    ids, row = np.unique(column["vm"], return_inverse=True)
    bucket = ((column["t"] - first) // 300).astype(int)
    mean, capacity = np.full((len(ids), N_RESOURCES, buckets), np.nan), np.full((len(ids), N_RESOURCES), np.nan)
    mean[row, CPU, bucket] = column["cpu_pct"] * column["cores"] * 10.0
    mean[row, MEMORY, bucket] = column["mem_kb"] * 1024
    capacity[row, CPU], capacity[row, MEMORY] = column["cores"] * 1000.0, column["mem_cap_kb"] * 1024
    return mean, capacity


def test_held_out_machines_do_better_than_by_their_last_value() -> None:
    mean, capacity = _bitbrains()
    v = len(mean)
    keys = [ClassKey(flavour=flavour(int(c / 1000), int(m))) for c, m in capacity[:, :2]]
    rng = np.random.default_rng(5)
    order = rng.permutation(v)
    known, fresh = order[: v * 2 // 3], order[v * 2 // 3 :]
    found = ClassPriors()
    found.rearrange(np.full(len(known), NEW))
    found.classify(np.arange(len(known)), [keys[i] for i in known])
    start = 600
    for t in range(start):
        found.learn(mean[known, :, t], mean[known, :, t], capacity[known], T0 + t * BUCKET_S)
    rows = newcomers(found, [keys[i] for i in fresh])
    both = np.r_[known, fresh]
    change = np.abs(np.diff(mean[fresh], axis=2))
    scale = (np.nansum(change, axis=2) / np.maximum(np.isfinite(change).sum(axis=2), 1) + FLOORS)[..., None]
    z = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    losses: list[Any] = []
    inside: list[Any] = []
    for k in range(COLD_BUCKETS):
        now = start + k
        found.learn(mean[both, :, now], mean[both, :, now], capacity[both], T0 + now * BUCKET_S)
        if k < 1 or k % 3 != 1:
            continue
        quantiles, _ = found.prior(rows, capacity[fresh], T0 + (now + 1) * BUCKET_S)
        actual, last = mean[fresh][:, :, now + 1 : now + 13], mean[fresh, :, now][:, :, None, None]
        laplace = np.maximum(last * (1.0 + 0.3 * z), 0.0)
        ours, point, spread = (
            pinball(np.broadcast_to(q, quantiles.shape).astype(np.float64), actual, np.array(LEVELS)) / scale
            for q in (quantiles, last, laplace)
        )
        told = np.isfinite(ours + point)
        losses.append([[np.where(told, loss, 0.0).sum(axis=(0, 2)) for loss in (ours, point, spread)]])
        hit = (actual >= quantiles[..., 1]) & (actual <= quantiles[..., 5])
        inside.append([np.where(told, hit, 0).sum(axis=(0, 2)), told.sum(axis=(0, 2))])
    ours, point, spread = np.sum(losses, axis=(0, 1))[:, [CPU, MEMORY]]
    assert (ours < 0.85 * point).all()
    assert (ours < 0.85 * spread).all()
    hits, count = np.sum(inside, axis=0)[:, [CPU, MEMORY]]
    assert (np.abs(hits / count - 0.8) < 0.12).all()  # two hours of one day: the band is the fleet's
