"""Conditions of the rules: what raises each, with which numbers, and what is unknown and so raises nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.learning.accuracy import Accuracy
from coordinator.learning.alert_conditions import BY_BUCKET, MAX_FOUND, BucketSeen, FleetNow, HostNow, judged_by_bucket, judged_now
from coordinator.learning.alert_rules import rules_of
from coordinator.learning.alerts import Finding
from coordinator.learning.budgets import Standing
from coordinator.learning.recent import Recent, Refused
from coordinator.learning.shortfall import Shortfall
from coordinator.model import N_RESOURCES, BucketBlock
from coordinator.sizing.feasible import Infeasible
from shared.config_alerts import AlertsConfig
from shared.errors import ConfigError
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MEMORY, NS_PER_S

RULES = rules_of(AlertsConfig())
NAN = float("nan")
HOUR = 3600 * NS_PER_S


def named(found: list[Finding]) -> list[tuple[str, dict[str, str]]]:
    return [(each.rule, each.labels) for each in found]


def test_a_fleet_of_which_nothing_is_known_raises_nothing() -> None:
    quiet = FleetNow(hosts=[HostNow(host_id="a", alive=True), HostNow(host_id="b", alive=False, asleep=True)])
    assert judged_now(quiet, RULES) == []
    assert judged_by_bucket(BucketSeen(), RULES) == []


NOW = [
    ({"hosts": [HostNow(host_id="a", alive=False, why_silent="no word for 60 s")]}, "AgentStale", "no word for 60 s"),
    ({"hosts": [HostNow(host_id="a", alive=True, cpu_share=0.97)]}, "HostBusy", "a uses 97.0% of its CPU"),
    ({"hosts": [HostNow(host_id="a", alive=True, memory_share=0.99)]}, "HostBusy", "a uses 99.0% of its memory"),
    ({"hosts": [HostNow(host_id="a", alive=True)], "offsets_s": {"a": -7.25}}, "ClockOffset", "7.2 s behind"),
    ({"losing": [("a", 12)]}, "AgentLosesSamples", "12 frames"),
    ({"quarantined": [("v", "a", 120.0)]}, "VmQuarantined", "2 minutes ago"),
    ({"refused": [Refused(code="cooldown", refused=30, steps=40)]}, "StepsRefused", "30 of 40 steps"),
    ({"reversals": [("v", "a", 4)]}, "VmFlapping", "4 times in six hours"),
    ({"drifts": [("fleet_loss", 600.0)]}, "ForecastDrift", "found 10 minutes ago"),
    ({"certificates": {"c.pem": 12.4}}, "CertificateExpiring", "expires in 12 days"),
    ({"certificates": {"c.pem": 0.5}}, "CertificateUnusable", "expires in 12 hours"),
    ({"certificates": {"c.pem": -2.0}}, "CertificateUnusable", "expired 2.0 days ago"),
    ({"certificates": {"c.pem": None}}, "CertificateUnusable", "cannot be read"),
    ({"disk_free": 0.04}, "DiskFilling", "4.0%"),
    ({"wal_share": 0.9}, "FrameLogFilling", "90% full"),
    ({"registry_error": "disk full"}, "RegistryFailing", "disk full"),
    ({"decided_s": 1800.0}, "DecisionsStuck", "30 minutes"),
    ({"undelivered_s": {"webhook:x": 1800.0}}, "AlertsUndelivered", "30 minutes"),
    ({"beyond": 17}, "TooManyAlerts", "17 more"),
]


@pytest.mark.parametrize(("seen", "rule", "words"), NOW)
def test_what_raises_a_rule_now(seen: dict[str, Any], rule: str, words: str) -> None:
    (found,) = judged_now(FleetNow(**seen), RULES)
    assert found.rule == rule
    assert words in found.summary
    assert found.labels.keys() == set(RULES[rule].labels)
    without = {name: each for name, each in RULES.items() if name != rule}
    assert rule not in [each.rule for each in judged_now(FleetNow(**seen), without)]


CALM = [
    {"hosts": [HostNow(host_id="a", alive=True, cpu_share=0.9, memory_share=0.9)], "offsets_s": {"a": 1.5}},
    {"hosts": [HostNow(host_id="a", alive=False, asleep=True)]},
    {"hosts": [HostNow(host_id="a", alive=False, asleep=True, cpu_share=0.99)], "offsets_s": {"a": 50.0}},  # of a host that is silent
    {"refused": [Refused(code="cooldown", refused=15, steps=15)]},  # too few steps
    {"refused": [Refused(code="cooldown", refused=10, steps=40)]},
    {"certificates": {"c.pem": 200.0}, "disk_free": 0.5, "wal_share": 0.5, "decided_s": 500.0, "undelivered_s": {"x": 60.0}},
    {"decided_s": None},  # no agent is connected
]


@pytest.mark.parametrize("seen", CALM)
def test_what_raises_nothing(seen: dict[str, Any]) -> None:
    assert judged_now(FleetNow(**seen), RULES) == []


def bucket(used: Any, limit: Any, vms: int = 1) -> BucketBlock:
    shape = (vms, N_RESOURCES)
    usage, allocation = np.full(shape, NAN), np.full(shape, NAN)
    usage[:, MEMORY], allocation[:, MEMORY] = used, limit
    ids = tuple(f"v{n:04d}" for n in range(vms))
    return BucketBlock(
        start_s=0,
        vm_ids=ids,
        host_ids=("a",) * vms,
        mean=usage,
        peak=usage,
        usage=usage,
        censored=np.zeros(shape),
        allocation=allocation,
        samples=np.full(vms, 60),
    )


def test_a_vm_at_its_limit_and_one_without_a_limit() -> None:
    seen = BucketSeen(bucket=bucket(0.98 * GIB, 1.0 * GIB), named=lambda vm_id: ("web", "a", "aurora"))
    (found,) = judged_by_bucket(seen, RULES)
    assert found.labels == {"vm": "v0000", "name": "web", "host": "a", "client": "aurora", "resource": "memory_bytes"}
    assert found.summary == "web used 98.0% of its 1 GiB in the last bucket"
    for used, limit in ((0.98 * GIB, NAN), (NAN, GIB), (0.5 * GIB, GIB), (1.0, 0.0)):
        assert judged_by_bucket(BucketSeen(bucket=bucket(used, limit)), RULES) == []


def test_of_many_the_worst_are_named_and_the_others_counted() -> None:
    used = np.linspace(0.96, 0.999, 500) * GIB
    found = judged_by_bucket(BucketSeen(bucket=bucket(used, GIB, 500)), RULES)
    assert len(found) == MAX_FOUND
    assert {each.labels.get("vm") for each in found} == {None, *(f"v{n:04d}" for n in range(401, 500))}
    assert [each.summary for each in found if "vm" not in each.labels] == ["and 401 more"]
    assert len(judged_by_bucket(BucketSeen(bucket=bucket(used[:100], GIB, 100)), RULES)) == MAX_FOUND


def test_many_of_another_rule_are_cut_the_same_way() -> None:
    found = judged_now(FleetNow(hosts=[HostNow(host_id=f"h{n:04d}", alive=False) for n in range(300)]), RULES)
    assert len(found) == MAX_FOUND
    assert found[-1].summary == "and 201 more"


def test_promises_shortfalls_and_forecasts() -> None:
    accuracy = Accuracy(
        pairs=np.array([1000.0, 1000, 10, 1000, 1000]),
        to_naive=np.array([1.3, 0.7, 9.0, NAN, 0.9]),
        to_demand=np.zeros(5),
        mae=np.zeros(5),
        bias=np.zeros(5),
        coverage_80=np.array([0.8, 0.5, 0.1, NAN, 0.8]),
        coverage_95=np.zeros(5),
        above=np.zeros(5),
    )
    seen = BucketSeen(
        standings=[
            Standing(client="aurora", budget=0.01, violated=0.02, burn=2.5, spent=1.2, observed_s=1e6),
            Standing(client="calm", budget=0.01, violated=0.0, burn=0.1, spent=0.1, observed_s=1e6),
        ],
        infeasible=[
            Infeasible(client="aurora", resource=MEMORY, cause="host", where="a", missing=m * GIB, first_step=0, last_step=3)
            for m in (1, 2)
        ],
        shortfalls=[
            Shortfall(pool="p", host_id="", resource=MEMORY, at_s=0, missing=96.0 * GIB, wanted=1.0, capacity=1.0, wake=("s1", "s2")),
            Shortfall(pool="p", host_id="a", resource=MEMORY, at_s=0, missing=5.0 * GIB, wanted=1.0, capacity=1.0, moves=(("v", "b"),)),
        ],
        accuracy=accuracy,
    )
    found = judged_by_bucket(seen, RULES)
    assert named(found) == [
        ("BudgetBurning", {"client": "aurora"}),
        ("BudgetSpent", {"client": "aurora"}),
        ("ObjectiveInfeasible", {"client": "aurora", "cause": "host", "resource": "memory_bytes"}),
        ("CapacityShortfall", {"pool": "p", "resource": "memory_bytes"}),
        ("HostShortfall", {"pool": "p", "resource": "memory_bytes", "host": "a"}),
        ("ForecastInaccurate", {"resource": "cpu_millicores"}),
        ("ForecastCoverageLow", {"resource": "memory_bytes"}),
    ]
    by_rule = {each.rule: each for each in found}
    assert by_rule["ObjectiveInfeasible"].value == 2 * GIB  # of two places, the worse
    assert by_rule["CapacityShortfall"].summary == "pool p short of 96 GiB at 00:00 UTC, cheapest fix: wake 2 hosts (s1, s2)"
    assert by_rule["HostShortfall"].advice == "move 1 VMs (v to b)"


def test_rules_are_switched_off_by_name_and_misspelt_names_refused() -> None:
    assert "HostBusy" not in rules_of(AlertsConfig(disabled=("HostBusy",)))
    with pytest.raises(ConfigError, match="HostBsuy"):
        rules_of(AlertsConfig(disabled=("HostBsuy",)))


def test_every_rule_says_what_it_means_and_what_to_do() -> None:
    assert all(len(rule.meaning) > 20 and len(rule.action) > 20 for rule in RULES.values())
    assert RULES.keys() > BY_BUCKET
    assert all(rule.keep_s >= 600 for name, rule in RULES.items() if name in BY_BUCKET)


def outcome(state: OutcomeState, code: RefusalCode | None = None, vm_id: str = "v") -> Outcome:
    step = Step(id="s", vm_id=vm_id, kind=StepKind.CPU_QUOTA, value=1000, before=2000, deadline_ns=1)
    return Outcome(step=step, state=state, code=code, finished_ns=1)


def test_refusals_are_counted_over_the_last_hour() -> None:
    recent = Recent()
    for minute in range(90):
        now = minute * 60 * NS_PER_S
        recent.outcome("a", outcome(OutcomeState.VERIFIED), now)
        recent.outcome("a", outcome(OutcomeState.REFUSED, RefusalCode.COOLDOWN), now)
        recent.outcome("a", outcome(OutcomeState.REFUSED, RefusalCode.NOTHING_TO_DO), now)
        recent.outcome("a", outcome(OutcomeState.SHADOWED), now)
    assert recent.refused(89 * 60 * NS_PER_S) == (Refused(code="cooldown", refused=60, steps=180),)
    assert recent.refused(200 * 60 * NS_PER_S) == ()


def test_a_clock_is_read_from_the_word_that_travelled_least() -> None:
    recent = Recent()
    for delay_s in (0.3, 9.0, 0.1, 4.0):
        recent.heard("a", int((100.0 - delay_s) * NS_PER_S), 0, 100 * NS_PER_S)
    assert recent.offsets_s() == {"a": pytest.approx(-0.1)}


def test_lost_frames_count_from_their_rise_and_for_an_hour() -> None:
    recent = Recent()
    recent.heard("a", 0, 0, HOUR)
    assert recent.losing(HOUR) == []
    recent.heard("a", 0, 7, 2 * HOUR)
    recent.heard("a", 0, 7, 2 * HOUR + 1)
    assert recent.losing(2 * HOUR + 1) == [("a", 7)]
    assert recent.losing(3 * HOUR) == []
    recent.heard("a", 0, 0, 4 * HOUR)  # the agent started anew
    assert recent.losing(4 * HOUR) == []


def test_hung_monitors_and_reversals_are_forgotten_in_time() -> None:
    recent = Recent()
    recent.outcome("a", outcome(OutcomeState.REFUSED, RefusalCode.QUARANTINED), HOUR)
    assert recent.quarantined(HOUR + 60 * NS_PER_S) == [("v", "a", 60.0)]
    assert recent.quarantined(2 * HOUR) == []
    recent.turned("a", "v", HOUR)
    assert recent.reversals(lambda _vm_id: 4, 3) == [("v", "a", 4)]
    assert recent.reversals(lambda _vm_id: 2, 3) == []
    assert recent.reversals(lambda _vm_id: 9, 3) == []  # no longer looked at until it turns again
