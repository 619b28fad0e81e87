"""The sizing stack as a whole."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.model import NoForecast, VmSize
from coordinator.sizing.draft import VmEvidence
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.shortage import Cell, unmet_at
from coordinator.sizing.size import size_host
from shared.units import CPU, DISK, GIB, MEMORY, MIB, NET_RX, UNLIMITED

# Fixed quantiles by priority: each step of the stack by itself, whatever it would cost.
FIXED = replace(
    SizingPolicy(),
    price=(0.0,) * 5,
    working_set_margin=0.1,
    shrink_cooldown_s=120.0,
    steps=(2, 4, 2, 2, 2),
    shrink_evidence=(2, 4, 2, 2, 2),
)
PLAIN = replace(FIXED, dead_band=(0.0,) * 5)


def cycles(make: Any, vm: Any, needs: list[float], policy: SizingPolicy = PLAIN, **block: Any) -> VmSize:
    evidence: dict[str, VmEvidence] = {}
    sizes: tuple[VmSize, ...] = ()
    for cpu in needs:
        sizes, evidence = size_host(make.host(vm), make.forecast(("a",), make.need(cpu=cpu), **block), policy, evidence)
    return sizes[0]


def test_the_quantile_of_the_peak_becomes_the_target(make: Any) -> None:
    size = cycles(make, make.vm(quota=1000), [1400.0], stddev=100.0)
    assert size.target[CPU] == 1570  # 1400 + 1.6449 * 100 in steps of 10
    assert size.lower[CPU] > 1000
    assert np.isnan(size.target[DISK])
    assert any(line.startswith("cpu quantile 0.95 of peak in 2 steps = 1564") for line in size.trail)


def test_a_peak_beyond_the_levers_horizon_does_not_count_for_cpu_but_does_for_memory(make: Any) -> None:
    mean = np.tile(make.need(), (1, 12))
    mean[CPU, 2:] = 3000.0
    mean[MEMORY, 3:] = 4.0 * GIB
    (size,), _ = size_host(make.host(make.vm()), make.forecast(("a",), mean), PLAIN, {})
    assert size.target[CPU] == 500
    assert size.target[MEMORY] == 4 * GIB


def test_shrinking_waits_for_evidence_and_goes_to_the_largest_target_seen(make: Any) -> None:
    vm = make.vm(quota=3000)
    policy = replace(FIXED, margin=(0.0,) * 5, shrink_evidence=(3, 3, 3, 3, 3), max_shrink=(1.0,) * 5)
    waits = cycles(make, vm, [500, 900], policy)
    assert waits.lower[CPU] <= 3000 <= waits.upper[CPU]
    assert any("shrink waits: 2 of 3" in line for line in waits.trail)
    shrinks = cycles(make, vm, [500, 900, 600], policy)
    assert shrinks.target[CPU] == 900
    assert shrinks.upper[CPU] < 3000
    near = cycles(make, vm, [2990, 500, 500], policy)
    assert near.lower[CPU] <= 3000 <= near.upper[CPU]


def test_at_most_a_share_is_given_up_in_one_cycle(make: Any) -> None:
    policy = replace(FIXED, shrink_evidence=(1,) * 5, max_shrink=(0.25,) * 5)
    size = cycles(make, make.vm(quota=4000), [200], policy)
    assert size.target[CPU] == 3000
    assert size.target[MEMORY] == 1.5 * GIB


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"censored": 0.2}, "censored: 20 %"),
        ({"pressured": True}, "under memory pressure"),
        ({"since_grow_s": 100.0}, "grown 100 s ago"),
    ],
)
def test_vetoes_against_shrinking(make: Any, state: dict[str, Any], why: str) -> None:
    policy = replace(FIXED, shrink_evidence=(1,) * 5)
    size = cycles(make, make.vm(quota=4000, **state), [200], policy)
    assert size.lower[CPU] <= 4000 <= size.upper[CPU]
    assert any(why in line for line in size.trail)


def test_no_fresh_guest_reading_stops_only_memory(make: Any) -> None:
    size = cycles(make, make.vm(quota=4000, working_set_bytes=math.nan), [200], replace(FIXED, shrink_evidence=(1,) * 5))
    assert size.upper[MEMORY] >= 2 * GIB
    assert size.upper[CPU] < 4000


@pytest.mark.parametrize("reason", [NoForecast.ALL_UNKNOWN, NoForecast.GAP, NoForecast.OUT_OF_CALIBRATION])
def test_without_a_trustworthy_forecast_the_vm_is_left_to_the_reactive_rules(make: Any, reason: NoForecast) -> None:
    size = cycles(make, make.vm(), [3000.0], reason=int(reason))
    assert np.isnan(size.target).all()
    assert any(reason.name.lower() in line for line in size.trail)


def test_cold_start_grows_but_never_shrinks(make: Any) -> None:
    policy = replace(FIXED, shrink_evidence=(1,) * 5, margin=(0.05,) * 5)
    assert cycles(make, make.vm(), [3000.0], policy, reason=1).target[CPU] > 3000
    assert cycles(make, make.vm(quota=4000), [100.0], policy, reason=1).upper[CPU] >= 4000


def test_unknown_vms_silent_hosts_and_excluded_vms(make: Any) -> None:
    block = make.forecast(("other",), make.need())
    (size,), _ = size_host(make.host(make.vm()), block, PLAIN, {})
    assert np.isnan(size.target).all()
    kept = {"a": VmEvidence(windows=((1.0,),) * 5)}
    assert size_host(make.host(make.vm(), alive=False), block, PLAIN, kept) == ((), kept)
    assert size_host(make.host(make.vm(policy={"excluded": True})), block, PLAIN, {}) == ((), {})


def test_floors_and_ceilings_of_policy_working_set_and_domain(make: Any) -> None:
    low = cycles(make, make.vm(quota=200, memory=GIB, policy={"cpu_floor_millicores": 800}, working_set_bytes=1.5 * GIB), [100.0])
    assert low.target[CPU] == 800
    assert low.target[MEMORY] == math.ceil(1.65 * GIB / (4 * MIB)) * 4 * MIB
    assert cycles(make, make.vm(policy={"cpu_ceiling_millicores": 1500}), [9000.0]).target[CPU] == 1500
    assert cycles(make, make.vm(), [90_000.0]).target[CPU] == 8000
    assert cycles(make, make.vm(cannot={"vcpu_hot_add": "guest"}), [90_000.0]).target[CPU] == 4000


def test_what_cannot_be_changed_is_left_alone_but_counts(make: Any) -> None:
    fixed = make.vm("b", memory=6 * GIB, cannot={"balloon": "vfio"})
    block = make.forecast(("a", "b"), make.need(memory=5.0 * GIB))
    sizes, _ = size_host(make.host(make.vm(), fixed, memory_commit_bytes=9 * GIB), block, PLAIN, {})
    assert np.isnan(sizes[1].target[MEMORY])
    assert sizes[0].target[MEMORY] == 3 * GIB
    assert sizes[0].clipped == ("memory_bytes",)
    assert sizes[0].shadow_price["memory_bytes"] == pytest.approx(60 / 5, rel=0.05)  # lacking all 5 GiB costs 1 a minute


def test_an_unlimited_quota_counts_as_the_vcpus(make: Any) -> None:
    policy = replace(FIXED, shrink_evidence=(1,) * 5, max_shrink=(1.0,) * 5, margin=(0.0,) * 5)
    assert cycles(make, make.vm(quota=UNLIMITED), [1000.0], policy).target[CPU] == 1000
    assert np.isnan(cycles(make, make.vm(quota=None), [1000.0], policy).target[CPU])


def test_contention_takes_from_idle_holdings_first_and_then_from_the_lowest(make: Any) -> None:
    vms = [make.vm("a", quota=1000, priority=3), make.vm("b", quota=1000, priority=0), make.vm("c", quota=3000, priority=3)]
    mean = np.stack([make.need(cpu=2000), make.need(cpu=2000), make.need(cpu=500)])
    policy = replace(FIXED, margin=(0.0,) * 5)
    sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=5000), make.forecast(("a", "b", "c"), mean), policy, {})
    assert [s.target[CPU] for s in sizes] == [2000, 1500, 1500]  # c may give up half of its 3000 in one cycle
    assert any("host commit 5000 cuts" in line for line in sizes[1].trail)


def test_a_censored_vm_keeps_its_allocation_even_when_the_host_is_full(make: Any) -> None:
    vms = [make.vm("a", quota=1000, priority=3), make.vm("b", quota=3000, priority=0, censored=0.5)]
    mean = np.stack([make.need(cpu=4000), make.need(cpu=100)])
    sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=4500), make.forecast(("a", "b"), mean), PLAIN, {})
    assert [s.target[CPU] if s.upper[CPU] < 3000 else 3000 for s in sizes] == [1500, 3000]


def test_spare_room_is_handed_out_only_when_asked_for(make: Any) -> None:
    lean = cycles(make, make.vm(quota=2000), [2000.0])
    generous = cycles(make, make.vm(quota=2000), [2000.0], replace(FIXED, spare_share=0.1, margin=(0.0,) * 5))
    assert lean.target[CPU] == 2000
    assert generous.target[CPU] == 3400  # a tenth of the 14,000 that nobody asked for
    assert generous.lower[CPU] > 2000


def test_a_burning_error_budget_buys_a_higher_quantile(make: Any) -> None:
    block = make.forecast(("a",), make.need(cpu=1500), 200.0)
    calm, _ = size_host(make.host(make.vm()), block, PLAIN, {}, burn_rate={"a": 0.2})
    burning, _ = size_host(make.host(make.vm()), block, PLAIN, {}, burn_rate={"a": 9.0})
    assert burning[0].target[CPU] > calm[0].target[CPU]


vm_st = st.fixed_dictionaries(
    {
        "quota": st.integers(10, 800).map(lambda n: 10 * n),
        "memory": st.integers(32, 2000).map(lambda n: 4 * MIB * n),
        "priority": st.integers(0, 3),
        "censored": st.sampled_from([0.0, 0.3]),
        "pressured": st.booleans(),
        "working_set_bytes": st.sampled_from([math.nan, 0.2 * GIB, 2.0 * GIB]),
        "since_grow_s": st.sampled_from([10.0, 1e9]),
    }
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(vm_st, st.floats(0, 9000), st.floats(0, 8)), min_size=1, max_size=6), st.integers(500, 40_000), st.booleans())
def test_invariants_on_any_host(make: Any, drawn: list[tuple[dict[str, Any], float, float]], commit: int, eager: bool) -> None:
    vms = [make.vm(f"v{i}", vcpus=8, **over) for i, (over, _, _) in enumerate(drawn)]
    mean = np.stack([make.need(cpu=cpu, memory=memory * GIB) for _, cpu, memory in drawn])
    policy = replace(FIXED, shrink_evidence=(1 if eager else 3,) * 5)
    host = make.host(*vms, cpu_commit_millicores=commit, memory_commit_bytes=8 * GIB)
    block = make.forecast(tuple(vm.domain.vm_id for vm in vms), mean, mean * 0.1)
    evidence: dict[str, VmEvidence] = {}
    for _ in range(2):
        sizes, evidence = size_host(host, block, policy, evidence)
    for r, limit, now in ((CPU, commit, [v["quota"] for v, _, _ in drawn]), (MEMORY, 8 * GIB, [v["memory"] for v, _, _ in drawn])):
        ends = [a if s.lower[r] <= a <= s.upper[r] else s.target[r] for s, a in zip(sizes, now, strict=True)]
        must = [min(e, a) if v["censored"] or v["pressured"] else 0.0 for e, a, (v, _, _) in zip(ends, now, drawn, strict=True)]
        assert sum(ends) <= max(limit, sum(now)), "a plan never takes the host further over its limit"
        assert all(e >= a for e, a, m in zip(ends, now, must, strict=True) if m), "no veto is overridden"
        assert all(s.lower[r] <= s.target[r] for s in sizes)
    for size, (over, _, _) in zip(sizes, drawn, strict=True):
        if not math.isnan(over["working_set_bytes"]) and size.target[MEMORY] < over["memory"]:
            assert size.target[MEMORY] >= over["working_set_bytes"]
        assert all(size.target[r] >= 100 for r in (CPU, NET_RX))


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 8000), st.floats(0, 0.5), st.integers(10, 800), st.integers(800, 8000))
def test_a_higher_priority_never_gets_less(make: Any, cpu: float, spread: float, quota: int, commit: int) -> None:
    targets = []
    for priority in range(4):
        vms = [make.vm("a", vcpus=8, quota=10 * quota, priority=priority), make.vm("b", quota=1000, priority=1)]
        block = make.forecast(("a", "b"), make.need(cpu=cpu), spread * cpu)
        (size, _), _ = size_host(make.host(*vms, cpu_commit_millicores=commit), block, replace(FIXED, shrink_evidence=(1,) * 5), {})
        held = size.lower[CPU] <= 10 * quota <= size.upper[CPU]
        targets.append(10 * quota if held else size.target[CPU])
    slack = 0.1 * targets[-1] + 30  # the dead band may hold a lower class a little above a higher one's fresh target
    assert all(low <= high + slack for low, high in pairwise(targets))


machine_st = st.tuples(
    st.integers(20, 400).map(lambda n: 10 * n),  # quota
    st.floats(200, 6000),  # mean demand
    st.floats(0.0, 0.4),  # its spread
    st.integers(0, 3),  # priority, of VMs of other clients
    st.booleans(),  # of the client whose priority is raised
)


@settings(deadline=None, max_examples=80)
@given(st.lists(machine_st, min_size=2, max_size=6), st.integers(1500, 12_000), st.integers(0, 2), st.booleans())
def test_raising_a_clients_priority_never_lowers_its_compliance(
    make: Any, drawn: list[tuple[int, float, float, int, bool]], commit: int, low: int, priced: bool
) -> None:
    policy = SizingPolicy() if priced else FIXED
    mean = np.stack([make.need(cpu=cpu) for _, cpu, _, _, _ in drawn])
    block = make.forecast(tuple(f"v{i}" for i in range(len(drawn))), mean, mean * np.array([d[2] for d in drawn])[:, None, None])
    peaks = block.peak_quantiles[:, CPU, 1].astype(float)
    lacks = []
    for own in range(low, 4):
        vms = [
            make.vm(f"v{i}", quota=quota, vcpus=8, priority=own if mine else priority, policy={"client": "x" if mine else "y"})
            for i, (quota, _, _, priority, mine) in enumerate(drawn)
        ]
        sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=commit), block, policy, {})
        now = [quota for quota, *_ in drawn]
        ends = np.array([a if s.lower[CPU] <= a <= s.upper[CPU] else s.target[CPU] for s, a in zip(sizes, now, strict=True)])
        cell = Cell(
            least=np.zeros(len(ends)), floor=np.zeros(len(ends)), most=peaks[:, -1], size=peaks, room=0.0, weight=np.ones(len(ends)),
            exceed=np.broadcast_to(1.0 - np.array(block.levels), peaks.shape),
        )  # fmt: skip
        mine_rows = [i for i, d in enumerate(drawn) if d[4]]
        lacks.append(sum(unmet_at(cell, ends)[i] / peaks[i, -1] for i in mine_rows))
    granules = sum(20.0 / peaks[i, -1] for i in mine_rows)  # cut sizes are rounded down to ten millicores
    assert all(high <= low_lack + granules for low_lack, high in pairwise(lacks))
