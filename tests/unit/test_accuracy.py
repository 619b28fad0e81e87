"""Scores by VM, client, model, mode and horizon against a plain computation; windows, bounds, and the worst series."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from coordinator.learning import accuracy
from coordinator.learning.accuracy import ForecastAccuracy
from coordinator.learning.errors import ForecastErrors, pinball
from coordinator.learning.ledger import Ledger
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock
from shared.model import Mode
from shared.units import BUCKET_S, CPU, HORIZON_STEPS, MEMORY

T0 = 1_700_006_400
TAU = np.array(LEVELS)
MODES = {"h0": Mode.PREDICTIVE, "h1": Mode.REACTIVE}


def bucket(start_s: int, mean: np.ndarray, names: tuple[str, ...]) -> BucketBlock:
    return BucketBlock(
        start_s=start_s,
        vm_ids=names,
        host_ids=tuple(f"h{i % 2}" for i in range(len(names))),
        mean=mean,
        peak=mean,
        usage=mean,
        censored=np.zeros_like(mean),
        allocation=mean,
        samples=np.ones(len(names), np.int64),
    )


def forecast(issued_s: int, names: tuple[str, ...], rng: np.random.Generator) -> ForecastBlock:
    shape = (len(names), N_RESOURCES)
    quantiles = np.sort(rng.lognormal(4, 0.4, (*shape, HORIZON_STEPS, len(LEVELS))), axis=-1).astype(np.float32)
    return ForecastBlock(
        issued_s=issued_s,
        vm_ids=names,
        mean=quantiles.mean(axis=-1),
        stddev=quantiles.std(axis=-1),
        quantiles=quantiles,
        peak_quantiles=quantiles,
        model=rng.integers(0, 3, shape).astype(np.int8),
        models=("ses", "naive"),  # and 2: no model
        reason=np.zeros(shape, np.int8),
        coverage=np.full(shape, np.nan, np.float32),
    )


def test_sums_are_those_of_a_plain_computation() -> None:
    rng = np.random.default_rng(1)
    names = ("a", "b", "c", "d")
    clients = {"a": "acme", "b": "acme", "c": "umbrella"}
    book = ForecastAccuracy()
    said: list[tuple[ForecastBlock, np.ndarray, np.ndarray]] = []
    rows: list[tuple[str, int, int, int, float, float, float]] = []  # vm, r, step, model, ours, naive, inside
    for t in range(20):
        now = names if t < 15 else ("d", "b", "a")  # one leaves, the order changes
        mean = rng.lognormal(4, 0.4, (len(now), N_RESOURCES))
        mean[rng.random(mean.shape) < 0.1] = np.nan
        book.score(bucket(T0 + t * BUCKET_S, mean, now), MODES, clients, {"b": "shop"})
        for block, last, spread in said:
            step = (T0 + t * BUCKET_S - block.issued_s) // BUCKET_S
            if not 0 <= step < HORIZON_STEPS:
                continue
            for i, vm in enumerate(block.vm_ids):
                for r in range(N_RESOURCES):
                    if vm not in now or np.isnan(mean[now.index(vm), r]):
                        continue
                    y = mean[now.index(vm), r]
                    walk = last[i, r] + np.array([NormalDist().inv_cdf(q) for q in LEVELS]) * spread[i, r] * np.sqrt(step + 1.0)
                    quantiles = block.quantiles[i, r, step].astype(float)
                    ours, naive = (float(pinball(q, np.asarray(y), TAU)) for q in (quantiles, np.maximum(walk, 0.0)))
                    rows.append((vm, r, step, int(block.model[i, r]), ours, naive, float(quantiles[1] <= y <= quantiles[5])))
        block = forecast(T0 + (t + 1) * BUCKET_S, now, rng)
        last, spread = rng.lognormal(4, 0.4, (2, len(now), N_RESOURCES)).astype(np.float32).astype(float)
        book.issue(block, last, spread)
        said.append((block, last, spread))

    def expected(pick: list[tuple[str, int, int, int, float, float, float]]) -> tuple[float, float, float]:
        return len(pick), sum(p[4] for p in pick) / sum(p[5] for p in pick), sum(p[6] for p in pick) / len(pick)

    def found(scores: accuracy.Accuracy, *at: int) -> tuple[float, float, float]:
        return float(scores.pairs[at]), float(scores.to_naive[at]), float(scores.coverage_80[at])

    cpu = [row for row in rows if row[1] == CPU]
    assert found(book.fleet("total"), CPU) == pytest.approx(expected(cpu), rel=2e-4)
    assert found(book.by_horizon("total"), 7, CPU) == pytest.approx(expected([p for p in cpu if p[2] == 7]), rel=2e-4)
    assert sorted(book.by_app("total")) == ["", "shop"]
    assert found(book.by_app("total")["shop"], CPU) == pytest.approx(expected([p for p in cpu if p[0] == "b"]), rel=2e-4)
    assert sorted(book.by_client("total")) == ["", "acme", "umbrella"]
    assert found(book.by_client("total")["acme"], CPU) == pytest.approx(expected([p for p in cpu if p[0] in "ab"]), rel=2e-4)
    assert sorted(book.by_model("total")) == ["naive", "none", "ses"]
    assert found(book.by_model("total")["ses"], CPU) == pytest.approx(expected([p for p in cpu if p[3] == 0]), rel=2e-4)
    of_b = book.of_vm("b", "total")
    assert of_b is not None
    assert found(of_b, 2, CPU) == pytest.approx(expected([p for p in cpu if p[0] == "b" and p[2] >= 6]), rel=2e-4)
    assert book.of_vm("nobody") is None
    assert sum(scores.pairs[CPU] for scores in book.by_mode("total").values()) == len(cpu)
    assert sorted(book.by_mode("total")) == ["predictive", "reactive"]


def constant(book: ForecastErrors, t: int, off: dict[str, float], names: tuple[str, ...] = ("a", "b")) -> None:
    """One bucket at 1e9 with a wobble, and a forecast that lies `off` from it."""
    rng = np.random.default_rng(t)
    mean = 1e9 * (1.0 + 0.01 * rng.standard_normal((len(names), N_RESOURCES)))
    book.score(bucket(T0 + t * BUCKET_S, mean, names), MODES)
    block = forecast(T0 + (t + 1) * BUCKET_S, names, rng)
    level = np.array([1e9 * (1.0 + off.get(name, 0.0)) for name in names])[:, None, None, None]
    spread = level * 0.01 * np.array([NormalDist().inv_cdf(q) for q in LEVELS])
    quantiles = np.broadcast_to(level + spread, block.quantiles.shape).astype(np.float32)
    book.issue(replace(block, quantiles=quantiles, mean=quantiles[..., 4]))


def test_the_worst_series_and_what_the_windows_remember() -> None:
    book = ForecastErrors()
    for t in range(60):
        constant(book, t, {"b": 0.2})
    worst = book.accuracy.worst(3, "hour")
    assert {series.vm_id for series in worst} == {"b"}
    assert worst[0].to_naive > 3
    assert worst[0].to_naive >= worst[1].to_naive
    assert book.accuracy.worst(99)[-1].to_naive < 1.2
    of_b = book.accuracy.of_vm("b")
    assert of_b is not None
    assert of_b.bias[0, MEMORY] == pytest.approx(2e8, rel=0.05)
    assert of_b.mae[0, MEMORY] == pytest.approx(2e8, rel=0.05)
    assert of_b.above[0, MEMORY] == 0.0
    assert of_b.coverage_95[0, MEMORY] == 0.0
    for t in range(60, 60 + 36):  # three hours of good forecasts
        constant(book, t, {})
    ratios = {window: book.accuracy.by_horizon(window).to_naive[0, CPU] for window in ("hour", "day", "total")}
    assert ratios["hour"] < 0.5 * ratios["day"] < ratios["total"]
    assert book.accuracy.fleet("hour").coverage_95[CPU] == pytest.approx(0.95, abs=0.08)
    with pytest.raises(ValueError, match="window 'week': allowed hour, day, total"):
        book.accuracy.fleet("week")


def test_a_bucket_that_closes_twice_counts_once_and_strangers_do_no_harm() -> None:
    book = ForecastAccuracy()
    rng = np.random.default_rng(2)
    book.issue(forecast(T0, ("gone", "a"), rng), np.ones((2, N_RESOURCES)), np.ones((2, N_RESOURCES)))
    for _ in range(2):
        loss = book.score(bucket(T0, np.full((2, N_RESOURCES), 50.0), ("new", "a")), {})
    assert book.fleet("total").pairs[CPU] == 1
    assert loss.count.sum() == 0
    assert sorted(book.by_mode("total")) == ["off"]
    assert book.worst(9)[0].vm_id == "a"
    empty = ForecastAccuracy()
    assert empty.worst(3) == []
    assert np.isnan(empty.fleet().to_naive).all()
    empty.score(bucket(T0, np.zeros((0, N_RESOURCES)), ()), {})


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "MAX_CLIENTS", 3)
    book = ForecastErrors()
    for t in range(3):
        names = tuple(f"vm{t}-{i}" for i in range(4))
        book.score(bucket(T0 + t * BUCKET_S, np.full((4, N_RESOURCES), 9.0), names), MODES, {name: f"c{name}" for name in names})
    assert len(book.accuracy._clients) == 3
    for t in range(3, 3 + accuracy.FORGET_AFTER):
        book.score(bucket(T0 + t * BUCKET_S, np.full((1, N_RESOURCES), 9.0), ("stays",)), MODES)
    assert book.accuracy.of_vm("vm0-0") is None
    assert book.accuracy.of_vm("stays") is not None


def test_the_ledger_scores_and_watches_for_drift() -> None:
    ledger = Ledger()
    rng = np.random.default_rng(3)
    for t in range(4):
        assert ledger.bucket(bucket(T0 + t * BUCKET_S, rng.lognormal(4, 0.4, (2, N_RESOURCES)), ("a", "b")), MODES, {"a": "acme"}) is None
        ledger.forecast(forecast(T0 + (t + 1) * BUCKET_S, ("a", "b"), rng))
    assert ledger.errors.accuracy.by_client("total")["acme"].pairs[CPU] == 1 + 2  # Naive's spread takes two buckets
    assert not ledger.drift.drifting.any()
