"""SLA error budgets by client."""

from __future__ import annotations

import pytest

from coordinator.learning.budgets import ErrorBudgets
from coordinator.learning.sla import SlaSums
from coordinator.settings import objectives
from coordinator.sizing.feasible import Objectives
from shared.config import SlaConfig
from shared.errors import ConfigError
from shared.units import BUCKET_S, NS_PER_S

BUCKET_NS = BUCKET_S * NS_PER_S


class Feed:
    """Running sums of VMs, bucket by bucket."""

    def __init__(self, budgets: ErrorBudgets, clients: dict[str, str]) -> None:
        self.budgets, self.clients = budgets, clients
        self.sums = {vm_id: SlaSums() for vm_id in clients}

    def buckets(self, count: int, **violated: float) -> None:
        """`violated`: vm_id -> share of each bucket."""
        for _ in range(count):
            for vm_id, sums in self.sums.items():
                sums.observed_ns += BUCKET_NS
                sums.violated_ns += int(violated.get(vm_id, 0.0) * BUCKET_NS)
            self.budgets.bucket(self.sums, self.clients)


def burn(budgets: ErrorBudgets, client: str) -> float:
    standing = budgets.standing(client)
    assert standing is not None
    return standing.burn


def test_a_client_within_its_budget_burns_below_one_and_changes_nothing() -> None:
    budgets = ErrorBudgets(Objectives(budget=0.01))
    feed = Feed(budgets, {"a": "x", "b": "x"})
    feed.buckets(864, a=0.018)
    assert burn(budgets, "x") == pytest.approx(0.9)
    assert budgets.burn_rates(feed.clients) == {}


def test_both_windows_must_burn_and_the_short_one_ends_it() -> None:
    budgets = ErrorBudgets(Objectives(budget=0.01))
    feed = Feed(budgets, {"a": "x"})
    feed.buckets(71)
    feed.buckets(2, a=0.72)
    assert burn(budgets, "x") == pytest.approx(2.0, rel=0.01)  # 72 over five minutes and 12 over the hour: twice as fast as an hour may
    assert budgets.burn_rates(feed.clients) == {"a": pytest.approx(2.0, rel=0.01)}
    feed.buckets(6)
    assert burn(budgets, "x") < 1.0  # the hour still remembers, the last half hour was good


def test_what_was_not_observed_yet_counts_as_good() -> None:
    budgets = ErrorBudgets(Objectives(budget=0.01))
    feed = Feed(budgets, {"a": "x"})
    feed.buckets(1, a=0.6)
    assert burn(budgets, "x") == pytest.approx(60 / 12 / 6, rel=0.01)


def test_a_slow_burn_is_felt_after_hours_and_an_overdraft_is_worked_off() -> None:
    budgets = ErrorBudgets(Objectives(budget=0.01, period_s=864 * BUCKET_S))
    feed = Feed(budgets, {"a": "x"})
    feed.buckets(20, a=0.02)
    assert burn(budgets, "x") < 1.0
    feed.buckets(844, a=0.02)
    standing = budgets.standing("x")
    assert standing is not None
    assert (standing.violated, standing.spent) == (pytest.approx(0.02), pytest.approx(2.0))
    assert standing.burn == pytest.approx(2.0)
    feed.buckets(500)
    assert burn(budgets, "x") < 1.0


def test_clients_are_judged_by_their_own_budgets_and_vms_without_one_together() -> None:
    budgets = ErrorBudgets(Objectives(budget=0.01, clients={"strict": 0.001}))
    feed = Feed(budgets, {"a": "strict", "b": "easy", "c": "", "d": ""})
    feed.buckets(12, a=0.06, b=0.06, c=0.24)
    assert burn(budgets, "strict") == pytest.approx(10.0, rel=0.01)
    assert burn(budgets, "easy") == pytest.approx(1.0, rel=0.01)
    assert burn(budgets, "") == pytest.approx(2.0, rel=0.01)
    assert [each.client for each in budgets.standings()] == ["", "easy", "strict"]
    assert budgets.standing("nobody") is None


def test_what_is_older_than_the_period_is_forgotten_and_so_are_clients_that_are_gone() -> None:
    budgets = ErrorBudgets(Objectives(budget=0.01, period_s=72 * BUCKET_S))
    feed = Feed(budgets, {"a": "x"})
    feed.buckets(10, a=1.0)
    feed.buckets(72)
    assert burn(budgets, "x") == 0.0
    feed.sums.clear()
    for _ in range(72):
        budgets.bucket({}, {})
    assert budgets.accounts == {}


def test_settings_name_clients_and_refuse_what_is_wrong() -> None:
    found = objectives(SlaConfig(budget_permille=5.0, clients=("aurora=1", "a=b=2.5")))
    assert (found.of("aurora"), found.of("a=b"), found.of("other")) == (0.001, 0.0025, 0.005)
    with pytest.raises(ConfigError, match=r"sla.clients\[1\].*named twice"):
        objectives(SlaConfig(clients=("a=1", "a=2")))
    with pytest.raises(ConfigError, match=r"sla.clients\[0\].*0.01 to 1000"):
        objectives(SlaConfig(clients=("a=5000",)))
