"""Waves of migrations: (state, event, now) → (state, instructions), compared instruction by instruction."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_moves import planned_move

from coordinator.migration_plan import OPEN, OVER, MigrationPlan, Patience, Phase, PlannedMove, Status, WaveLimits
from coordinator.planning import waves
from coordinator.planning.waves import (
    Aborted,
    Approved,
    Cool,
    Instruction,
    Looked,
    Remember,
    Replan,
    SendMove,
    StepTold,
    Withdraw,
    advance,
)
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

S = NS_PER_S
T0 = 1_000_000 * S
FOREVER = T0 + 100_000 * S


def move(vm_id: str, source: str = "a", target: str = "b", **changes: object) -> PlannedMove:
    given = {"client": vm_id[0], "racks": ("r1", "r2"), "latest_ns": FOREVER}
    return planned_move(vm_id, source, target, **(given | changes))


class Fleet:
    """Where VMs are, and the clock; drives one plan."""

    def __init__(self, *moves: PlannedMove, limits: WaveLimits | None = None, approved: bool = True, **patience: object) -> None:
        self.now_ns = T0
        self.at = {each.vm_id: each.source for each in reversed(moves)}
        self.acting = {host for each in moves for host in (each.source, each.target)}
        self.awake = set(self.acting)
        self.strain: dict[str, float] = dict.fromkeys(self.at, 0.05)
        self.client_vms: dict[str, int] = {}
        limits = limits or WaveLimits(client_share=1.0, clients=99, hosts=99, per_source=99, per_target=99)
        self.plan = MigrationPlan(id="m", created_ns=T0, moves=moves, limits=limits, patience=Patience(**patience))  # type: ignore[arg-type]
        if approved:
            assert self.tell(Approved(actor="ops")) == []

    def tell(self, event: waves.Event) -> list[Instruction]:
        self.plan, out = advance(self.plan, event, self.now_ns)
        # the state is a document: it must survive being written and read between any two events
        assert msgspec.json.decode(msgspec.json.encode(self.plan), type=MigrationPlan) == self.plan
        return out

    def look(self, seconds: float = 1.0) -> list[Instruction]:
        self.now_ns += int(seconds * S)
        counts = self.client_vms or {each.client: 99 for each in self.plan.moves}
        seen = Looked(
            at=dict(self.at), acting=frozenset(self.acting), awake=frozenset(self.awake), strain=dict(self.strain), client_vms=counts
        )
        return self.tell(seen)

    def sent(self, seconds: float = 1.0) -> list[str]:
        """VMs whose moves are sent now, and nothing else."""
        out = self.look(seconds)
        assert all(isinstance(each, SendMove) for each in out), out
        return [self.plan.moves[each.number].vm_id for each in out if isinstance(each, SendMove)]

    def number(self, vm_id: str) -> int:
        open_ = [n for n, each in enumerate(self.plan.moves) if each.vm_id == vm_id]
        return next((n for n in open_ if self.plan.moves[n].phase in OPEN), open_[-1])

    def outcome(self, vm_id: str, state: OutcomeState = OutcomeState.VERIFIED, code: RefusalCode | None = None) -> list[Instruction]:
        each = self.plan.moves[self.number(vm_id)]
        if state is OutcomeState.VERIFIED:
            self.at[vm_id] = each.target
        step = Step(id=each.step_id, vm_id=vm_id, kind=StepKind.MIGRATE, value=-1, target=each.target, deadline_ns=FOREVER)
        return self.tell(StepTold(outcome=Outcome(step=step, state=state, code=code, detail="as told")))

    def arrive(self, *vm_ids: str) -> list[Instruction]:
        """They arrive and settle."""
        for vm_id in vm_ids:
            assert self.outcome(vm_id) == []
        return self.look(self.plan.patience.settle_s + 1)

    def phases(self) -> list[str]:
        return [each.phase for each in self.plan.moves]


def test_nothing_begins_without_an_operators_word() -> None:
    fleet = Fleet(move("x1"), approved=False)
    assert fleet.look() == []
    assert fleet.phases() == ["waiting"]
    fleet.tell(Approved(actor="ops"))
    assert (fleet.plan.status, fleet.plan.actor) == (Status.RUNNING, "ops")
    assert fleet.sent() == ["x1"]


def test_one_move_from_its_step_to_its_end() -> None:
    fleet = Fleet(move("x1", latest_ns=T0 + 50 * S))
    (send,) = fleet.look()
    assert send == SendMove(number=0, step_id="m-0-1", deadline_ns=T0 + 50 * S)
    assert fleet.look() == []  # it is not sent twice
    assert fleet.outcome("x1") == []
    assert fleet.phases() == ["settling"]
    assert fleet.look(30) == []  # watched for a minute
    assert fleet.look(31) == [Cool(vm_id="x1", until_ns=fleet.now_ns + 3600 * S)]
    assert (fleet.plan.status, fleet.plan.why) == (Status.DONE, "1 of 1 moves done")
    assert fleet.look() == []


def test_the_next_stage_waits_until_every_move_of_this_one_has_settled() -> None:
    fleet = Fleet(move("x1"), move("x2"), move("x3", "b", "c", stage=1))
    assert fleet.sent() == ["x1", "x2"]
    fleet.arrive("x1")
    assert fleet.phases() == ["done", "sent", "waiting"]
    out = fleet.arrive("x2")
    assert [type(each) for each in out] == [Cool, SendMove]
    assert fleet.phases() == ["done", "done", "sent"]


@pytest.mark.parametrize(
    ("limits", "first"),
    [
        (WaveLimits(vms=2, clients=9, client_share=1.0), ["x1", "x2"]),
        (WaveLimits(hosts=3, clients=9, client_share=1.0, per_source=9), ["x1", "x2"]),
        (WaveLimits(racks=2, clients=9, client_share=1.0), ["x1", "x2", "y1"]),
        (WaveLimits(clients=1, client_share=1.0), ["x1", "x2", "x3"]),
        (WaveLimits(clients=9, client_share=0.02), ["x1", "y1"]),
        (WaveLimits(clients=9, client_share=1.0, per_source=1), ["x1", "x3", "y1"]),
        (WaveLimits(clients=9, client_share=1.0, per_target=1), ["x1", "x2", "x3", "y1"]),
    ],
)
def test_a_wave_touches_no_more_than_it_may(limits: WaveLimits, first: list[str]) -> None:
    moves = (
        move("x1", "a", "b"),
        move("x2", "a", "c"),
        move("x3", "d", "e", racks=("r3", "r4")),
        move("y1", "f", "g"),
    )
    assert Fleet(*moves, limits=limits).sent() == first


def test_slots_within_a_wave_are_used_again() -> None:
    fleet = Fleet(*(move(f"x{i}", "a", f"t{i}") for i in range(3)), limits=WaveLimits(client_share=1.0, per_source=2))
    assert fleet.sent() == ["x0", "x1"]
    fleet.outcome("x0")
    assert fleet.sent() == ["x2"]


def test_a_block_goes_whole_or_not_at_all() -> None:
    together = (move("x1", block=0), move("x2", block=0), move("x3", "a", "c"))
    fleet = Fleet(*together, limits=WaveLimits(vms=2, client_share=0.01))
    assert fleet.sent() == ["x1", "x2"]  # alone it may pass the client's share, not the wave's size
    fleet = Fleet(move("y1", "a", "c"), *together, limits=WaveLimits(vms=2, client_share=1.0))
    assert fleet.sent() == ["y1", "x3"]


def test_a_time_is_kept_and_a_ramp_that_has_begun_ends_the_wait() -> None:
    fleet = Fleet(move("x1", not_before_ns=T0 + 100 * S, latest_ns=T0 + 200 * S), move("x2", "b", "c", stage=1, after=(0,)))
    assert fleet.sent(50) == []
    assert fleet.sent(51) == ["x1"]
    fleet = Fleet(move("x1", latest_ns=T0 + 10 * S), move("x2", "b", "c", stage=1, after=(0,)), move("x3", "d", "e", stage=1))
    fleet.at["x2"] = "b"
    fleet.acting.clear()
    assert fleet.look(5) == []
    fleet.acting = {"a", "b", "d"}
    assert fleet.sent(6) == ["x3"]
    assert [each.why for each in fleet.plan.moves[:2]] == ["it could not begin before its ramp", "counted on x1"]


def test_a_vm_that_has_gone_elsewhere_or_nowhere_is_left_out_at_once() -> None:
    fleet = Fleet(move("x1"), move("x2", "c", "d"), move("x3", "e", "f"))
    fleet.at["x1"] = "z"
    del fleet.at["x2"]
    assert fleet.sent() == ["x3"]
    assert [each.why for each in fleet.plan.moves[:2]] == ["it is on z by now", "it no longer runs on c"]


def test_hosts_that_do_not_answer_hold_a_plan_up_only_so_long() -> None:
    fleet = Fleet(move("x1", "a", "b"), move("x2", "c", "d", stage=1))
    fleet.awake.discard("b")
    assert fleet.look(1) == []
    assert fleet.look(299) == []
    assert fleet.sent(2) == ["x2"]
    assert fleet.plan.moves[0].why == "a or b did not answer for 300 s"
    later = Fleet(move("x1", not_before_ns=T0 + 1000 * S))
    assert later.look(900) == []  # it waits for its time, not for a host
    assert later.sent(101) == ["x1"]


def test_only_acting_sources_and_waking_targets() -> None:
    fleet = Fleet(move("x1"))
    fleet.awake = {"a"}
    assert fleet.sent() == []
    fleet.awake, fleet.acting = {"a", "b"}, {"b"}
    assert fleet.sent() == []
    fleet.acting.add("a")
    assert fleet.sent() == ["x1"]


def test_the_first_regression_leaves_out_what_hangs_on_it_and_is_remembered() -> None:
    fleet = Fleet(move("x1"), move("x2", "c", "d"), move("x3", "e", "a", stage=1, after=(0,)), move("x4", "f", "e", stage=2, after=(2,)))
    fleet.look()
    (remembered,) = fleet.outcome("x1", OutcomeState.FAILED)
    assert remembered == Remember(vm_id="x1", host_id="b", until_ns=T0 + S + 21_600 * S, why="failed: as told")
    assert fleet.phases() == ["failed", "sent", "skipped", "skipped"]
    out = fleet.arrive("x2")
    assert [type(each) for each in out] == [Cool, Replan]
    assert (fleet.plan.status, fleet.plan.regressions) == (Status.DONE, 1)


def test_the_second_regression_stops_the_plan_and_what_is_in_flight_ends() -> None:
    fleet = Fleet(move("x1"), move("x2", "c", "d"), move("x3", "e", "f"), move("x4", "g", "h", stage=1))
    fleet.look()
    fleet.outcome("x1", OutcomeState.UNDONE)
    out = fleet.outcome("x2", OutcomeState.FAILED)
    assert [type(each) for each in out] == [Remember, Withdraw]
    assert out[1] == Withdraw(host_id="e")
    assert fleet.plan.status is Status.STOPPING
    assert fleet.phases() == ["failed", "failed", "sent", "skipped"]
    out = fleet.arrive("x3")
    assert [type(each) for each in out] == [Cool, Replan]
    assert fleet.plan.status is Status.STOPPED
    assert "2 regressions" in fleet.plan.why


def test_a_vm_that_fares_worse_where_it_arrived_is_a_regression() -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    fleet.strain["x1"] = 0.14
    assert [type(each) for each in fleet.arrive("x1")] == [Cool]
    fleet = Fleet(move("x1"))
    fleet.look()
    fleet.outcome("x1")
    fleet.strain["x1"] = 0.3
    out = fleet.look(61)
    assert [type(each) for each in out] == [Remember, Replan]
    assert fleet.plan.moves[0].why == "arrived, but waits 30% of the time on b, 5% before"
    assert fleet.plan.regressions == 1


def test_a_vm_of_whose_state_nothing_is_known_is_watched_longer() -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    fleet.outcome("x1")
    del fleet.strain["x1"]
    assert fleet.look(149) == []
    assert [type(each) for each in fleet.look(2)] == [Cool]


def test_verified_but_not_seen_on_the_target() -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    fleet.outcome("x1")
    fleet.at["x1"] = "a"
    assert fleet.look(89) == []
    out = fleet.look(2)
    assert [type(each) for each in out] == [Remember, Replan]
    assert fleet.plan.moves[0].why == "verified, but seen on a after 91 s"


@pytest.mark.parametrize("code", sorted(waves.PASSING))
def test_what_may_pass_is_tried_again_after_a_while_and_not_for_ever(code: RefusalCode) -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    assert fleet.outcome("x1", OutcomeState.REFUSED, code) == []
    assert fleet.look(10) == []
    (again,) = fleet.look(21)
    assert again == SendMove(number=0, step_id="m-0-2", deadline_ns=fleet.now_ns + 120 * S)
    fleet.outcome("x1", OutcomeState.REFUSED, code)
    fleet.look(31)
    assert fleet.outcome("x1", OutcomeState.REFUSED, code) == []  # the third: given up, nobody's fault
    assert fleet.phases() == ["failed"]
    assert fleet.plan.regressions == 0


def test_other_refusals_are_remembered_and_count_as_no_regression() -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    (remembered,) = fleet.outcome("x1", OutcomeState.REFUSED, RefusalCode.TARGET_UNKNOWN)
    assert isinstance(remembered, Remember)
    assert fleet.plan.regressions == 0


@pytest.mark.parametrize("state", [OutcomeState.UNDONE, OutcomeState.REFUSED])
@pytest.mark.parametrize("code", sorted(waves.CALLED_OFF))
def test_a_move_that_the_owner_called_off_is_nobodys_fault(state: OutcomeState, code: RefusalCode) -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    assert fleet.outcome("x1", state, code) == []
    assert (fleet.phases(), fleet.plan.regressions) == (["failed"], 0)


def test_abort() -> None:
    fleet = Fleet(move("x1"), move("x2", "c", "d", stage=1))
    fleet.look()
    assert fleet.tell(Aborted(actor="ops")) == [Withdraw(host_id="a")]
    assert fleet.phases() == ["sent", "skipped"]
    assert [type(each) for each in fleet.arrive("x1")] == [Cool]
    assert (fleet.plan.status, fleet.plan.why) == (Status.ABORTED, "aborted by ops")
    fleet = Fleet(move("x1"), approved=False)
    assert fleet.tell(Aborted(actor="ops")) == []
    assert fleet.plan.status is Status.ABORTED
    assert fleet.tell(Approved(actor="ops")) == []
    assert fleet.plan.status is Status.ABORTED


def test_an_outcome_that_was_lost_shows_in_where_the_vm_is() -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    fleet.at["x1"] = "b"
    assert fleet.look(60) == []
    assert fleet.phases() == ["sent"]  # its outcome may still come
    assert fleet.look(60) == []
    assert fleet.phases() == ["settling"]
    assert [type(each) for each in fleet.look(61)] == [Cool]


def test_a_move_of_which_nobody_ever_speaks_is_lost_and_not_repeated() -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    fleet.acting.discard("a")
    assert fleet.look(10_000) == []  # its agent is silent: nothing is known
    fleet.acting.add("a")
    out = fleet.look()
    assert [type(each) for each in out] == [Remember, Replan]
    assert (fleet.phases(), fleet.plan.regressions) == (["lost"], 0)


def test_an_outcome_of_another_step_or_told_twice_changes_nothing() -> None:
    fleet = Fleet(move("x1"))
    fleet.look()
    before = fleet.plan
    step = Step(id="m-0-9", vm_id="x1", kind=StepKind.MIGRATE, value=-1, target="b", deadline_ns=FOREVER)
    assert fleet.tell(StepTold(outcome=Outcome(step=step, state=OutcomeState.FAILED))) == []
    assert fleet.plan == before
    fleet.outcome("x1")
    before = fleet.plan
    step = msgspec.structs.replace(step, id="m-0-1")
    assert fleet.tell(StepTold(outcome=Outcome(step=step, state=OutcomeState.FAILED))) == []
    assert fleet.plan == before


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_comes_the_plan_ends_and_no_limit_is_passed(data: st.DataObject) -> None:
    """Random outcomes, losses, restarts: at most `vms` in flight, no host beyond its slots, each step sent once, and an end."""
    count = data.draw(st.integers(1, 8))
    hosts = [f"h{i}" for i in range(4)]
    moves = []
    for i in range(count):
        source, target = data.draw(st.permutations(hosts))[:2]
        moves.append(move(f"x{i}", source, target, stage=data.draw(st.integers(0, 2)), after=tuple(range(0, i, 3))))
    limits = WaveLimits(vms=3, hosts=9, clients=9, client_share=1.0, per_source=1, per_target=2)
    fleet = Fleet(*sorted(moves, key=lambda each: each.stage), limits=limits)
    seen: set[str] = set()
    for _ in range(400):
        if fleet.plan.over:
            break
        for each in fleet.look(data.draw(st.sampled_from([1.0, 40.0, 100.0]))):
            if isinstance(each, SendMove):
                assert each.step_id not in seen
                seen.add(each.step_id)
        flying = [each for each in fleet.plan.moves if each.phase is Phase.SENT]
        assert len(flying) <= limits.vms
        for host in hosts:
            assert sum(each.source == host for each in flying) <= limits.per_source
            assert sum(each.target == host for each in flying) <= limits.per_target
        for each in flying:
            fate = data.draw(st.sampled_from(["verified", "verified", "failed", "undone", "refused", "silence"]))
            if fate != "silence":
                code = RefusalCode.VM_BUSY if fate == "refused" else None
                fleet.outcome(each.vm_id, OutcomeState(fate), code)
        assert fleet.plan.regressions <= fleet.plan.patience.regressions + limits.vms
    assert fleet.plan.over
    assert all(each.phase in OVER for each in fleet.plan.moves)
