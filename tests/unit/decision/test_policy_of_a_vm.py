"""What the policy of one VM changes in its size: a quantile of its own in place of the price, or recent use in place of the forecast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import size_host
from shared.model import Mode
from shared.units import CPU


def cpu_target(make: Any, policy: dict[str, Any], peak_now: float = 800.0) -> tuple[float, tuple[str, ...]]:
    seen = np.full(5, np.nan)
    seen[CPU] = peak_now
    vm, other = make.vm(quota=1000, policy=policy, peak_now=seen), make.vm("b", quota=1000)
    host, forecast = make.host(vm, other), make.forecast(("a", "b"), make.need(cpu=1400.0), stddev=200.0)
    evidence: Any = {}
    for _ in range(2):  # a shrink needs evidence
        sizes, evidence = size_host(host, forecast, SizingPolicy(), evidence)
    return float(sizes[0].target[CPU]), tuple(line for line in sizes[0].trail if line.startswith("cpu"))


@pytest.mark.parametrize(("permille", "target"), [(950, 1730.0), (990, 1870.0), (500, 1400.0)])
def test_a_quantile_of_its_own(make: Any, permille: int, target: float) -> None:
    """1400 + z * 200 in steps of 10, at a price that buys something else."""
    found, trail = cpu_target(make, {"size_quantile_permille": permille})
    priced, _ = cpu_target(make, {})
    assert found == target != priced
    assert any(f"quantile {permille / 1000:.3g} " in line and "by its policy" in line for line in trail), trail


def test_reactive_at_most_follows_recent_use(make: Any) -> None:
    found, trail = cpu_target(make, {"mode": Mode.REACTIVE}, peak_now=800.0)
    assert found == 1000.0, "800 and a quarter more"
    assert any("policy allows reactive at most" in line for line in trail), trail
    assert cpu_target(make, {"mode": Mode.PREDICTIVE}) == cpu_target(make, {})
