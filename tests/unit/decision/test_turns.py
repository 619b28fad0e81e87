"""Turns as outcomes tell them, and what a shrink that would be one may do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator.model import LeverTurns
from coordinator.settings import sizing_policy
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import size_host
from coordinator.sizing.turns import TurnLog
from shared.config import GuardConfig, SizingConfig
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import CPU, MBIT, MEMORY, NET_RX, NS_PER_S

HOUR_S = 3600.0
POLICY = replace(SizingPolicy(), price=(0.0,) * 5, shrink_cooldown_s=0.0)


def ended(before: int | None, value: int, at_s: int, state: OutcomeState = OutcomeState.VERIFIED, **over: Any) -> Outcome:
    kind = over.pop("kind", StepKind.CPU_QUOTA)
    step = Step(id=f"s{at_s}", vm_id="a", kind=kind, value=value, before=before, deadline_ns=10**15)
    shown = {OutcomeState.VERIFIED: value, OutcomeState.FAILED: before, OutcomeState.UNDONE: before}.get(state)
    return Outcome(step=step, state=state, value=shown, finished_ns=at_s * NS_PER_S, **over)


def log(*outcomes: Outcome) -> LeverTurns:
    turns = TurnLog()
    for outcome in outcomes:
        turns.record(outcome)
    return turns.view(1000 * NS_PER_S)[CPU]


def levers(turns: LeverTurns, r: int = CPU) -> tuple[LeverTurns, ...]:
    return tuple(turns if i == r else LeverTurns() for i in range(5))


def test_a_shrink_after_a_growth_is_a_turn_and_one_after_a_shrink_is_none() -> None:
    assert log(ended(1000, 800, 1)) == LeverTurns()
    assert log(ended(1000, 1200, 1)) == LeverTurns(turning=True)
    grown_and_cut = (ended(1000, 1200, 1), ended(1200, 800, 400))
    assert log(*grown_and_cut) == LeverTurns(ago_s=(600.0,))
    assert log(*grown_and_cut, ended(800, 700, 500)) == LeverTurns(ago_s=(600.0,))
    assert log(*grown_and_cut, ended(800, 900, 500), ended(900, 700, 900)) == LeverTurns(ago_s=(600.0, 100.0))


def test_from_unlimited_to_a_number_is_a_shrink_and_back_a_growth() -> None:
    assert log(ended(1000, -1, 1)).turning
    assert log(ended(1000, -1, 1), ended(-1, 2000, 600)) == LeverTurns(ago_s=(400.0,))


def test_a_shrink_that_was_taken_back_used_its_turn_up_and_left_the_lever_grown() -> None:
    assert log(ended(1000, 1200, 1), ended(1200, 800, 400, OutcomeState.UNDONE)) == LeverTurns(turning=True, ago_s=(600.0,))


def test_a_refused_turn_says_that_the_budget_is_spent_even_to_who_saw_nothing_before() -> None:
    seen = log(ended(None, 800, 400, OutcomeState.REFUSED, code=RefusalCode.FLAP_BUDGET))
    assert (seen.turning, seen.refused_s) == (True, 600.0)
    assert log(ended(None, 800, 400, OutcomeState.REFUSED, code=RefusalCode.COOLDOWN)) == LeverTurns()


def test_shadows_and_other_levers_change_nothing() -> None:
    assert log(ended(1000, 1200, 1, OutcomeState.SHADOWED)) == LeverTurns()
    assert log(ended(1000, 1200, 1, kind=StepKind.MEMORY), ended(2, 4, 2, kind=StepKind.VCPUS)) == LeverTurns()


@pytest.mark.parametrize(
    ("turns", "target"),
    [
        (LeverTurns(), 500.0),  # continues a shrink: as eager as ever, half of what is in force in one cycle
        (LeverTurns(turning=True), 750.0),
        (LeverTurns(turning=True, ago_s=(HOUR_S,)), 750.0),
        (LeverTurns(turning=True, ago_s=(7 * HOUR_S, HOUR_S)), 750.0),  # the older one is out of the window
        (LeverTurns(turning=True, refused_s=2 * HOUR_S), 750.0),
    ],
)
def test_a_turning_shrink_leaves_what_the_last_hour_needed(make: Any, turns: LeverTurns, target: float) -> None:
    recent = (750.0, math.nan, math.nan, math.nan, math.nan)
    vm = make.vm(quota=1000, turns=levers(turns), recent_peak=recent)
    (size,), _ = size_host(make.host(vm), make.forecast(("a",), make.need(cpu=300.0)), POLICY, {})
    assert size.target[CPU] == target <= size.upper[CPU] < 1000


def test_a_turning_shrink_leaves_what_the_next_hour_may_need(make: Any) -> None:
    mean = np.tile(make.need(cpu=300.0), (1, 12))
    mean[CPU, 11] = 700.0
    vm = make.vm(quota=1000, turns=levers(LeverTurns(turning=True)))
    (size,), _ = size_host(make.host(vm), make.forecast(("a",), mean), POLICY, {})
    assert size.target[CPU] == 700
    assert any("enough for an hour behind and ahead" in line for line in size.trail)


def test_a_turn_that_would_not_last_waits(make: Any) -> None:
    vm = make.vm(quota=1000, turns=levers(LeverTurns(turning=True)), recent_peak=(950.0, *(math.nan,) * 4))
    (size,), _ = size_host(make.host(vm), make.forecast(("a",), make.need(cpu=300.0)), POLICY, {})
    assert size.upper[CPU] == 1000
    assert any("a turn would not last" in line for line in size.trail)


@pytest.mark.parametrize("turns", [LeverTurns(turning=True, ago_s=(2 * HOUR_S, HOUR_S)), LeverTurns(turning=True, refused_s=60.0)])
def test_without_a_turn_left_nothing_is_planned_that_the_host_would_refuse(make: Any, turns: LeverTurns) -> None:
    vm = make.vm(quota=1000, turns=levers(turns))
    (size,), _ = size_host(make.host(vm), make.forecast(("a",), make.need(cpu=300.0)), POLICY, {})
    assert size.upper[CPU] == 1000
    assert any(line.startswith("flap_budget: cpu") for line in size.trail)


@pytest.mark.parametrize(
    ("turning", "need", "grows"),
    [
        (False, 990.0, False),  # 1030 wanted, 1000 in force; it shrank last, or never changed
        (True, 990.0, True),
        (False, 1100.0, True),
    ],
)
def test_a_small_growth_that_would_make_the_next_shrink_a_turn_waits(make: Any, turning: bool, need: float, grows: bool) -> None:
    policy = replace(POLICY, lower_quantile=POLICY.size_quantile)
    vm = make.vm(quota=1000, priority=0, turns=levers(LeverTurns(turning=turning)))
    (size,), _ = size_host(make.host(vm), make.forecast(("a",), make.need(cpu=need), stddev=30.0), policy, {})
    assert size.target[CPU] > 1000
    assert bool(size.lower[CPU] > 1000) is grows


def test_a_ceiling_of_the_network_waits_with_its_turn_until_the_host_needs_the_room(make: Any) -> None:
    vm = make.vm(rx=200 * MBIT, turns=levers(LeverTurns(turning=True), NET_RX))
    forecast = make.forecast(("a",), make.need(net=20.0 * MBIT))
    (size,), _ = size_host(make.host(vm), forecast, POLICY, {})
    assert size.upper[NET_RX] == 200 * MBIT
    (short,), _ = size_host(make.host(vm, net_commit_bits_per_s=210 * MBIT), forecast, POLICY, {})
    assert short.target[NET_RX] == short.upper[NET_RX] == 100 * MBIT  # half of what is in force in one cycle
    ramp = np.tile(make.need(net=20.0 * MBIT), (2, 1, 12))
    ramp[1, NET_RX, 9:] = 300.0 * MBIT  # another one's, within the hour: there would be no room for it
    pair = make.host(make.vm(rx=200 * MBIT, turns=levers(LeverTurns(turning=True), NET_RX)), make.vm("b"), net_commit_bits_per_s=500 * MBIT)
    assert size_host(pair, make.forecast(("a", "b"), ramp), POLICY, {})[0][0].upper[NET_RX] == 100 * MBIT
    assert size_host(pair, make.forecast(("a", "b"), ramp[:, :, :1]), POLICY, {})[0][0].upper[NET_RX] == 200 * MBIT
    (free,), _ = size_host(make.host(make.vm(rx=200 * MBIT)), forecast, POLICY, {})
    assert free.upper[NET_RX] < 200 * MBIT  # no turn: as eager as ever


def test_what_cannot_be_had_back_is_no_room_for_others(make: Any) -> None:
    """Two VMs that want 5 of 16 cores each; a third holds 8 that it does not need, and sizes are to leave a tenth free."""
    block = make.forecast(("a", "b", "c"), np.stack([make.need(cpu=cpu) for cpu in (5000.0, 5000.0, 300.0)]), stddev=400.0)

    def bought(turns: LeverTurns) -> float:
        grown = [make.vm(vm_id, quota=3000, vcpus=8) for vm_id in "ab"]
        host = make.host(*grown, make.vm("c", quota=8000, vcpus=8, turns=levers(turns)))
        sizes, _ = size_host(host, block, replace(SizingPolicy(), shrink_cooldown_s=0.0), {})
        return float(sizes[0].target[CPU] + sizes[1].target[CPU])

    assert bought(LeverTurns(turning=True, ago_s=(60.0, 30.0))) <= 8000 < bought(LeverTurns())


def test_a_budget_that_cannot_run_out_asks_for_no_patience(make: Any) -> None:
    vm = make.vm(quota=1000, turns=levers(LeverTurns(turning=True, ago_s=(120.0, 60.0))), recent_peak=(900.0,) * 5)
    (size,), _ = size_host(make.host(vm), make.forecast(("a",), make.need(cpu=300.0)), replace(POLICY, turns=72), {})
    assert size.target[CPU] == 500


def test_the_policy_knows_the_guards_own_budget() -> None:
    policy, guard = SizingPolicy(), GuardConfig()
    assert (policy.turns, policy.turn_window_s) == (guard.flap_reversals, guard.flap_window_s)
    assert sizing_policy(SizingConfig()) == policy
    owners = sizing_policy(SizingConfig(flap_reversals=9, flap_window_s=600))
    assert (owners.turns, owners.turn_window_s) == (9, 600.0)


def test_memory_turns_by_itself(make: Any) -> None:
    """A turn of one lever never holds up another's."""
    vm = make.vm(quota=1000, turns=levers(LeverTurns(turning=True, ago_s=(60.0, 30.0)), MEMORY))
    (size,), _ = size_host(make.host(vm), make.forecast(("a",), make.need(cpu=300.0)), POLICY, {})
    assert size.target[CPU] == 500
    assert any(line.startswith("flap_budget: memory") for line in size.trail)


def test_a_full_host_does_not_cut_where_no_turn_is_left(make: Any) -> None:
    """Both hold 10 of 16 cores and need all of them; only the one that may shrink gives way."""
    block = make.forecast(("a", "b"), np.stack([make.need(cpu=9950.0)] * 2))
    vms = [make.vm(vm_id, quota=10_000, vcpus=12, vcpus_max=12) for vm_id in "ab"]
    vms[0] = replace(vms[0], turns=levers(LeverTurns(turning=True, ago_s=(60.0, 30.0))))
    sizes, _ = size_host(make.host(*vms), block, POLICY, {})
    assert sizes[0].lower[CPU] <= 10_000 <= sizes[0].upper[CPU]
    assert sizes[1].target[CPU] == sizes[1].upper[CPU] == 6000
