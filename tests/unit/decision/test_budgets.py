"""SLA error budgets by client."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.learning.budgets import ErrorBudgets
from coordinator.learning.ledger import Ledger
from coordinator.learning.sla import SlaSums
from coordinator.model import N_RESOURCES, BucketBlock
from coordinator.settings import objectives
from coordinator.sizing.feasible import Objectives
from shared.config import SlaConfig
from shared.errors import ConfigError
from shared.model import HostSample, Mode, VmSample
from shared.units import BUCKET_S, NS_PER_S

BUCKET_NS = BUCKET_S * NS_PER_S


class Feed:
    """Running sums of VMs, bucket by bucket."""

    def __init__(self, budgets: ErrorBudgets, clients: dict[str, str], start_s: int | None = None) -> None:
        self.budgets, self.clients, self.start_s = budgets, clients, start_s
        self.documents: dict[str, str] = {}
        self.sums = {vm_id: SlaSums() for vm_id in clients}

    def buckets(self, count: int, **violated: float) -> None:
        """`violated`: vm_id -> share of each bucket."""
        for _ in range(count):
            for vm_id, sums in self.sums.items():
                sums.observed_ns += BUCKET_NS
                sums.violated_ns += int(violated.get(vm_id, 0.0) * BUCKET_NS)
            if self.start_s is None:
                self.budgets.bucket(self.sums, self.clients)
                continue
            self.budgets.bucket(self.sums, self.clients, self.start_s, (self.start_s + BUCKET_S) * NS_PER_S)
            self.start_s += BUCKET_S
            document = self.budgets.document()
            assert document is not None
            self.documents[document[0]] = document[1]


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


START_S = 1_800_000_000 // BUCKET_S * BUCKET_S
SHORT = Objectives(budget=0.01, period_s=72 * BUCKET_S)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1), st.booleans()), min_size=1, max_size=6))
def test_a_restart_at_any_bucket_changes_no_clients_standing(runs: list[tuple[int, float, bool]]) -> None:
    whole, parted = (Feed(ErrorBudgets(SHORT), {"a": "x", "b": "y"}, START_S) for _ in range(2))
    for count, share, restarted in runs:
        whole.buckets(count, a=share)
        parted.buckets(count, a=share)
        if restarted:
            assert parted.start_s is not None
            parted.budgets, parted.sums = ErrorBudgets(SHORT), {vm_id: SlaSums() for vm_id in parted.clients}
            parted.budgets.restore(parted.documents | {"power_book": "{}"}, parted.start_s)
        assert parted.budgets.standings() == whole.budgets.standings()
    assert len(parted.documents) <= 72 // 12 + 2, "names of a period are used again"


def test_time_that_no_coordinator_saw_passes_and_an_hour_of_long_ago_counts_no_more() -> None:
    feed = Feed(ErrorBudgets(SHORT), {"a": "x"}, START_S)
    feed.buckets(12, a=1.0)
    for away, left in ((6, 12), (54, 12), (66, 5), (100, 0)):
        later = ErrorBudgets(SHORT)
        later.restore(feed.documents, START_S + (12 + away) * BUCKET_S)
        fresh = Feed(later, {"a": "x"}, START_S + (12 + away) * BUCKET_S)
        fresh.buckets(1)
        assert later.accounts["x"].violated == left * BUCKET_NS, away
        assert later.accounts["x"].observed == (left + 1) * BUCKET_NS


def test_what_the_log_gives_back_is_not_counted_twice() -> None:
    def sample(at_s: int) -> HostSample:
        cells = {"a": VmSample(cpu_throttled_permille=500)}
        return HostSample(wall_ns=at_s * NS_PER_S, monotonic_ns=at_s * NS_PER_S, period_ns=5 * NS_PER_S, vms=cells)

    def closed(ledger: Ledger, bucket: int) -> None:
        start_s = START_S + bucket * BUCKET_S
        ledger.bucket(
            BucketBlock.unlimited(start_s, ("a",), np.full((1, N_RESOURCES), np.nan)), {}, {"a": "x"}, {}, (start_s + BUCKET_S) * NS_PER_S
        )

    times = range(START_S, START_S + 2 * BUCKET_S + 100, 5)
    first = Ledger(SHORT)
    for at_s in times:
        first.sample("h", Mode.OBSERVE, sample(at_s + 1))
        if at_s % BUCKET_S == BUCKET_S - 5:
            closed(first, (at_s - START_S) // BUCKET_S)
    document = first.budgets.document()
    assert document is not None
    second = Ledger(SHORT)
    second.budgets.restore(dict([document]), times[-1])
    for at_s in times[30:]:  # the log reaches back over a part of it
        second.sample("h", Mode.OBSERVE, sample(at_s + 1), again=True)
    for ledger in (first, second):
        closed(ledger, 2)
    assert first.budgets.standings() == second.budgets.standings()
    assert second.budgets.accounts["x"].observed == len(times) * 5 * NS_PER_S
