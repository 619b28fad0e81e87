"""The agent's core by example: a small host under it answers its instructions (tests/contract/obedient_host.py)."""

from __future__ import annotations

import itertools

import pytest
from obedient_host import RULE, Host, capacity, domain, one, outcomes, submitted

from agent import events as ev
from shared.config import GuardConfig
from shared.frame import decode_block
from shared.messages import Inventory, Outcomes, Samples
from shared.model import Allocation, HostSample, Mode, Policy, Priority, VmSample
from shared.plan import OutcomeState, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, NS_PER_S


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
