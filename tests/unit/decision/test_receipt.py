"""Plans, receipts and their replay."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.model import Receipt
from coordinator.planning.plan import plan_host
from coordinator.planning.receipt import replay
from coordinator.sizing.draft import VmEvidence
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import size_host
from shared.plan import Plan, StepKind
from shared.units import CPU, GIB, MBIT, MEMORY, NS_PER_S

POLICY = SizingPolicy(price=(0.0,) * 5, margin=(0.05,) * 5, upper_slack=(0.10, 0.10, 0.10, 0.15, 0.15))


def decide(
    make: Any, host: Any, block: Any, *, shadow: bool = False, policy: SizingPolicy = POLICY
) -> tuple[Plan | None, tuple[Receipt, ...]]:
    evidence: dict[str, VmEvidence] = {}
    sizes, _ = size_host(host, block, policy, evidence)
    now_ns = make.issued_s * NS_PER_S
    return plan_host(host, sizes, block, epoch=3, sequence=7, now_ns=now_ns, deadline_s=600, shadow=shadow, policy=policy)


def test_the_forecast_changes_the_plan(make: Any) -> None:
    host = make.host(make.vm(quota=1000))
    calm, _ = decide(make, host, make.forecast(("a",), make.need(cpu=900, memory=1.9 * GIB, net=85e6)))
    surge, _ = decide(make, host, make.forecast(("a",), make.need(cpu=6000, memory=1.9 * GIB, net=85e6)))
    assert calm is None
    assert surge is not None
    assert [(s.id, s.kind, s.value) for s in surge.steps] == [("3-7-0", StepKind.VCPUS, 7), ("3-7-1", StepKind.CPU_QUOTA, 6300)]


def test_a_ramp_in_the_next_bucket_is_served_shortly_before_it(make: Any) -> None:
    mean = np.tile(make.need(cpu=900, memory=1.9 * GIB, net=85e6), (1, 12))
    mean[CPU, 1:] = 3000.0
    plan, _ = decide(make, make.host(make.vm(quota=1000)), make.forecast(("a",), mean))
    assert plan is not None
    assert [(s.kind, s.not_before_ns // NS_PER_S - make.issued_s) for s in plan.steps] == [(StepKind.CPU_QUOTA, 300 - 181)]


def test_shadow_gives_the_same_receipts_and_no_plan(make: Any) -> None:
    host, block = make.host(make.vm(quota=1000)), make.forecast(("a",), make.need(cpu=3000))
    plan, real = decide(make, host, block)
    none, shadow = decide(make, host, block, shadow=True)
    assert plan is not None
    assert none is None
    assert shadow == tuple(replace(r, shadow=True) for r in real)
    assert next(s for r in real for s in r.steps if s.kind is StepKind.CPU_QUOTA).receipt_id == real[0].id


def test_a_silent_host_gets_neither(make: Any) -> None:
    assert decide(make, make.host(make.vm(), alive=False), make.forecast(("a",), make.need(cpu=9000))) == (None, ())


def test_a_receipt_says_what_bound_and_what_was_refused(make: Any) -> None:
    host = make.host(make.vm("a", quota=1000), make.vm("b", quota=3000, censored=0.4), cpu_commit_millicores=4500)
    block = make.forecast(("a", "b"), np.stack([make.need(cpu=3000), make.need(cpu=200)]))
    _, (a, b) = decide(make, host, block)
    assert a.inputs["binding"] == "host_capacity"
    assert any(line.startswith("host_capacity: cpu") for line in a.refused)
    assert any(line.startswith("pressure_veto: cpu no shrink: censored") for line in b.refused)
    assert a.inputs["forecast"]["cpu"]["mean"] == 3000  # type: ignore[index]
    assert any(line.startswith("cpu quantile 0.95 of peak") for line in a.trail)


def test_a_vm_with_nothing_to_explain_has_no_receipt(make: Any) -> None:
    host = make.host(make.vm(quota=1000, cannot={"balloon": "vfio", "shape_rx": "no tap", "shape_tx": "no tap"}))
    assert decide(make, host, make.forecast(("a",), make.need(cpu=900))) == (None, ())


vm_st = st.fixed_dictionaries(
    {
        "quota": st.sampled_from([-1, 200, 1000, 3000]),
        "memory": st.integers(100, 1000).map(lambda n: n * 4 * 2**20),
        "priority": st.integers(0, 3),
        "censored": st.sampled_from([0.0, 0.3]),
    }
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(vm_st, st.floats(0, 9000), st.floats(0.1, 8)), min_size=1, max_size=5), st.integers(1000, 30_000))
def test_every_receipt_replays_after_json_and_plans_are_in_order(make: Any, drawn: list[Any], commit: int) -> None:
    vms = [make.vm(f"v{i}", **over) for i, (over, _, _) in enumerate(drawn)]
    mean = np.stack([make.need(cpu=cpu, memory=memory * GIB) for _, cpu, memory in drawn])
    host = make.host(*vms, cpu_commit_millicores=commit, memory_commit_bytes=9 * GIB)
    plan, receipts = decide(make, host, make.forecast(tuple(v.domain.vm_id for v in vms), mean, 0.1 * mean))
    for receipt in receipts:
        stored = replace(receipt, inputs=json.loads(json.dumps(receipt.inputs)))
        assert replay(stored) == receipt.steps
    if plan is None:
        return
    assert [s.id for s in plan.steps] == [f"3-7-{n}" for n in range(len(plan.steps))]
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    grows = [s.before is not None and 0 <= s.before < s.value and s.kind is not StepKind.CPU_SHARES for s in plan.steps]
    assert all(a <= b for a, b in pairwise(grows)), "shrinks come first"
    for kind, limit in ((StepKind.CPU_QUOTA, commit), (StepKind.MEMORY, 9 * GIB)):
        r = CPU if kind is StepKind.CPU_QUOTA else MEMORY
        now = {
            v.domain.vm_id: 4000 if r == CPU and o["quota"] < 0 else o["quota" if r == CPU else "memory"]
            for v, (o, _, _) in zip(vms, drawn, strict=True)
        }
        after = now | {s.vm_id: s.value for s in plan.steps if s.kind is kind}
        assert sum(after.values()) <= max(limit, sum(now.values()))


# What facts held before levers were chosen: receipts of that time are still in registries.
FIRST_FACTS = (
    *("vm_id", "priority", "vcpus", "vcpus_ceiling", "raw", "allocation", "target", "lower", "upper", "clipped", "shares", "shares_wanted"),
    *("ramp_ns", "memory_stride", "memory_spacing_ns", "memory_granule"),
)


def test_receipts_of_the_first_release_still_replay(make: Any) -> None:
    need = make.need(cpu=5000, memory=1.2 * GIB, net=85e6)
    _, (receipt,) = decide(make, make.host(make.vm(quota=1000)), make.forecast(("a",), need))
    facts: Any = receipt.inputs["facts"]
    old = {name: facts[name] for name in FIRST_FACTS}
    assert {step.kind for step in receipt.steps} >= {StepKind.VCPUS, StepKind.CPU_QUOTA, StepKind.MEMORY}
    assert replay(replace(receipt, inputs=receipt.inputs | {"facts": old})) == receipt.steps


def test_replay_refuses_what_is_no_receipt(make: Any) -> None:
    _, (receipt,) = decide(make, make.host(make.vm(quota=1000)), make.forecast(("a",), make.need(cpu=3000)))
    with pytest.raises(msgspec.ValidationError):
        replay(replace(receipt, inputs=receipt.inputs | {"facts": {"vm_id": "a"}}))


LEVERS = {"cpu_quota": "quota", "memory": "memory", "net_rx": "rx", "net_tx": "tx", "vcpus": "vcpus"}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(vm_st, st.floats(0, 9000), st.floats(0.6, 8)), min_size=1, max_size=4), st.integers(4000, 30_000))
def test_the_same_forecast_again_and_again_comes_to_rest(make: Any, drawn: list[Any], commit: int) -> None:
    states = [dict(over, vcpus=4, rx=100 * MBIT, tx=100 * MBIT, censored=0.0) for over, _, _ in drawn]
    mean = np.stack([make.need(cpu=cpu, memory=memory * GIB) for _, cpu, memory in drawn])
    block = make.forecast(tuple(f"v{i}" for i in range(len(drawn))), mean, 0.1 * mean)
    evidence: dict[str, VmEvidence] = {}
    left = -1
    for _ in range(60):
        host = make.host(
            *(make.vm(f"v{i}", **state) for i, state in enumerate(states)), cpu_commit_millicores=commit, memory_commit_bytes=9 * GIB
        )
        sizes, evidence = size_host(host, block, SizingPolicy(), evidence)
        plan, _ = plan_host(
            host, sizes, block, epoch=1, sequence=1, now_ns=make.issued_s * NS_PER_S, deadline_s=600, shadow=False, policy=SizingPolicy()
        )
        steps = [s for s in (plan.steps if plan else ()) if s.kind in LEVERS]
        left = len(steps)
        for step in steps:
            states[int(step.vm_id[1:])][LEVERS[step.kind]] = step.value
    assert left == 0
