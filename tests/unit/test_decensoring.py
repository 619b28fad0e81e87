"""What the de-censoring bench measures, on made-up demand: most of what was hidden comes back, and nothing where nothing was hidden."""

from __future__ import annotations

import numpy as np
import pytest

from bench.decensoring import LEVELS, Replay, forecast_errors, recovery, replay, under_estimates
from bench.traces import Pair, Trace
from coordinator.model import F32, N_RESOURCES
from shared.units import GIB, MIB

LEVEL = np.array([900.0, 2.0 * GIB, 10.0 * MIB, 4e6, 2e6])


def trace(spread: float, buckets: int = 160, scored: int = 15) -> Trace:
    """Four VMs with a daily wave, noise and `spread`."""
    rng = np.random.default_rng(11)
    wave = 1.0 + 0.4 * spread * np.sin(np.arange(buckets) / 24.0)
    noise = np.exp(spread * rng.normal(0.0, 0.5, (4, N_RESOURCES, buckets)))
    noise[:, 1] = 1.0  # memory moves smoothly
    mean: F32 = (LEVEL[None, :, None] * wave * noise).astype(np.float32)
    return Trace(
        name="made up",
        start_s=0,
        vm_ids=tuple(f"vm{i}" for i in range(4)),
        mean=mean,
        peak=mean,
        train_mean=mean,
        train_peak=mean,
        loaded=buckets - scored,
        pairs=(Pair(name="made up", resources=tuple(range(N_RESOURCES))),),
    )


@pytest.fixture(scope="module")
def found() -> Replay:
    return replay(trace(1.0), "simulated", 1)


def test_a_host_that_counts_lets_nine_tenths_come_back(found: Replay) -> None:
    figures = recovery(found)
    assert {group for group, _ in figures} == {0, 1, 2, 3}
    for (_, _), (hidden, recovered, too_much, error) in figures.items():
        assert hidden > 0.005
        assert 0.9 < recovered < 1.2
        assert too_much < 0.25
        assert error < 0.4


def test_a_host_that_does_not_count_still_lets_most_come_back() -> None:
    figures = recovery(replay(trace(1.0), "kernel", 1))
    assert np.mean([min(recovered, 1.0) for _, recovered, _, _ in figures.values()]) > 0.75


def test_flat_demand_is_never_capped_and_nothing_is_added() -> None:
    flat = replay(trace(0.0), "simulated", 1)
    assert not flat.capped.any()
    assert recovery(flat) == {}
    np.testing.assert_allclose(flat.estimate, flat.usage, rtol=1e-3)


def test_forecasts_on_estimates_under_estimate_by_less_than_half(found: Replay) -> None:
    assert found.scored == 15
    assert set(found.level) == set(LEVELS)
    net, short = under_estimates(found, forecast_errors(found))
    assert net["usage"] > 0.02
    assert net["demand"] < 0.5 * net["usage"]
    assert short["demand"] - short["truth"] < 0.5 * (short["usage"] - short["truth"])
