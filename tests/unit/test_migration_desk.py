"""Live migration as the core decides it, by example and by property: what starts, is watched, widened, given up, and how it ends."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_host import CALM, CONFIG, VMS, Host, domain, of, started, step

from agent import events as ev
from agent.ports import MigrationProgress
from shared.model import Allocation, Capabilities, Mode, Policy
from shared.plan import OutcomeState, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MBIT, MIB, NS_PER_S, UNLIMITED


def test_a_move_is_journalled_then_started_with_the_limits_in_force() -> None:
    out = Host().plan(step(value=200 * MBIT))
    journalled = next(i for i, what in enumerate(out) if isinstance(what, ev.WriteJournal) and isinstance(what.entry, ev.Intent))
    (start,) = of(ev.StartMigration, out)
    assert journalled < out.index(start)
    assert isinstance(start, ev.StartMigration)
    assert (start.uri, start.bits_per_s, start.step.id) == ("qemu+tls://h2/system", 200 * MBIT, "move-1")
    assert start.limits == Allocation(
        vcpus=2, cpu_quota_millicores=1500, cpu_shares=1024, memory_bytes=2 * GIB, net_rx_bits_per_s=50 * MBIT, net_tx_bits_per_s=UNLIMITED
    )


@pytest.mark.parametrize(("asked", "given"), [(UNLIMITED, 800 * MBIT), (10**10, 800 * MBIT), (MBIT, MBIT)])
def test_the_owners_bandwidth_is_the_most(asked: int, given: int) -> None:
    (start,) = of(ev.StartMigration, Host().plan(step(value=asked)))
    assert isinstance(start, ev.StartMigration)
    assert start.bits_per_s == given


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"target": "h9"}, RefusalCode.TARGET_UNKNOWN),
        ({"target": ""}, RefusalCode.TARGET_UNKNOWN),
        ({"target": "h1"}, RefusalCode.NOTHING_TO_DO),
        ({"value": 0}, RefusalCode.INVALID_VALUE),
        ({"vm_id": "vm-9"}, RefusalCode.UNKNOWN_VM),
        ({"vm_id": "fixed"}, RefusalCode.NOT_CAPABLE),
        ({"vm_id": "out"}, RefusalCode.VM_EXCLUDED),
        ({"vm_id": "off"}, RefusalCode.VM_NOT_RUNNING),
    ],
)
def test_what_may_not_move_is_refused_by_its_code(changes: dict[str, object], code: RefusalCode) -> None:
    host = Host(
        "vm-1",
        a=domain("fixed", capabilities=Capabilities(migrate="a host device")),
        b=domain("out", policy=Policy(excluded=True)),
        c=domain("off", running=False),
    )
    assert not of(ev.StartMigration, host.plan(step(**changes)))  # type: ignore[arg-type]
    assert (host.outcome().state, host.outcome().code) == (OutcomeState.REFUSED, code)


def test_moved_is_verified_with_its_figures() -> None:
    host = started(Host())
    host.wait(3)
    final = MigrationProgress(elapsed_ms=2900, downtime_ms=33, memory_processed_bytes=71 * MIB)
    host.tell(ev.MigrationEnded(step_id="move-1", moved=True, progress=final))
    outcome = host.outcome()
    assert (outcome.state, outcome.code, outcome.value) == (OutcomeState.VERIFIED, None, 800 * MBIT)
    assert "elapsed 2900 ms" in outcome.detail
    assert "downtime 33 ms" in outcome.detail
    assert f"{71 * MIB} bytes" in outcome.detail
    assert outcome.finished_ns - outcome.started_ns == 3 * NS_PER_S
    del host.here["vm-1"]
    host.inventory()
    assert host.core.in_flight == 0
    assert len(host.outcomes()) == 1


def test_it_is_watched_about_every_second() -> None:
    host = started(Host())
    assert len(of(ev.WatchMigration, host.wait(10, left=GIB))) == 10
    host.tell(ev.MigrationEnded(step_id="move-1", moved=False, detail="no route"))
    assert not of(ev.WatchMigration, host.wait(10))


def test_nothing_else_of_the_vm_changes_meanwhile() -> None:
    host = started(Host())
    quota = step("quota", deadline_ns=host.now + 10 * NS_PER_S)
    quota = msgspec.structs.replace(quota, kind=StepKind.CPU_QUOTA, value=2000, target="")
    host.plan(quota)
    assert not of(ev.SubmitStep, host.wait(5, left=GIB))
    host.wait(10, left=GIB)
    assert [(o.step.id, o.code) for o in host.outcomes()] == [("quota", RefusalCode.VM_BUSY)]


def test_a_step_in_flight_holds_the_move_up_until_it_ends() -> None:
    host = Host()
    quota = msgspec.structs.replace(step("quota"), kind=StepKind.CPU_QUOTA, value=2000, target="")
    assert of(ev.SubmitStep, host.plan(quota, step()))
    assert not of(ev.StartMigration, host.log)
    host.tell(ev.StepAccepted(step_id="quota"))
    host.tell(ev.AllocationRead(vm_id="vm-1", allocation=Allocation(cpu_quota_millicores=2000)))
    assert of(ev.StartMigration, host.log + host.wait(3))


def test_the_third_waits_for_its_turn() -> None:
    host = Host()
    out = host.plan(*(step(f"move-{n}", vm_id) for n, vm_id in enumerate(VMS)))
    assert len(of(ev.StartMigration, out)) == 2
    assert not of(ev.StartMigration, host.wait(20))
    host.tell(ev.MigrationEnded(step_id="move-0", moved=True))
    assert len(of(ev.StartMigration, host.wait(3))) == 1


def test_a_turn_that_never_comes_ends_with_the_deadline() -> None:
    host = Host()
    moves = [step(f"move-{n}", vm_id, deadline_ns=host.now + 15 * NS_PER_S) for n, vm_id in enumerate(VMS)]
    host.plan(*moves)
    host.wait(20)
    assert [(o.step.id, o.code) for o in host.outcomes()] == [("move-2", RefusalCode.MIGRATION_BUSY)]


def test_progress_is_a_falling_minimum() -> None:
    host = started(Host())
    for left in range(100, 0, -1):
        assert not of(ev.AbortMigration, host.wait(5, left=left * MIB))


def test_no_progress_widens_then_gives_up() -> None:
    host = started(Host(), value=100 * MBIT)
    host.wait(5, left=MIB)
    out = host.wait(60, left=2 * MIB)
    assert [i for i in out if isinstance(i, ev.TuneMigration)] == [ev.TuneMigration(vm_id="vm-1", bits_per_s=800 * MBIT)]
    assert not of(ev.AbortMigration, host.log)
    assert of(ev.AbortMigration, host.wait(61, left=2 * MIB))
    host.tell(ev.MigrationEnded(step_id="move-1", moved=False, detail="job canceled by client"))
    assert (host.outcome().state, host.outcome().code) == (OutcomeState.UNDONE, RefusalCode.NOT_CONVERGING)


def test_wobble_at_the_bottom_is_no_progress() -> None:
    host = started(Host())
    for n in range(80):
        host.wait(1, left=10 * MIB - n * 1024)
    assert of(ev.AbortMigration, host.log)


def passes(host: Host, tops: list[int], seconds: int) -> None:
    """Passes of so many seconds each over `tops` MiB, as QEMU shows them: each falls to next to nothing."""
    for number, top in enumerate(tops, 1):
        for second in range(seconds):
            host.wait(1)
            host.progress(memory_remaining_bytes=top * MIB * (seconds - second) // seconds, iteration=number)


def test_passes_that_shrink_are_progress() -> None:
    host = started(Host())
    host.progress(memory_remaining_bytes=0, iteration=0)  # QEMU, before the first pass
    passes(host, [1000, 500, 250, 125, 60, 30, 15], seconds=50)
    assert not of(ev.AbortMigration, host.log)


def test_passes_that_do_not_are_none_however_low_each_ends() -> None:
    host = started(Host())
    passes(host, [1000, 400, 400, 399], seconds=30)
    assert of(ev.AbortMigration, host.log)


def test_one_long_pass_is_progress_while_it_falls() -> None:
    host = started(Host())
    passes(host, [1000], seconds=400)
    assert not of(ev.AbortMigration, host.log)


def test_a_guest_that_outruns_the_move_gets_it_all_bandwidth_at_once() -> None:
    host = started(Host(), value=80 * MBIT)
    rates = [
        host.progress(memory_remaining_bytes=MIB, dirty_pages_per_s=10_000, memory_bits_per_s=80 * MBIT, iteration=n) for n in (1, 2, 3)
    ]
    assert [len(of(ev.TuneMigration, out)) for out in rates] == [0, 1, 0]


def test_a_silent_migrator_is_no_progress_either() -> None:
    host = started(Host())
    assert of(ev.AbortMigration, host.wait(61))


def test_the_longest_time_is_the_longest() -> None:
    host = started(Host())
    for left in range(599, 0, -1):
        host.wait(1, left=left * MIB)
    assert not of(ev.AbortMigration, host.log)
    assert of(ev.AbortMigration, host.wait(1, left=0))
    host.tell(ev.MigrationEnded(step_id="move-1", moved=False))
    assert (host.outcome().state, host.outcome().code) == (OutcomeState.UNDONE, RefusalCode.STEP_EXPIRED)


def test_an_abort_that_comes_too_late_is_a_move() -> None:
    host = started(Host())
    assert of(ev.AbortMigration, host.wait(61))
    host.tell(ev.MigrationEnded(step_id="move-1", moved=True))
    assert (host.outcome().state, host.outcome().code) == (OutcomeState.VERIFIED, None)


def test_an_abort_is_repeated_until_the_move_has_ended() -> None:
    host = started(Host())
    host.wait(60)
    assert 3 <= len(of(ev.AbortMigration, host.wait(20))) <= 5


def test_the_mode_off_gives_up() -> None:
    host = started(Host())
    host.tell(ev.ModeOrdered(mode=Mode.OFF))
    assert of(ev.AbortMigration, host.wait(1))
    host.tell(ev.MigrationEnded(step_id="move-1", moved=False, detail="canceled"))
    assert (host.outcome().state, host.outcome().code) == (OutcomeState.UNDONE, RefusalCode.MODE_FORBIDS)


def test_the_kill_switch_gives_up_at_once_and_blames_nobody() -> None:
    host = started(Host())
    assert of(ev.AbortMigration, host.tell(ev.PauseOrdered(paused=True, by="owner")))
    host.tell(ev.MigrationEnded(step_id="move-1", moved=False, detail="canceled"))
    assert (host.outcome().state, host.outcome().code) == (OutcomeState.UNDONE, RefusalCode.PAUSED)
    assert not of(ev.StartMigration, host.plan(step("move-2")))
    host.tell(ev.PauseOrdered(paused=False, by="owner"))
    assert of(ev.StartMigration, host.plan(step("move-3")) + host.wait(3))  # no back-off


def test_a_newer_plan_does_not_stop_a_move() -> None:
    host = started(Host())
    host.plan()
    assert not of(ev.AbortMigration, host.wait(5, left=MIB))
    host.tell(ev.MigrationEnded(step_id="move-1", moved=True))
    assert host.outcome().state is OutcomeState.VERIFIED


def test_observe_shadows() -> None:
    host = Host()
    host.tell(ev.ModeOrdered(mode=Mode.OBSERVE))
    assert not of(ev.StartMigration, host.plan(step()))
    assert host.outcome().state is OutcomeState.SHADOWED


@pytest.mark.parametrize(
    ("code", "state"), [(None, OutcomeState.FAILED), (RefusalCode.NOT_CAPABLE, OutcomeState.REFUSED)], ids=["failed", "refused"]
)
def test_a_failure_backs_the_vm_off(code: RefusalCode | None, state: OutcomeState) -> None:
    host = started(Host())
    host.tell(ev.MigrationEnded(step_id="move-1", moved=False, code=code, detail="libvirt says no"))
    assert (host.outcome().state, host.outcome().code) == (state, code)
    assert "libvirt says no" in host.outcome().detail
    assert not of(ev.StartMigration, host.plan(step("move-2")) + host.wait(25))
    assert of(ev.StartMigration, host.wait(10))


def test_paused_for_the_switch_over_is_not_gone() -> None:
    host = started(Host())
    host.here["vm-1"] = domain("vm-1", running=False)
    host.inventory()
    host.here["vm-1"] = domain("vm-1")
    host.inventory()
    assert not host.outcomes()
    quota = msgspec.structs.replace(step("quota"), kind=StepKind.CPU_QUOTA, value=2000, target="")
    host.sample()
    assert not of(ev.SubmitStep, host.plan(quota))


def test_gone_before_the_call_returned() -> None:
    host = started(Host())
    del host.here["vm-1"]
    host.inventory()
    assert not host.outcomes()
    host.tell(ev.MigrationEnded(step_id="move-1", moved=True))
    assert host.outcome().state is OutcomeState.VERIFIED


def test_a_vm_that_came_back_can_move_again() -> None:
    host = started(Host())
    host.tell(ev.MigrationEnded(step_id="move-1", moved=True))
    host.inventory()  # still in the inventory that was read meanwhile
    assert not of(ev.StartMigration, host.plan(step("move-2", target="h3")) + host.wait(20))
    host.wait(50)
    host.inventory()
    assert of(ev.StartMigration, host.wait(5))


# Where a VM arrives


def test_a_vm_on_its_way_here_is_no_foreign_change_and_its_limits_are_applied_when_it_runs() -> None:
    host = Host("vm-1")
    host.here["vm-7"] = domain("vm-7", running=False)
    host.inventory()
    host.reading = msgspec.structs.replace(CALM, cpu_quota_millicores=UNLIMITED, net_rx_ceil_bits_per_s=UNLIMITED)
    host.wait(6)  # libvirt has set nothing yet
    host.here["vm-7"] = domain("vm-7")
    host.inventory()
    host.tell(ev.LimitsArrived(vm_id="vm-7", limits=Allocation(cpu_quota_millicores=1500, net_rx_bits_per_s=50 * MBIT)))
    host.log.clear()
    host.reading = msgspec.structs.replace(CALM, net_rx_ceil_bits_per_s=UNLIMITED)
    host.wait(6)
    told = [note.fields["vm"] for note in of(ev.Note, host.log) if isinstance(note, ev.Note) and note.event == "foreign_change"]
    assert "vm-7" not in told
    submitted = {i.step.kind for i in host.log if isinstance(i, ev.SubmitStep) and i.step.vm_id == "vm-7"}
    assert submitted == {StepKind.NET_RX}


# After a restart


def test_open_and_gone_has_moved() -> None:
    host = started(Host())
    del host.here["vm-1"]
    fresh = host.restarted()
    assert not of(ev.StartMigration, fresh.log)
    assert (fresh.outcome().step.id, fresh.outcome().state) == ("move-1", OutcomeState.VERIFIED)


def test_open_and_running_on_is_watched_to_its_end() -> None:
    fresh = started(Host()).restarted()
    assert of(ev.WatchMigration, fresh.log)
    fresh.wait(40, left=GIB)
    fresh.inventory()
    fresh.inventory()
    assert not fresh.outcomes()
    fresh.tell(ev.MigrationProgressed(vm_id="vm-1", progress=None))
    fresh.inventory()
    assert not fresh.outcomes()
    del fresh.here["vm-1"]
    fresh.inventory()
    assert fresh.outcome().state is OutcomeState.VERIFIED
    assert not of(ev.StartMigration, fresh.log)


def test_open_and_no_job_has_failed_and_is_not_begun_again() -> None:
    fresh = started(Host()).restarted()
    fresh.tell(ev.MigrationProgressed(vm_id="vm-1", progress=None))
    fresh.inventory()
    fresh.inventory()
    assert fresh.outcome().state is OutcomeState.FAILED
    assert of(ev.TakenUp, fresh.log)
    fresh.plan(step())
    assert fresh.outcomes()[-1].code is RefusalCode.STEP_DUPLICATE
    assert not of(ev.StartMigration, fresh.log + fresh.wait(60))


def test_found_open_it_is_given_up_like_any_other() -> None:
    fresh = started(Host()).restarted()
    out = fresh.wait(61, left=GIB)
    assert of(ev.AbortMigration, out)
    fresh.tell(ev.MigrationProgressed(vm_id="vm-1", progress=None))
    fresh.inventory()
    fresh.inventory()
    assert (fresh.outcome().state, fresh.outcome().code) == (OutcomeState.UNDONE, RefusalCode.NOT_CONVERGING)


EVENTS = st.one_of(
    st.tuples(st.just("plan"), st.sampled_from(VMS), st.sampled_from(["h1", "h2", "h3", "h9"])),
    st.tuples(st.just("tick"), st.integers(1, 200), st.none()),
    st.tuples(st.just("progress"), st.sampled_from(VMS), st.none() | st.integers(0, GIB)),
    st.tuples(st.just("ended"), st.integers(0, 8), st.booleans()),
    st.tuples(st.just("lost"), st.sampled_from(VMS), st.booleans()),
    st.tuples(st.just("mode"), st.sampled_from(Mode), st.none()),
    st.tuples(st.just("restart"), st.none(), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_started_once_ended_once_never_two_of_a_vm(events: list[tuple[str, object, object]]) -> None:
    host, log, number = Host(), [], 0
    for what, a, b in events:
        if what == "plan":
            host.plan(step(f"move-{number}", str(a), str(b)))
            number += 1
        elif what == "tick":
            host.wait(5)
            host.now += int(a) * NS_PER_S  # type: ignore[call-overload]
            host.tell(ev.Tick())
        elif what == "progress":
            progress = None if b is None else MigrationProgress(memory_remaining_bytes=int(b))  # type: ignore[call-overload]
            host.tell(ev.MigrationProgressed(vm_id=str(a), progress=progress))
        elif what == "ended":
            host.tell(ev.MigrationEnded(step_id=f"move-{a}", moved=bool(b)))
        elif what == "lost":
            host.here.pop(str(a), None)
            if b:
                host.here[str(a)] = domain(str(a))
            host.inventory()
        elif what == "mode":
            host.tell(ev.ModeOrdered(mode=Mode(str(a))))
        else:
            log += host.log
            host = host.restarted()
        assert host.core.in_flight <= CONFIG.max_outgoing
    log += host.log
    begun = Counter(i.step.id for i in log if isinstance(i, ev.StartMigration))
    intents = Counter(i.entry.step.id for i in log if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Intent))
    ended = Counter(i.entry.outcome.step.id for i in log if isinstance(i, ev.WriteJournal) and isinstance(i.entry, ev.Closed))
    assert begun == intents
    assert set(begun.values()) <= {1}
    assert set(ended.values()) <= {1}
    assert all(i.uri.startswith(("qemu+tls://h2", "qemu+tls://h3")) for i in log if isinstance(i, ev.StartMigration))
    under_way: set[str] = set()
    for instruction in log:
        if isinstance(instruction, ev.StartMigration):
            assert instruction.step.vm_id not in under_way
            under_way.add(instruction.step.vm_id)
        elif isinstance(instruction, ev.WriteJournal) and isinstance(instruction.entry, ev.Closed):
            if instruction.entry.outcome.step.id in begun:
                under_way.discard(instruction.entry.outcome.step.vm_id)
        elif isinstance(instruction, ev.SubmitStep):
            assert instruction.step.vm_id not in under_way
