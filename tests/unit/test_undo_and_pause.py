"""The owner's brakes: undo, the kill switch, the way back after the lease; and limits that travelled with a VM. Through the core."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from obedient_host import ABLE, GUARD, T0, Host, capacity, domain, one, outcomes, submitted

from agent import events as ev
from agent.acting.reconcile import local_prefix, reconcile
from agent.acting.undoing import REMEMBERED, StepMemory, Taken
from agent.core import AgentCore
from shared.config import GuardConfig, MigrationConfig, ReactiveConfig
from shared.messages import Status
from shared.model import Allocation, Mode, Policy
from shared.plan import OutcomeState, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, NS_PER_S, UNLIMITED

Q, M, V, N = StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.VCPUS, StepKind.NET_TX


def undo(host: Host, **order: object) -> list[ev.Instruction]:
    return host.tell(ev.UndoOrdered(**order))  # type: ignore[arg-type]


def run(host: Host, seconds: int) -> list[ev.Instruction]:
    """Ticks each second, a sample each five."""
    out: list[ev.Instruction] = []
    for n in range(seconds):
        out += host.sample(advance_s=1) if n % 5 == 4 else []
        out += host.tick(0 if n % 5 == 4 else 1)
    return out


# Undo


def test_one_step_is_taken_back_and_a_plan_does_not_redo_it_at_once() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000), host.step(N, 200_000_000, "s2"))
    out = undo(host, step_id="s1")
    assert [(s.kind, s.value, s.before) for s in submitted(out)] == [(Q, 1000, 2000)]
    outcome = one(out)
    assert (outcome.state, outcome.value, outcome.origin, outcome.step.reason) == (OutcomeState.VERIFIED, 1000, "operator", "undo of s1")
    assert host.values["vm-1"][N] == 200_000_000
    assert one(host.plan(host.step(Q, 1500, "s3"), sequence=2)).code is RefusalCode.YIELDED
    assert one(host.plan(host.step(N, 250_000_000, "s4"), sequence=3)).state is OutcomeState.VERIFIED
    assert submitted(host.sample(cpu_used_millicores=1000, cpu_throttled_permille=500)) == []  # nor does the local rule
    host.now += GUARD.foreign_yield_s * NS_PER_S
    assert one(host.plan(host.step(Q, 1500, "s5"), sequence=4)).state is OutcomeState.VERIFIED


def test_the_undo_of_a_growth_of_memory_goes_in_strides_without_cooldown_and_ends_within_a_minute() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(M, int(2.4 * GIB)))
    run(host, 10)
    assert host.values["vm-1"][M] == int(2.4 * GIB)
    began = host.now
    out = undo(host, step_id="s1") + run(host, 55)
    steps = [s for s in submitted(out) if s.kind is M]
    values = [int(2.4 * GIB), *(s.value for s in steps)]
    assert len(steps) >= 4 and all(b >= a * 0.9499 for a, b in itertools.pairwise(values))
    (whole,) = [o for o in outcomes(out) if o.step.reason == "undo of s1" and o.step.value == 2 * GIB and o.step.before == int(2.4 * GIB)]
    assert (whole.state, host.values["vm-1"][M]) == (OutcomeState.VERIFIED, 2 * GIB)
    assert whole.finished_ns - began < 60 * NS_PER_S


def test_since_takes_the_oldest_before_image_of_each_lever_shrinks_first_newest_first() -> None:
    host = Host(domain("vm-1"), domain("vm-2"), limits=capacity(cpu=3100))
    host.calm()
    since = host.now
    host.plan(host.step(Q, 800, "a", "vm-1"))
    host.sample(advance_s=10)
    host.plan(host.step(Q, 1500, "b", "vm-2"), sequence=2)
    host.sample(advance_s=10)
    host.plan(host.step(Q, 2200, "c", "vm-2"), sequence=3)
    host.sample()
    assert host.values["vm-1"][Q] == 800 and host.values["vm-2"][Q] == 2200
    listed = host.core.undoable(since_ns=since)
    assert [(u.vm_id, u.value, u.step_ids, u.code) for u in listed] == [("vm-2", 1000, ("b", "c"), None), ("vm-1", 1000, ("a",), None)]
    out = undo(host, since_ns=since) + run(host, 5)
    assert submitted(out)[0].vm_id == "vm-2"  # what takes comes first: the host has no room for the other
    assert [host.values[vm][Q] for vm in ("vm-1", "vm-2")] == [1000, 1000]
    assert host.core.undoable(since_ns=host.now) == ()


@pytest.mark.parametrize("order", [{"step_id": "nobody"}, {"since_ns": T0 + 10**18}, {"vm_id": "vm-1"}, {"step_id": "s1", "vm_id": "vm-2"}])
def test_what_is_not_there_cannot_be_taken_back(order: dict[str, object]) -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000))
    out = undo(host, **order)
    assert submitted(out) == [] and outcomes(out) == []
    assert [i.fields["code"] for i in out if isinstance(i, ev.Note)] == [RefusalCode.NOTHING_TO_UNDO]
    assert host.core.counters["refused", "nothing_to_undo"] == 1


def test_what_somebody_else_has_changed_since_is_theirs() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000))
    host.values["vm-1"][Q] = 3000
    host.sample(advance_s=20)
    out = undo(host, step_id="s1")
    assert submitted(out) == [] and one(out).code is RefusalCode.PRECONDITION_CHANGED
    assert host.core.undoable(since_ns=0) == ()


def test_a_lever_left_to_somebody_else_is_still_the_owners_to_take_back() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(N, 200_000_000))
    host.values["vm-1"][Q] = 3000
    host.sample(advance_s=20)
    assert one(undo(host, step_id="s1")).value == 100_000_000


def test_an_undo_keeps_to_floors_pressure_and_the_hosts_limit() -> None:
    host = Host(domain(policy=Policy(cpu_floor_millicores=900)), mode=Mode.PREDICTIVE)
    host.values["vm-1"][Q] = 700
    host.calm()
    host.plan(host.step(Q, 1500))
    host.readings["vm-1"] = msgspec.structs.replace(host.readings["vm-1"], cpu_throttled_permille=500)
    host.sample(cpu_used_millicores=1500)
    host.tell(ev.LinkUp(epoch=1, acked=-1))
    out = undo(host, step_id="s1")
    assert submitted(out) == [] and host.core.waiting == 1  # pressure may pass
    out = host.sample(cpu_used_millicores=300, cpu_throttled_permille=0) + host.tick()
    outcome = [o for o in outcomes(out) if o.origin == "operator"][-1]
    assert (outcome.state, outcome.code) == (OutcomeState.PARTIAL, RefusalCode.BELOW_FLOOR)
    assert host.values["vm-1"][Q] == 900


def test_an_undo_that_cannot_go_on_ends_after_a_minute() -> None:
    host = Host(limits=capacity(cpu=2500))
    host.calm()
    host.plan(host.step(Q, 500))
    host.sample()
    host.stuck = {Q}
    undo(host, step_id="s1")
    out = run(host, 60)
    assert [o.state for o in outcomes(out) if o.origin == "operator"] == [OutcomeState.UNDONE]


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.OBSERVE])
def test_no_undo_where_nothing_may_change(mode: Mode) -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000))
    host.tell(ev.ModePinned(mode=mode))
    out = undo(host, step_id="s1")
    assert submitted(out) == [] and one(out).code is RefusalCode.MODE_FORBIDS


def test_steps_are_remembered_over_a_restart() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000), host.step(M, int(2.15 * GIB), "s2"))
    run(host, 5)
    entries = [i.entry for i in host.log if isinstance(i, ev.WriteJournal)]
    again = Host(recovered=reconcile(entries, local_prefix("h1", "boot-123456789")))
    again.now, again.values = host.now, host.values
    again.calm()
    assert {(u.kind, u.value, u.step_ids) for u in again.core.undoable(since_ns=0)} == {(Q, 1000, ("s1",)), (M, 2 * GIB, ("s2",))}
    assert again.core.undoable(since_ns=0) == host.core.undoable(since_ns=0)
    undo(again, step_id="s1")
    assert again.values["vm-1"][Q] == 1000


def test_memory_of_steps_is_bounded() -> None:
    def taken(n: int) -> Taken:
        return Taken(step_id=f"s{n}", vm_id="vm", kind=Q, before=1, after=2, at_ns=n, origin="plan")

    memory = StepMemory(taken(n) for n in range(REMEMBERED + 3))
    memory.take(taken(5))  # known already
    assert len(memory) == REMEMBERED and next(iter(memory)).step_id == "s3"


# Pause


def test_pause_stops_everything_within_the_event_and_says_so() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000, not_before_ns=host.now + 60 * NS_PER_S))
    out = host.tell(ev.PauseOrdered(paused=True, by="owner"))
    assert one(out).code is RefusalCode.PAUSED
    assert ev.PersistPause(by=("owner",)) in out
    assert any(isinstance(i, ev.SendMessage) and isinstance(i.message, Status) and i.message.paused_by == ("owner",) for i in out)
    assert host.core.mode is Mode.OFF and host.core.paused_by == ("owner",)
    assert one(host.plan(host.step(Q, 2000, "s2"), sequence=2)).code is RefusalCode.PAUSED
    assert submitted(host.sample(cpu_used_millicores=1000, cpu_throttled_permille=900) + run(host, 30)) == []


def test_each_holder_lets_go_its_own_and_the_file_is_not_stored() -> None:
    host = Host()
    assert ev.PersistPause(by=()) in host.tell(ev.PauseOrdered(paused=True, by="file"))
    host.tell(ev.PauseOrdered(paused=True, by="coordinator"))
    assert host.tell(ev.PauseOrdered(paused=False, by="owner")) == []
    host.tell(ev.PauseOrdered(paused=False, by="file"))
    assert host.core.paused_by == ("coordinator",) and host.core.mode is Mode.OFF
    host.tell(ev.PauseOrdered(paused=False, by="coordinator"))
    assert host.core.mode is Mode.PREDICTIVE


def test_what_is_in_the_air_is_left_alone_while_paused_and_looked_at_afterwards() -> None:
    host = Host()
    host.calm()
    host.stuck = {M}
    host.plan(host.step(M, int(2.05 * GIB)))
    host.tell(ev.PauseOrdered(paused=True, by="owner"))
    out = run(host, 120)
    assert submitted(out) == [] and outcomes(out) == [] and not [i for i in out if isinstance(i, ev.ReadBack)]
    out = host.tell(ev.PauseOrdered(paused=False, by="owner"))
    assert [i.vm_id for i in out if isinstance(i, ev.ReadBack)] == ["vm-1"] and submitted(out) == []
    assert submitted(run(host, 29)) == []
    assert [s.value for s in submitted(run(host, 2))] == [2 * GIB]


def test_a_pause_survives_a_restart() -> None:
    core = AgentCore(host_id="h", boot_id="b", capacity=capacity(), ordered=Mode.PREDICTIVE, paused_by=("owner",))
    assert core.mode is Mode.OFF and core.status(T0).paused_by == ("owner",)


# Settings


def test_settings_are_replaced_while_running() -> None:
    host = Host()
    host.calm()
    host.tell(ev.SettingsChanged(guard=GuardConfig(cpu_floor_millicores=950), reactive=ReactiveConfig(), migration=MigrationConfig()))
    outcome = one(host.plan(host.step(Q, 500)))
    assert (outcome.state, outcome.code, outcome.value) == (OutcomeState.PARTIAL, RefusalCode.BELOW_FLOOR, 950)


# The lease


def alone(host: Host, seconds: int) -> list[ev.Instruction]:
    out: list[ev.Instruction] = []
    for _ in range(seconds // 5):
        out += host.sample() + host.tick(0)
    return out


def test_after_the_lease_limits_go_back_to_the_owners_defaults_and_no_further() -> None:
    host = Host(guard=GuardConfig(lease_s=600))
    host.calm()
    host.plan(host.step(Q, 2000), host.step(M, int(1.95 * GIB), "s2"), deadline_s=60)
    host.tell(ev.LinkDown())
    assert submitted(alone(host, 590)) == []
    out = alone(host, 900)
    steps = submitted(out)
    assert host.values["vm-1"][Q] == 1000 and host.values["vm-1"][M] == 2 * GIB
    assert {s.reason for s in steps} == {"lease_over"} and {o.origin for o in outcomes(out)} == {"autonomy"}
    assert {s.kind for s in steps} == {Q, M}
    assert submitted(alone(host, 900)) == []


def test_the_decay_stops_when_a_coordinator_is_back() -> None:
    host = Host(guard=GuardConfig(lease_s=60))
    host.calm()
    host.plan(host.step(Q, 2000), deadline_s=60)
    host.tell(ev.LinkDown())
    host.sample(advance_s=65, cpu_used_millicores=1900, cpu_throttled_permille=500)
    host.tick()
    assert host.core.waiting == 1 and host.values["vm-1"][Q] >= 2000  # held up by the pressure
    host.tell(ev.LinkUp(epoch=1, acked=-1))
    out = host.tick()
    assert one(out).code is RefusalCode.PRECONDITION_CHANGED and submitted(out) == [] and host.core.waiting == 0


def test_a_host_without_a_coordinator_keeps_its_sizes() -> None:
    host = Host(standalone=True, mode=Mode.REACTIVE, guard=GuardConfig(lease_s=60))
    host.tell(ev.LinkDown())
    host.calm()
    host.sample(cpu_used_millicores=990, cpu_throttled_permille=200)
    assert host.values["vm-1"][Q] == 1250
    host.sample(cpu_throttled_permille=0)
    alone(host, 300)
    assert host.values["vm-1"][Q] > 1000


# Limits that travelled


def test_limits_that_travelled_are_applied_through_the_guard_and_then_taken_up() -> None:
    host = Host(domain(policy=Policy(cpu_floor_millicores=900)))
    host.values["vm-1"] |= {N: UNLIMITED, Q: UNLIMITED}
    limits = Allocation(net_tx_bits_per_s=50_000_000, cpu_quota_millicores=700, net_rx_bits_per_s=100_000_000)
    out = host.tell(ev.LimitsArrived(vm_id="vm-1", limits=limits))
    assert submitted(out) == []
    host.calm()
    out = host.tick() + run(host, 20)
    assert (host.values["vm-1"][N], host.values["vm-1"][Q]) == (50_000_000, 900)
    assert {o.origin for o in outcomes(out)} == {"migration"}
    assert [i.vm_id for i in out if isinstance(i, ev.TakenUp)] == ["vm-1"]


def test_limits_that_fit_already_and_limits_of_strangers() -> None:
    host = Host()
    host.calm()
    out = host.tell(ev.LimitsArrived(vm_id="vm-1", limits=host.allocation("vm-1")))
    assert [i for i in out if not isinstance(i, ev.Note)] == [ev.TakenUp(vm_id="vm-1")]
    assert host.tell(ev.LimitsArrived(vm_id="vm-9", limits=Allocation(vcpus=2))) == []


def test_history_is_of_all_vms_newest_last() -> None:
    host = Host(domain("vm-1"), domain("vm-2"))
    host.calm()
    host.plan(host.step(Q, 2000, "a", "vm-1"), host.step(Q, 2000, "b", "vm-2"))
    lines = host.core.history(3)
    assert [(line.vm_id, line.name, line.decision.verdict) for line in lines][-1] == ("vm-2", "vm-2", "verified") and len(lines) == 3
    assert host.core.history(0) == ()


def test_a_plans_step_that_is_being_undone_ends() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000))
    later = host.step(Q, 2500, "s2", not_before_ns=host.now + 30 * NS_PER_S)
    host.plan(later, sequence=2)
    out = undo(host, step_id="s1")
    assert next((o.step.id, o.code) for o in outcomes(out)) == ("s2", RefusalCode.YIELDED)
    assert host.values["vm-1"][Q] == 1000


def test_vcpus_and_other_kinds_with_their_own_time() -> None:
    host = Host(domain(capabilities=ABLE, dimm_max_bytes=GIB), guard=GuardConfig(unplug_timeout_s=200))
    host.calm()
    host.stuck = {V}
    host.plan(host.step(V, 1))
    assert host.core.vms()[0].pending == {"vcpus": 1}
    assert outcomes(alone(host, 195)) == []  # the guest may take its time
    out = alone(host, 10)
    assert submitted(out) == [] and one(out).state is OutcomeState.FAILED
