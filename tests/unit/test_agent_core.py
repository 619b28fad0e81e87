"""The agent's core by example and by property: a small host under it answers its instructions (tests/contract/obedient_host.py)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from obedient_host import ABLE, BEFORE, GUARD, RULE, T0, Host, capacity, domain, one, outcomes, submitted

from agent import events as ev
from agent.acting.levers import bounds, charge, grows
from agent.acting.reconcile import Recovered, local_prefix, reconcile
from agent.core import AgentCore
from shared.config import GuardConfig
from shared.frame import decode_block
from shared.messages import Inventory, Outcomes, Samples, Status
from shared.model import Allocation, Capabilities, HostSample, Mode, Policy, Priority, VmSample
from shared.plan import OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_S, UNLIMITED


def test_a_plan_step_is_journalled_submitted_read_back_and_verified() -> None:
    host = Host()
    host.calm()
    out = host.plan(host.step(StepKind.CPU_QUOTA, 2000))
    kinds = [type(i).__name__ for i in out]
    assert kinds.index("WriteJournal") < kinds.index("SubmitStep") < kinds.index("ReadBack")
    intents = [i.entry for i in out if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Intent)]
    assert [(i.step.id, i.before, i.step.value) for i in intents] == [("s1", 1000, 2000)]
    outcome = one(out)
    assert (outcome.state, outcome.value, outcome.origin) == (OutcomeState.VERIFIED, 2000, "plan")


def test_accepted_is_not_done_the_step_is_undone_after_the_timeout_and_the_lever_backs_off() -> None:
    host = Host()
    host.calm()
    host.stuck = {StepKind.MEMORY}
    assert outcomes(host.plan(host.step(StepKind.MEMORY, 3 * GIB))) == []
    for _ in range(29):
        out = host.tick()
        assert outcomes(out) == [] and any(isinstance(i, ev.ReadBack) for i in out)
    out = host.tick()
    (undo,) = submitted(out)
    assert (undo.kind, undo.value) == (StepKind.MEMORY, 2 * GIB)
    outcome = one(out)
    assert (outcome.state, outcome.step.id, outcome.value) == (OutcomeState.UNDONE, "s1", 2 * GIB)
    refused = one(host.plan(host.step(StepKind.MEMORY, 3 * GIB, "s2", deadline_ns=host.now + 20 * NS_PER_S), sequence=2))
    assert refused.code is RefusalCode.BACKING_OFF
    assert one(host.plan(host.step(StepKind.CPU_QUOTA, 2000, "s3"), sequence=3)).state is OutcomeState.VERIFIED


def test_an_undo_that_is_not_seen_either_is_a_failure() -> None:
    host = Host()
    host.calm()
    host.stuck = {StepKind.MEMORY}
    host.plan(host.step(StepKind.MEMORY, 3 * GIB))
    host.values["vm-1"][StepKind.MEMORY] = int(2.5 * GIB)  # just begun to move when the undo was decided
    host.tick(30)
    assert host.core.in_flight == 1
    outcome = one(host.tick(30))
    assert (outcome.state, outcome.value) == (OutcomeState.FAILED, int(2.5 * GIB))


def test_vcpus_cannot_be_taken_back() -> None:
    host = Host()
    host.calm()
    host.stuck = {StepKind.VCPUS}
    host.plan(host.step(StepKind.VCPUS, 4))
    out = host.tick(30)
    assert submitted(out) == [] and one(out).state is OutcomeState.FAILED


def test_a_growth_that_came_half_way_keeps_what_the_guest_has() -> None:
    host = Host()
    host.calm()
    host.stuck = {StepKind.MEMORY}
    host.plan(host.step(StepKind.MEMORY, 4 * GIB))
    host.values["vm-1"][StepKind.MEMORY] = 3 * GIB
    host.tick(5)
    out = host.tick(30)
    assert [s.value for s in submitted(out)] == [3 * GIB]
    assert (one(out).state, one(out).value) == (OutcomeState.PARTIAL, 3 * GIB)


@pytest.mark.parametrize(
    ("rejected", "state", "code"),
    [
        (
            ev.StepRejected(step_id="", code=RefusalCode.FOREIGN_SHAPING, detail="htb of libvirt"),
            OutcomeState.REFUSED,
            RefusalCode.FOREIGN_SHAPING,
        ),
        (ev.StepRejected(step_id="", detail="monitor broken"), OutcomeState.FAILED, None),
    ],
)
def test_a_rejected_submit_ends_the_step(rejected: ev.StepRejected, state: OutcomeState, code: RefusalCode | None) -> None:
    host = Host()
    host.calm()
    host.reject = rejected
    outcome = one(host.plan(host.step(StepKind.NET_TX, 200_000_000)))
    assert (outcome.state, outcome.code, outcome.value) == (state, code, 100_000_000)
    assert host.core.in_flight == 0


def test_a_submit_of_unknown_fate_is_observed() -> None:
    host = Host()
    host.calm()
    host.reject = ev.StepRejected(step_id="", detail="timed out", retriable=True)
    assert outcomes(host.plan(host.step(StepKind.CPU_QUOTA, 2000))) == []
    host.values["vm-1"][StepKind.CPU_QUOTA] = 2000  # it went through after all
    assert one(host.tick()).state is OutcomeState.VERIFIED


def test_a_large_memory_shrink_goes_in_strides_and_ends_in_one_outcome_of_the_plans_step() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(StepKind.MEMORY, int(1.6 * GIB)))
    seen = [host.values["vm-1"][StepKind.MEMORY]]
    for _ in range(400):
        host.sample(advance_s=1)
        host.tick(0)
        if host.values["vm-1"][StepKind.MEMORY] != seen[-1]:
            seen.append(host.values["vm-1"][StepKind.MEMORY])
    assert seen[-1] == int(1.6 * GIB) and len(seen) == 5  # the first stride was taken before the loop
    assert all(b >= a * 0.9499 for a, b in itertools.pairwise(seen))
    final = [o for o in outcomes(host.log) if o.step.id == "s1"]
    assert [o.state for o in final] == [OutcomeState.VERIFIED]
    assert host.core.waiting == 0


def test_a_newer_plan_replaces_what_has_not_begun_and_a_repeated_one_is_silent() -> None:
    host = Host()
    host.calm()
    later = host.step(StepKind.CPU_QUOTA, 2000, not_before_ns=host.now + 60 * NS_PER_S)
    assert submitted(host.plan(later)) == []
    out = host.plan(host.step(StepKind.CPU_QUOTA, 1500, "s2"), sequence=2)
    assert [(o.step.id, o.state, o.code) for o in outcomes(out)] == [
        ("s1", OutcomeState.REFUSED, RefusalCode.SEQUENCE_OLD),
        ("s2", OutcomeState.VERIFIED, None),
    ]
    assert host.plan(host.step(StepKind.CPU_QUOTA, 1500, "s2"), sequence=2) == []
    assert submitted(host.tick(60)) == []


def test_not_before_is_kept() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(StepKind.CPU_QUOTA, 2000, not_before_ns=host.now + 60 * NS_PER_S))
    assert submitted(host.tick(59)) == []
    assert [s.value for s in submitted(host.tick(1))] == [2000]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"host_id": "h2"}, RefusalCode.WRONG_HOST),
        ({"epoch": 1, "sequence": 9}, RefusalCode.EPOCH_OLD),
        ({"epoch": 2, "sequence": 4}, RefusalCode.SEQUENCE_OLD),
        ({"epoch": 2, "sequence": 6, "deadline_s": 0}, RefusalCode.PLAN_STALE),
    ],
)
def test_plans_that_are_not_ours_to_carry_out(changes: dict[str, int | str], code: RefusalCode) -> None:
    host = Host()
    host.calm()
    host.plan(epoch=2, sequence=5)
    out = host.plan(host.step(StepKind.CPU_QUOTA, 2000), **changes)  # type: ignore[arg-type]
    assert submitted(out) == [] and one(out).code is code


def test_a_plan_of_an_epoch_before_the_links_is_old() -> None:
    host = Host()
    host.calm()
    host.tell(ev.LinkUp(epoch=7, acked=-1))
    assert one(host.plan(host.step(StepKind.CPU_QUOTA, 2000), epoch=6)).code is RefusalCode.EPOCH_OLD


def test_duplicate_and_expired_steps() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(StepKind.CPU_QUOTA, 2000))
    out = host.plan(host.step(StepKind.CPU_QUOTA, 2500), host.step(StepKind.MEMORY, 3 * GIB, "s2", deadline_ns=host.now), sequence=2)
    assert [(o.step.id, o.code) for o in outcomes(out)] == [("s1", RefusalCode.STEP_DUPLICATE), ("s2", RefusalCode.STEP_EXPIRED)]
    assert submitted(out) == []


def test_growth_waits_for_the_capacity_that_a_shrink_of_the_same_plan_frees() -> None:
    host = Host(domain("vm-1"), domain("vm-2"), limits=capacity(cpu=2000))
    host.calm()
    out = host.plan(host.step(StepKind.CPU_QUOTA, 1400, "grow", "vm-1"), host.step(StepKind.CPU_QUOTA, 600, "shrink", "vm-2"))
    assert [(o.step.id, o.state) for o in outcomes(out)] == [("shrink", OutcomeState.VERIFIED), ("grow", OutcomeState.VERIFIED)]
    assert host.values["vm-1"][StepKind.CPU_QUOTA] == 1400


def test_growth_without_room_waits_until_its_deadline_and_says_why() -> None:
    host = Host(domain("vm-1"), domain("vm-2"), limits=capacity(cpu=2000))
    host.calm()
    assert outcomes(host.plan(host.step(StepKind.CPU_QUOTA, 1400))) == []
    assert host.core.waiting == 1
    assert one(host.tick(600)).code is RefusalCode.HOST_COMMIT_LIMIT


def test_the_more_important_vm_gets_the_room() -> None:
    low, high = domain("vm-1", policy=Policy(priority=Priority.LOW)), domain("vm-2", policy=Policy(priority=Priority.HIGH))
    host = Host(low, high, limits=capacity(cpu=2500))
    host.calm()
    host.plan(host.step(StepKind.CPU_QUOTA, 1500, "a", "vm-1"), host.step(StepKind.CPU_QUOTA, 1500, "b", "vm-2"))
    assert host.values["vm-2"][StepKind.CPU_QUOTA] == 1500 and host.values["vm-1"][StepKind.CPU_QUOTA] == 1000


def test_growth_takes_the_room_there_is_and_the_rest_when_it_comes() -> None:
    host = Host(domain("vm-1"), domain("vm-2"), limits=capacity(cpu=2200))
    host.calm()
    host.plan(host.step(StepKind.CPU_QUOTA, 1500))
    assert host.values["vm-1"][StepKind.CPU_QUOTA] == 1200
    host.values["vm-2"][StepKind.CPU_QUOTA] = 500
    host.sample()
    assert one(host.tick()).step.id == "s1"
    assert host.values["vm-1"][StepKind.CPU_QUOTA] == 1500


def test_a_changed_precondition_stops_a_shrink_but_not_a_growth_still_needed() -> None:
    host = Host()
    host.calm()
    shrink = host.step(StepKind.CPU_QUOTA, 800, "shrink", before=1200)
    assert one(host.plan(shrink)).code is RefusalCode.PRECONDITION_CHANGED
    growth = host.step(StepKind.CPU_QUOTA, 1500, "growth", before=900)
    assert one(host.plan(growth, sequence=2)).state is OutcomeState.VERIFIED
    overtaken = host.step(StepKind.CPU_QUOTA, 1200, "overtaken", before=900)
    assert one(host.plan(overtaken, sequence=3)).code is RefusalCode.PRECONDITION_CHANGED


def test_observe_shadows_plans_and_local_rules_and_submits_nothing() -> None:
    host = Host(mode=Mode.OBSERVE)
    host.calm()
    out = host.plan(host.step(StepKind.CPU_QUOTA, 2000), host.step(StepKind.VCPUS, 9, "s2"))
    out += host.sample(cpu_used_millicores=1000, cpu_throttled_permille=300)
    assert submitted(out) == []
    told = {(o.step.id if o.origin == "plan" else "local", o.state, o.code) for o in outcomes(out)}
    assert told == {
        ("s1", OutcomeState.SHADOWED, None),
        ("s2", OutcomeState.REFUSED, RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        ("local", OutcomeState.SHADOWED, None),
    }
    assert outcomes(host.sample()) == []  # the same answer is not told again at once
    assert host.core.repeats[OutcomeState.SHADOWED] == 1


def test_modes_pin_over_order_over_default_and_are_persisted() -> None:
    host = Host(mode=Mode.REACTIVE)
    out = host.tell(ev.ModePinned(mode=Mode.OFF))
    assert host.core.mode is Mode.OFF and host.core.mode_pinned
    assert ev.PersistMode(pinned=Mode.OFF, ordered=Mode.REACTIVE) in out
    assert any(isinstance(i, ev.SendMessage) and isinstance(i.message, Status) and i.message.mode is Mode.OFF for i in out)
    host.tell(ev.ModeOrdered(mode=Mode.PREDICTIVE))
    assert host.core.mode is Mode.OFF
    host.tell(ev.ModePinned(mode=None))
    assert host.core.mode is Mode.PREDICTIVE
    assert AgentCore(host_id="h1", boot_id="b", capacity=capacity(), pinned=Mode.OFF, ordered=Mode.PREDICTIVE).mode is Mode.OFF
    assert AgentCore(host_id="h1", boot_id="b", capacity=capacity()).mode is Mode.OBSERVE


def test_off_kills_within_one_event_and_withholds_undos() -> None:
    host = Host()
    host.calm()
    host.stuck = {StepKind.MEMORY}
    host.plan(host.step(StepKind.MEMORY, 3 * GIB), host.step(StepKind.CPU_QUOTA, 2000, "s2", not_before_ns=host.now + NS_PER_S))
    out = host.tell(ev.ModePinned(mode=Mode.OFF))
    assert one(out).code is RefusalCode.MODE_FORBIDS
    out = host.tick(60)
    assert submitted(out) == [] and one(out).state is OutcomeState.FAILED
    assert submitted(host.sample(cpu_used_millicores=1000, cpu_throttled_permille=500)) == []
    assert one(host.plan(host.step(StepKind.CPU_QUOTA, 2000, "s3"), sequence=2)).code is RefusalCode.MODE_FORBIDS


def test_reactive_mode_refuses_plans_and_grows_at_once_under_pressure() -> None:
    host = Host(mode=Mode.REACTIVE)
    host.calm()
    assert one(host.plan(host.step(StepKind.CPU_QUOTA, 2000))).code is RefusalCode.MODE_FORBIDS
    out = host.sample(cpu_used_millicores=990, cpu_throttled_permille=200)
    assert [(s.kind, s.value) for s in submitted(out)] == [(StepKind.CPU_QUOTA, 1250)]
    assert (one(out).state, one(out).origin) == (OutcomeState.VERIFIED, "reactive")
    out = host.sample(cpu_used_millicores=1240, cpu_throttled_permille=200)
    assert [s.value for s in submitted(out)] == [1875]
    out = host.sample(cpu_used_millicores=1870, cpu_throttled_permille=200)
    # 3750 asked; without a plan a VM gets to twice of what it began with within the hour
    assert [(s.kind, s.value) for s in submitted(out)] == [(StepKind.VCPUS, 4), (StepKind.CPU_QUOTA, 2000)]


def test_reactive_mode_shrinks_after_a_whole_calm_window_and_only_with_a_link() -> None:
    host = Host(mode=Mode.REACTIVE)
    host.calm()
    for _ in range(1800 // 5 - 1):
        assert submitted(host.sample()) == []
    host.tell(ev.LinkDown())
    for _ in range(20):
        assert submitted(host.sample()) == []
    host.tell(ev.LinkUp(epoch=2, acked=-1))
    steps = {s.kind: s.value for s in submitted(host.sample())}
    assert steps[StepKind.CPU_QUOTA] == 500  # 300 x 1.25 = 375, but one step halves at most
    assert steps[StepKind.MEMORY] == 2 * GIB - 2 * GIB * 50 // 1000
    assert all(grows(value, BEFORE[kind]) for kind, value in steps.items())


def test_predictive_mode_grows_locally_under_pressure_and_never_shrinks_by_itself() -> None:
    host = Host(mode=Mode.PREDICTIVE)
    host.calm()
    for _ in range(1800 // 5 + 10):
        assert submitted(host.sample()) == []
    out = host.sample(cpu_used_millicores=1000, cpu_throttled_permille=300)
    assert [s.value for s in submitted(out)] == [1250] and one(out).origin == "autonomy"


def test_without_a_link_planned_shrinks_are_held_and_growth_goes_on() -> None:
    host = Host(domain("vm-1"), domain("vm-2"))
    host.calm()
    at = host.now + 10 * NS_PER_S
    host.plan(
        host.step(StepKind.CPU_QUOTA, 800, "shrink", "vm-1", not_before_ns=at),
        host.step(StepKind.CPU_QUOTA, 1500, "grow", "vm-2", not_before_ns=at),
    )
    host.tell(ev.LinkDown())
    host.sample(advance_s=10)
    out = host.tick(0)
    assert [s.id for s in submitted(out)] == ["grow"]
    host.tell(ev.LinkUp(epoch=1, acked=-1))
    assert [s.id for s in submitted(host.tick())] == ["shrink"]


def test_a_vm_that_leaves_ends_its_steps() -> None:
    host = Host()
    host.calm()
    host.stuck = {StepKind.MEMORY}
    host.plan(host.step(StepKind.MEMORY, 3 * GIB), host.step(StepKind.CPU_QUOTA, 2000, "s2", not_before_ns=host.now + 60 * NS_PER_S))
    out = host.tell(ev.InventoryRead(domains=()))
    assert [(o.step.id, o.state, o.code) for o in outcomes(out)] == [
        ("s1", OutcomeState.FAILED, RefusalCode.UNKNOWN_VM),
        ("s2", OutcomeState.REFUSED, RefusalCode.UNKNOWN_VM),
    ]
    assert host.core.in_flight == host.core.waiting == 0 and host.core.why("vm-1") is None
    assert any(isinstance(i, ev.SendMessage) and isinstance(i.message, Inventory) for i in out)


def test_samples_and_outcomes_share_one_sequence_and_acks_trim() -> None:
    host = Host(next_sequence=40)
    host.calm()
    host.plan(host.step(StepKind.CPU_QUOTA, 2000))
    host.tick()
    host.sample()
    host.sample()
    frames = [i for i in host.log if isinstance(i, ev.SpoolFrame)]
    assert [(f.sequence, type(f.message)) for f in frames] == [(40, Outcomes), (41, Samples)]
    assert isinstance(frames[1].message, Samples) and len(decode_block(frames[1].message.block)) == 3
    assert host.tell(ev.Acked(boot_id="boot-123456789", sequence=40)) == [ev.TrimSpool(sequence=40)]
    assert not [i for i in host.tell(ev.Acked(boot_id="boot-123456789", sequence=42)) if isinstance(i, ev.TrimSpool)]
    host.sample()
    out = host.tell(ev.Stopping())
    assert isinstance(out[0], ev.SpoolFrame) and out[0].sequence == 42


def test_heartbeat() -> None:
    host = Host()
    sent = sum(isinstance(i, ev.SendMessage) for _ in range(60) for i in host.tick())
    assert sent == 6


def journal(host: Host) -> list[object]:
    return [i.entry for i in host.log if isinstance(i, ev.WriteJournal)]


def recovered(host: Host) -> Recovered:
    return reconcile(journal(host), local_prefix("h1", "boot-123456789"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("in_force", "state"), [(3 * GIB, OutcomeState.VERIFIED), (2 * GIB, OutcomeState.FAILED)])
def test_a_restart_closes_what_was_open_by_reading_it_back_and_applies_nothing_twice(in_force: int, state: OutcomeState) -> None:
    before = Host()
    before.calm()
    before.deaf = True
    before.plan(before.step(StepKind.MEMORY, 3 * GIB))
    found = recovered(before)
    assert [i.step.id for i in found.open] == ["s1"] and (found.epoch, found.sequence) == (1, 1)

    after = Host(recovered=found)
    after.values["vm-1"][StepKind.MEMORY] = in_force
    after.log.clear()
    after.core = AgentCore(host_id="h1", boot_id="boot-123456789", capacity=capacity(), ordered=Mode.PREDICTIVE, recovered=found)
    after.tell(ev.Started())
    after.tell(ev.InventoryRead(domains=after.domains))
    after.tell(ev.LinkUp(epoch=1, acked=-1))
    after.tick(30)
    assert submitted(after.log) == [] and one(after.log).state is state
    assert after.plan(after.step(StepKind.MEMORY, 3 * GIB)) == []  # the same plan again
    duplicate = one(after.plan(after.step(StepKind.MEMORY, 4 * GIB), sequence=2))
    assert duplicate.code is RefusalCode.STEP_DUPLICATE


def test_outcomes_that_never_reached_the_spool_are_shipped_after_a_restart() -> None:
    before = Host()
    before.calm()
    before.plan(before.step(StepKind.CPU_QUOTA, 2000))
    found = recovered(before)
    assert [o.step.id for o in found.unshipped] == ["s1"]
    core = AgentCore(host_id="h1", boot_id="boot-123456789", capacity=capacity(), recovered=found, next_sequence=7)
    frame, entry = core.handle(ev.Started(), T0)
    assert isinstance(frame, ev.SpoolFrame) and isinstance(frame.message, Outcomes) and frame.message.outcomes == found.unshipped
    assert entry == ev.WriteJournal(entry=ev.Shipped(sequence=7))
    assert core.handle(ev.Started(), T0) == []


def test_local_ids_go_on_after_a_restart() -> None:
    host = Host(mode=Mode.REACTIVE)
    host.calm()
    host.sample(cpu_used_millicores=990, cpu_throttled_permille=200)
    assert recovered(host).next_local == 2


def test_why_tells_the_story() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(StepKind.CPU_QUOTA, 2000), host.step(StepKind.VCPUS, 9, "s2"))
    story = host.core.why("vm-1")
    assert story is not None
    assert [(d.kind, d.from_value, d.to_value, d.verdict, d.code) for d in story] == [
        ("cpu_quota", 1000, 2000, "submitted", ""),
        ("vcpus", 2, 9, "refused", "above_domain_maximum"),
        ("cpu_quota", 1000, 2000, "verified", ""),
    ]
    assert host.core.counters == {("verified", ""): 1, ("refused", "above_domain_maximum"): 1}
    (vm,) = host.core.vms()
    assert vm.in_force["cpu_quota"] == 2000 and vm.in_flight == ()


# Properties

KIND_VALUES = {
    StepKind.VCPUS: st.integers(1, 6),
    StepKind.CPU_QUOTA: st.one_of(st.just(UNLIMITED), st.integers(1, 6000)),
    StepKind.CPU_SHARES: st.integers(1, 300_000),
    StepKind.MEMORY: st.integers(1, 10).map(lambda n: n * 900 * MIB),
    StepKind.NET_RX: st.one_of(st.just(UNLIMITED), st.integers(1, 2 * 10**9)),
    StepKind.NET_TX: st.one_of(st.just(UNLIMITED), st.integers(1, 2 * 10**9)),
    StepKind.VCPUS_ONLINE: st.integers(0, 6),
    StepKind.CPU_PERIOD: st.integers(1, 2_000_000),
    StepKind.VIRTIO_MEM: st.integers(0, 5).map(lambda n: n * GIB),
    StepKind.DIMM: st.integers(0, 40).map(lambda n: n * 100 * MIB),
    StepKind.MEMORY_HIGH: st.one_of(st.just(UNLIMITED), st.integers(1, 8).map(lambda n: n * GIB)),
    StepKind.DISK_BYTES: st.one_of(st.just(UNLIMITED), st.integers(1, 10**9)),
    StepKind.DISK_OPS: st.one_of(st.just(UNLIMITED), st.integers(1, 10**5)),
    StepKind.DISK_WEIGHT: st.integers(0, 2000),
    StepKind.NET_TX_RATE: st.integers(0, 10**9),
    StepKind.MIGRATE: st.just(UNLIMITED),
}
PRESSURES = st.fixed_dictionaries(
    {},
    optional={
        "cpu_used_millicores": st.integers(0, 4000),
        "cpu_throttled_permille": st.sampled_from([0, 500]),
        "memory_used_bytes": st.integers(0, 4).map(lambda n: n * GIB),
        "memory_reading_age_ms": st.sampled_from([0, 60_000]),
        "psi_memory_some_permille": st.sampled_from([0, 400]),
        "net_rx_bits_per_s": st.integers(0, 10**8),
        "net_rx_dropped_per_s": st.sampled_from([0, 10]),
    },
)
VMS = st.sampled_from(["vm-1", "vm-2", "vm-3"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("sample"), VMS, PRESSURES),
        st.tuples(st.just("tick"), st.integers(0, 700), st.none()),
        st.tuples(st.just("plan"), st.none(), st.none()),
        st.tuples(st.just("step"), VMS, st.sampled_from(StepKind).flatmap(lambda k: st.tuples(st.just(k), KIND_VALUES[k]))),
        st.tuples(st.just("mode"), st.sampled_from(Mode), st.booleans()),
        st.tuples(st.just("link"), st.booleans(), st.none()),
        st.tuples(st.just("stuck"), st.sets(st.sampled_from(StepKind), max_size=3), st.booleans()),
    ),
    max_size=40,
)


def world(mode: Mode) -> Host:
    policy = Policy(cpu_floor_millicores=300, cpu_ceiling_millicores=3000, memory_floor_bytes=GIB, net_ceiling_bits_per_s=500_000_000)
    limits = capacity(cpu=4000, memory=8 * GIB, net=500_000_000)
    broken = Capabilities(balloon="vfio pins its memory")
    able = domain("vm-1", capabilities=ABLE, virtio_mem_max_bytes=2 * GIB, dimm_max_bytes=2 * GIB)
    host = Host(able, domain("vm-2", policy=policy), domain("vm-3", capabilities=broken), mode=mode, limits=limits)
    host.calm()
    return host


def play(host: Host, actions: list[tuple[str, object, object]]) -> None:
    for number, (what, a, b) in enumerate(actions):
        if what == "sample":
            host.sample(a, **b)  # type: ignore[arg-type]
        elif what == "tick":
            host.tick(a)  # type: ignore[arg-type]
        elif what == "plan":
            host.plan(sequence=1 + number)
        elif what == "step":
            kind, value = b  # type: ignore[misc]
            host.plan(host.step(kind, value, f"s{number}", a), sequence=1 + number)  # type: ignore[arg-type]
        elif what == "mode":
            host.tell(ev.ModePinned(mode=a) if b else ev.ModeOrdered(mode=a))  # type: ignore[arg-type]
        elif what == "link":
            host.tell(ev.LinkUp(epoch=1, acked=-1) if a else ev.LinkDown())
        else:
            host.stuck, host.deaf = a, b  # type: ignore[assignment]


class Watched(Host):
    """Checks every submit against what is in force at that moment."""

    def _answer(self, instruction: ev.Instruction) -> list[ev.Event]:
        if isinstance(instruction, ev.SubmitStep):
            self._check(instruction.step)
        return super()._answer(instruction)

    def _check(self, step: Step) -> None:
        core, now = self.core, self.values[step.vm_id][step.kind]
        assert core.mode.acts
        place = self.log.index(ev.SubmitStep(step=step))
        intent = self.log[place - 1]
        assert isinstance(intent, ev.WriteJournal) and isinstance(intent.entry, ev.Intent) and intent.entry.step == step
        undo = step.reason == "undo"
        if not core.link_up:
            assert step.value == now or grows(now, step.value)
        owner = next(d for d in self.domains if d.vm_id == step.vm_id)
        low, high = bounds(step.kind, owner, GUARD)
        if not undo and step.value != UNLIMITED:
            assert min(low, now) <= step.value <= (10**18 if now == UNLIMITED else max(high, now))
        if step.kind is StepKind.VCPUS:
            assert not undo  # neither an added nor a removed one is taken back
        self._check_promises(step)

    def _check_promises(self, step: Step) -> None:
        after = {vm_id: dict(values) for vm_id, values in self.values.items()}
        after[step.vm_id][step.kind] = step.value
        for kind, limit in (
            (StepKind.CPU_QUOTA, 4000),
            (StepKind.MEMORY, 8 * GIB),
            (StepKind.NET_RX, 500_000_000),
            (StepKind.NET_TX, 500_000_000),
        ):
            sums = [
                sum(charge(kind, values[d.vm_id][kind], d, values[d.vm_id][StepKind.VCPUS]) for d in self.domains)
                for values in (self.values, after)
            ]
            assert sums[1] <= max(limit, sums[0])


def watched(mode: Mode) -> Watched:
    plain = world(mode)
    host = Watched(*plain.domains, mode=mode, limits=plain.core.capacity)
    host.calm()
    return host


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS, st.sampled_from([Mode.REACTIVE, Mode.PREDICTIVE]))
@example([("step", "vm-1", (StepKind.VCPUS, 3)), ("link", False, None), ("tick", 100, None), ("tick", 700, None)], Mode.PREDICTIVE)
def test_bounds_promises_and_fail_static_hold_whatever_happens(actions: list[tuple[str, object, object]], mode: Mode) -> None:
    host = watched(mode)
    play(host, actions)
    host.deaf, host.stuck = False, set()
    host.tell(ev.LinkUp(epoch=1, acked=-1))  # without a coordinator the decay to the owner's defaults is tried for ever
    for _ in range(4):
        host.tick(700)
    assert host.core.in_flight == host.core.waiting == 0
    asked = {i.entry.step.id for i in host.log if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Intent) and not i.entry.undo_of}
    told = [o.step.id for o in outcomes(host.log)]
    assert asked <= set(told) and len(told) == len(set(told))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS, st.sampled_from([Mode.OFF, Mode.OBSERVE]))
def test_observe_and_off_never_submit(actions: list[tuple[str, object, object]], mode: Mode) -> None:
    host = world(mode)
    play(host, [action for action in actions if action[0] != "mode"])
    assert submitted(host.log) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
def test_same_events_same_instructions(actions: list[tuple[str, object, object]]) -> None:
    logs = []
    for _ in range(2):
        host = world(Mode.PREDICTIVE)
        play(host, actions)
        logs.append([repr(i) for i in host.log])
    assert logs[0] == logs[1]


def test_excluded_vms_are_left_alone() -> None:
    host = Host(domain(policy=Policy(excluded=True)), mode=Mode.REACTIVE)
    host.calm()
    assert submitted(host.sample(cpu_used_millicores=1000, cpu_throttled_permille=500)) == []


def test_rates_are_limited_per_vm() -> None:
    host = Host(mode=Mode.REACTIVE, reactive=RULE, guard=GuardConfig(steps_per_vm_per_minute=2))
    host.calm()
    out: list[ev.Instruction] = []
    for use in (1000, 1250, 1875):
        out += host.sample(cpu_used_millicores=use, cpu_throttled_permille=500)
    assert len(submitted(out)) == 2
    assert [o.code for o in outcomes(out) if o.state is OutcomeState.REFUSED] == [RefusalCode.RATE_LIMITED] * 2  # vCPUs and quota


def test_a_plan_cannot_use_the_hosts_own_ids() -> None:
    host = Host()
    host.calm()
    outcome = one(host.plan(host.step(StepKind.CPU_QUOTA, 2000, "h1-boot-123-1")))
    assert outcome.code is RefusalCode.INVALID_VALUE and submitted(host.log) == []


def test_numbers_that_the_coordinator_holds_are_not_used_again() -> None:
    host = Host()
    host.tell(ev.LinkUp(epoch=2, acked=90))
    assert not [i for i in host.log if isinstance(i, ev.TrimSpool)]
    assert host.core.next_sequence == 91


def test_a_vm_never_sampled_counts_as_full() -> None:
    host = Host(domain("vm-1"), domain("vm-2"), limits=capacity(cpu=4500))
    del host.values["vm-2"]
    host.tell(ev.AllocationRead(vm_id="vm-1", allocation=host.allocation("vm-1")))
    host.plan(host.step(StepKind.CPU_QUOTA, 2000))
    assert submitted(host.log) == [] and host.core.waiting == 1  # 1000 + 4 x 1000 of the unread one leave no room
    host.tell(ev.AllocationRead(vm_id="vm-2", allocation=Allocation(vcpus=1, cpu_quota_millicores=500)))
    assert [s.value for s in submitted(host.tick())] == [2000]


def test_an_older_sample_does_not_overwrite_what_was_read_back() -> None:
    host = Host()
    host.calm()
    stale = HostSample(wall_ns=host.now, monotonic_ns=1, period_ns=5, vms={"vm-1": VmSample(cpu_quota_millicores=1000)})
    host.now += NS_PER_S
    host.plan(host.step(StepKind.CPU_QUOTA, 2000))
    host.tell(ev.Sampled(sample=stale))
    assert host.core.in_force("vm-1")[StepKind.CPU_QUOTA] == 2000


def test_failures_are_logged_and_told_to_the_owner() -> None:
    host = Host()
    host.calm()
    host.reject = ev.StepRejected(step_id="", detail="monitor broken")
    out = host.plan(host.step(StepKind.CPU_QUOTA, 2000))
    (note,) = [i for i in out if isinstance(i, ev.Note) and i.event == "step"]
    assert (note.level, note.fields["state"], note.fields["detail"]) == ("warning", "failed", "monitor broken")
    (vm,) = host.core.vms()
    assert (
        vm.newest is not None
        and vm.newest.verdict == "failed"
        and vm.backing_off_until_ns == {"cpu_quota growth": host.now + 30 * NS_PER_S}
    )


def test_backing_off_doubles_up_to_its_limit_and_ends_with_a_success() -> None:
    host = Host(guard=GuardConfig(backoff_max_s=100))
    host.calm()
    host.reject = ev.StepRejected(step_id="", detail="monitor broken")
    waits = []
    for n in range(4):
        host.plan(host.step(StepKind.CPU_QUOTA, 2000, f"s{n}"), sequence=n + 1)
        until = host.core.vms()[0].backing_off_until_ns["cpu_quota growth"]
        waits.append((until - host.now) // NS_PER_S)
        host.sample(advance_s=waits[-1])
    assert waits == [30, 60, 100, 100]
    host.reject = None
    host.plan(host.step(StepKind.CPU_QUOTA, 2000, "last"), sequence=9)
    assert host.core.vms()[0].backing_off_until_ns == {}


def test_a_shrink_in_flight_is_given_up_at_once_when_the_vm_comes_under_pressure() -> None:
    host = Host()
    host.calm()
    host.stuck = {StepKind.MEMORY}  # a slow balloon
    host.plan(host.step(StepKind.MEMORY, int(1.95 * GIB)))
    assert host.core.in_flight == 1
    out = host.sample(psi_memory_some_permille=300)
    (undo,) = submitted(out)
    assert (undo.kind, undo.value, undo.reason) == (StepKind.MEMORY, 2 * GIB, "undo")
    outcome = one(out)
    assert outcome.state is OutcomeState.UNDONE and "pressure" in outcome.detail
    host.stuck = set()
    assert [(s.kind, s.value) for s in submitted(host.sample())] == [
        (StepKind.MEMORY, int(3 * GIB))
    ]  # second felt sample: half as much again
    assert one(host.plan(host.step(StepKind.MEMORY, 2 * GIB, "s2"), sequence=2)).code is RefusalCode.PRESSURE_VETO
    host.sample(psi_memory_some_permille=0)
    late = host.step(StepKind.MEMORY, 2 * GIB, "s3", deadline_ns=host.now + 300 * NS_PER_S)
    assert one(host.plan(late, sequence=3)).code is RefusalCode.COOLDOWN


@pytest.mark.parametrize("mode", list(Mode))
def test_an_operators_order_counts_where_the_host_acts_and_is_refused_elsewhere(mode: Mode) -> None:
    host = Host(mode=mode)
    host.calm()
    outcome = one(host.plan(host.step(StepKind.CPU_QUOTA, 2000, reason="operator")))
    if mode.acts:
        assert (outcome.state, outcome.value, outcome.origin) == (OutcomeState.VERIFIED, 2000, "operator")
    else:
        assert (outcome.state, outcome.code, outcome.value) == (OutcomeState.REFUSED, RefusalCode.MODE_FORBIDS, 1000)


def test_the_guard_and_the_loss_of_the_link_bind_an_operators_order_too() -> None:
    host = Host(domain(policy=Policy(cpu_ceiling_millicores=1500)), mode=Mode.REACTIVE)
    host.calm()
    clipped = one(host.plan(host.step(StepKind.CPU_QUOTA, 3000, reason="operator")))
    assert (clipped.state, clipped.code, clipped.value) == (OutcomeState.PARTIAL, RefusalCode.ABOVE_CEILING, 1500)
    host.tell(ev.LinkDown())
    host.tick(700)
    host.calm()
    order = host.step(StepKind.NET_RX, 50_000_000, "s2", reason="operator")
    assert submitted(host.plan(order, sequence=2)) == [] and host.core.waiting == 1
