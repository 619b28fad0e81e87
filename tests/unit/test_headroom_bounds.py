"""What bounds a missed bar: the best linear rule in hindsight, and a figure over draws of VMs."""

from __future__ import annotations

import numpy as np
import pytest

from bench.headroom import Hours, Rules, bounds_of
from bench.headroom_bounds import linear_rule, over_draws


def test_the_linear_rule_finds_the_weights_that_demand_was_made_of() -> None:
    rng = np.random.default_rng(1)
    rules = rng.gamma(4.0, 10.0, (4000, 3))
    demand = 0.7 * rules[:, 0] + 0.4 * rules[:, 2] - rng.exponential(3.0, 4000)
    found = linear_rule(demand, rules, rules[:, 0] + 1.0, 0.99)
    assert np.abs(found - (0.7 * rules[:, 0] + 0.4 * rules[:, 2])).mean() < 1.0
    assert 0.98 <= (demand <= found).mean() <= 1.0


def test_no_single_rule_with_a_margin_is_below_the_linear_rule_at_its_own_loss() -> None:
    rng = np.random.default_rng(2)
    rules = rng.gamma(4.0, 10.0, (2000, 2))
    demand = rules.sum(axis=1) * rng.lognormal(0.0, 0.2, 2000)

    def loss(allocation: np.ndarray) -> float:
        error = demand - allocation
        return float((0.95 * error - np.minimum(error, 0.0)).mean())

    scale = np.full(2000, 10.0)
    best = min(loss(rules[:, k] * margin) for k in range(2) for margin in np.linspace(0.5, 6.0, 111))
    assert loss(linear_rule(demand, rules, scale, 0.95)) < best


def test_draws_follow_the_seed_and_leave_out_what_has_no_figure() -> None:
    each = np.arange(50.0)
    spread = over_draws(50, 200, lambda columns: float(each[columns].mean()))
    assert spread == over_draws(50, 200, lambda columns: float(each[columns].mean()))
    assert spread.low < 24.5 < spread.high and spread.high - spread.low < 4.0 * each.std() / np.sqrt(50)
    assert over_draws(50, 9, lambda columns: 3.0 if 0 in columns else float("inf")).high == 3.0
    assert np.isnan(over_draws(50, 9, lambda columns: float("nan")).low)


def test_a_forecast_that_is_a_tuned_rule_costs_what_that_rule_costs() -> None:
    rng = np.random.default_rng(3)
    demand = rng.gamma(3.0, 20.0, (40, 60))
    highest = np.broadcast_to(demand.max(axis=0) * 0.8, demand.shape)
    hours = Hours(demand=demand, unit=np.ones(60))
    rules = Rules(
        maxima={"max of 24 h": highest, "max of 1 h": highest * rng.lognormal(0.0, 0.5, demand.shape)},
        vpa={(length, level): highest * level for length in (36, 144, 288) for level in (0.5, 0.95, 0.98)},
    )
    mine = highest * hours.margin(highest, 0.01)
    figures = {
        figure.name.split("at 1%, ")[1]: figure.value for figure in bounds_of("planetlab cpu", hours, mine, rules, 0.01, np.ones(60), 20)
    }
    assert figures["both tuned"] == pytest.approx(1.0)
    assert figures["a twentieth of draws of VMs below"] < 1.1 and figures["a twentieth of draws of VMs above"] > 0.9
    assert 0.5 < figures["of the best linear rule in hindsight"] < 1.1
