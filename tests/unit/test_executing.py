"""Execution between placement and plans: who may move, what is remembered, what is stored before what is sent, hosts asleep and awake."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from forecast_blocks import forecast_block
from placed_moves import placed
from plain_host import plain_capacity

from coordinator import cycle as cy
from coordinator.cycle import DecisionCycle
from coordinator.executing import (
    BOOK,
    MEMORY,
    Execution,
    ExecutionPolicy,
    FailedPair,
    MoveMemory,
    StoreDocument,
    StoreMigration,
    SwitchPower,
)
from coordinator.fleet import Fleet
from coordinator.migration_plan import MigrationPlan, Phase, Status, WaveLimits
from coordinator.model import N_RESOURCES
from coordinator.placement.explain.plan import hold
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.fleet.site import DEFAULT_SITE, Site
from coordinator.planning.sleep import HostPower, Power, PowerBook, PowerPolicy, PowerTold
from coordinator.planning.waves import Aborted, Approved
from coordinator.settings import execution_policy
from coordinator.sizing.policy import SizingPolicy
from shared.config import CoordinatorConfig, CycleConfig, PlacementConfig
from shared.messages import Hello, Inventory, Outcomes
from shared.model import Capabilities, Domain, HostCapacity, HostSample, Mode, Policy, VmSample
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import CPU, GIB, HORIZON_STEPS, NS_PER_S
from shared.units import MEMORY as MEMORY_AT

S = NS_PER_S
T0 = 1_700_000_100 * S
CAPACITY: HostCapacity = plain_capacity(cpu_millicores=8_000, memory_bytes=64 * GIB, net_bits_per_s=10**10)
POLICY = ExecutionPolicy(
    execute=True,
    always=True,
    limits=WaveLimits(client_share=1.0),
    power=PowerPolicy(spare_hosts=0, empty_s=60.0, repaid_s=0.0, margin_s=60.0, lead_s=120.0),
)


def domain(vm_id: str, **changes: object) -> Domain:
    values: dict[str, object] = {"capabilities": Capabilities(migrate=None), "policy": Policy(client="c")}
    return Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=8 * GIB, **(values | changes))  # type: ignore[arg-type]


class Run:
    """A cycle over hosts of VMs, with a forecast; `out` collects its instructions."""

    def __init__(
        self,
        policy: ExecutionPolicy = POLICY,
        mode: Mode = Mode.PREDICTIVE,
        cpu: float = 500.0,
        switchable: bool = False,
        site: Site = DEFAULT_SITE,
    ) -> None:
        hosts = {"a": ["v1", "v2"], "b": ["v3"], "c": []}
        self.now_ns, self.out = T0, []
        self.site = site
        self.execution = Execution(policy, dict.fromkeys(hosts) if switchable else {})
        self.cycle = DecisionCycle(CycleConfig(aggregates=False), SizingPolicy(), epoch=3, execution=self.execution)
        for host_id, vm_ids in hosts.items():
            self.hello(host_id, mode)
            self.inventory(host_id, *vm_ids)
        vm_ids = ("v1", "v2", "v3")
        mean = np.zeros((3, N_RESOURCES, HORIZON_STEPS), np.float32)
        mean[:, CPU], mean[:, MEMORY_AT] = cpu, GIB
        self.cycle.forecast = forecast_block(vm_ids, T0 // S, mean)

    def hello(self, host_id: str, mode: Mode = Mode.PREDICTIVE) -> None:
        hello = Hello(host_id=host_id, boot_id="b", agent_version="0", wall_ns=0, capacity=CAPACITY, mode=mode, mode_pinned=False)
        self.handle(cy.AgentSaid(host_id=host_id, message=hello))

    def inventory(self, host_id: str, *vm_ids: str) -> None:
        self.handle(cy.AgentSaid(host_id=host_id, message=Inventory(domains=tuple(map(domain, vm_ids)))))
        cells = {
            vm_id: VmSample(cpu_ready_permille=20, psi_memory_some_permille=0, memory_allocated_bytes=GIB, vcpus=2) for vm_id in vm_ids
        }
        at_ns = self.now_ns
        sample = HostSample(wall_ns=at_ns, monotonic_ns=at_ns, period_ns=5 * S, vms=cells)
        self.handle(cy.SamplesArrived(host_id=host_id, samples=(sample,)))

    def handle(self, event: cy.Event) -> list[cy.Instruction]:
        found = self.cycle.handle(event, self.now_ns)
        self.out += found
        return found

    def tick(self, seconds: float = 1.0) -> list[cy.Instruction]:
        self.now_ns += int(seconds * S)
        return self.handle(cy.Tick())

    def placed(self, *moves: tuple[str, str, str]) -> list[cy.Instruction]:
        request = PlacementRequest(
            hosts=self.cycle.fleet.view(self.cycle.bucket, self.now_ns),
            forecast=self.cycle.forecast,
            asleep=self.execution.asleep,
            site=self.site,
        )
        return self.handle(cy.PlacementReady(placed=placed(request, *moves)))

    def outcome(self, host_id: str, step: Step, state: OutcomeState = OutcomeState.VERIFIED) -> list[cy.Instruction]:
        outcome = Outcome(step=step, state=state, detail="as told", started_ns=self.now_ns, finished_ns=self.now_ns)
        return self.handle(cy.AgentSaid(host_id=host_id, message=Outcomes(boot_id="b", sequence=1, outcomes=(outcome,))))

    @property
    def plan(self) -> MigrationPlan:
        assert self.execution.plan is not None
        return self.execution.plan


def plans(instructions: list[cy.Instruction]) -> list[Plan]:
    return [each.plan for each in instructions if isinstance(each, cy.SendPlan)]


def test_a_move_is_stored_before_it_is_sent() -> None:
    run = Run()
    assert [type(each) for each in run.placed(("v1", "a", "b"))] == [StoreMigration]
    out = run.tick()
    assert [type(each) for each in out if isinstance(each, StoreMigration | cy.SendPlan)] == [StoreMigration, cy.SendPlan]
    (plan,) = plans(out)
    (step,) = plan.steps
    assert (plan.host_id, plan.epoch, plan.sequence) == ("a", 3, 1)
    assert (step.kind, step.vm_id, step.target, step.value, step.reason) == (StepKind.MIGRATE, "v1", "b", -1, "placement")
    assert step.id == run.plan.moves[0].step_id


def test_a_move_whose_plan_never_reached_its_host_is_asked_for_again() -> None:
    run = Run()
    run.placed(("v1", "a", "b"))
    (plan,) = plans(run.tick())
    assert [type(each) for each in run.handle(cy.PlanUnsent(plan=plan))] == [StoreMigration]
    assert (run.plan.moves[0].phase, run.execution.memory.failed) == (Phase.QUEUED, ())
    (again,) = plans(run.tick(31))
    assert (again.steps[0].vm_id, again.steps[0].id) == ("v1", run.plan.moves[0].step_id) and run.plan.moves[0].tries == 2
    assert run.handle(cy.PlanUnsent(plan=plan)) == [], "of an earlier try"


def test_from_the_first_word_to_the_end() -> None:
    run = Run()
    run.placed(("v1", "a", "b"))
    (plan,) = plans(run.tick())
    run.outcome("a", plan.steps[0])
    run.inventory("b", "v1", "v3")
    run.inventory("a", "v2")
    assert run.plan.moves[0].phase is Phase.SETTLING
    out = run.tick(61)
    assert run.plan.status is Status.DONE
    assert run.execution.cooling(run.now_ns) == {"v1"}
    (document,) = [each for each in out if isinstance(each, StoreDocument)]
    assert document.name == MEMORY
    assert run.placed(("v1", "b", "c")) == []  # it has moved of late


def test_a_plan_repeats_what_else_is_open_at_its_host() -> None:
    run = Run()
    quota = Step(id="3-1-0", vm_id="v2", kind=StepKind.CPU_QUOTA, value=2000, before=1000, deadline_ns=T0 + 500 * S)
    late = Step(id="3-1-1", vm_id="v2", kind=StepKind.CPU_SHARES, value=2000, before=1000, deadline_ns=T0)
    record = run.cycle.fleet.host("a")
    record.plan_sequence, record.open_steps = 1, {step.id: step for step in (quota, late)}
    run.placed(("v1", "a", "b"))
    (plan,) = plans(run.tick())
    assert plan.sequence == 2
    assert [(step.id, step.kind) for step in plan.steps] == [(run.plan.moves[0].step_id, StepKind.MIGRATE), ("3-2-0", StepKind.CPU_QUOTA)]
    run.outcome("a", plan.steps[1])
    assert list(record.open_steps) == [plan.steps[0].id]


def test_what_failed_is_not_tried_again_for_a_while() -> None:
    run = Run()
    run.placed(("v1", "a", "b"))
    (plan,) = plans(run.tick())
    out = run.outcome("a", plan.steps[0], OutcomeState.FAILED)
    assert {type(each) for each in out} == {cy.StoreOutcomes, StoreMigration, StoreDocument}
    assert ("v1", "b") in run.execution.forbidden(run.now_ns)
    run.tick()
    assert (run.plan.status, run.execution.replan) == (Status.DONE, "0 of 1 moves done")
    assert run.placed(("v1", "a", "b")) == []
    assert [type(each) for each in run.placed(("v1", "a", "c"))] == [StoreMigration]
    assert run.execution.forbidden(run.now_ns + 21_601 * S) == frozenset()


def test_only_predictive_hosts_send_and_what_cannot_migrate_stays() -> None:
    assert Run(mode=Mode.REACTIVE).placed(("v1", "a", "b")) == []
    run = Run()
    run.handle(
        cy.AgentSaid(host_id="a", message=Inventory(domains=(domain("v1", capabilities=Capabilities(migrate="raw disk")), domain("v2"))))
    )
    run.placed(("v1", "a", "b"), ("v2", "a", "b"))
    assert [move.vm_id for move in run.plan.moves] == ["v2"]
    assert run.plan.dropped == {"v1": "raw disk"}


def test_advice_stays_advice() -> None:
    run = Run(replace(POLICY, execute=False), switchable=True)
    assert run.placed(("v1", "a", "b")) == []
    assert run.cycle.placed is not None and run.cycle.placed.plan.moves
    assert not [each for each in run.tick(1000) if isinstance(each, StoreMigration | SwitchPower | cy.SendPlan)]
    assert run.execution.plan is None


def test_a_plan_that_waits_is_replaced_by_a_newer_one_and_one_that_runs_is_not() -> None:
    run = Run(replace(POLICY, always=False))
    run.placed(("v1", "a", "b"))
    first = run.plan
    assert run.placed(("v1", "a", "b")) == []  # the same again
    run.now_ns += S
    aborted, fresh = run.placed(("v2", "a", "b"))
    assert isinstance(aborted, StoreMigration)
    assert (aborted.plan.id, aborted.plan.status) == (first.id, Status.ABORTED)
    assert isinstance(fresh, StoreMigration)
    run.out += run.cycle.order_migration(Approved(actor="ops"), run.now_ns)
    assert plans(run.tick())
    assert run.placed(("v3", "b", "c")) == []
    assert [move.vm_id for move in run.plan.moves] == ["v2"]


def test_a_placement_that_holds_everything_withdraws_what_waits_and_not_what_runs() -> None:
    held = cy.PlacementReady(placed=hold(T0 // S, RefusalCode.NO_TARGET, "all hosts are in maintenance"))
    run = Run(replace(POLICY, always=False))
    run.placed(("v1", "a", "b"))
    (stored,) = run.handle(held)
    assert isinstance(stored, StoreMigration)
    assert stored.plan.status is Status.ABORTED
    assert run.handle(held) == []
    run = Run()
    run.placed(("v1", "a", "b"))
    assert run.handle(held) == []
    assert run.plan.status is Status.RUNNING


def test_an_abort_takes_back_what_has_not_begun() -> None:
    run = Run()
    run.placed(("v1", "a", "b"))
    run.tick()
    (withdrawn,) = plans(run.cycle.order_migration(Aborted(actor="ops"), run.now_ns))
    assert (withdrawn.host_id, withdrawn.sequence, withdrawn.steps) == ("a", 2, ())
    assert run.plan.status is Status.STOPPING


def test_after_a_restart_nothing_is_sent_again() -> None:
    run = Run()
    run.placed(("v1", "a", "b"), ("v3", "b", "c"))
    steps = {step.vm_id: step for plan in plans(run.tick()) for step in plan.steps}
    assert set(steps) == {"v1", "v3"}
    stored = [each.plan for each in run.out if isinstance(each, StoreMigration)][-1]
    documents = {MEMORY: f'{{"failed":[{{"vm_id":"v2","host_id":"b","until_ns":{T0 + 99 * S},"why":"x"}}]}}'}
    again = Run()
    told = Outcome(step=steps["v1"], state=OutcomeState.VERIFIED)
    orders = again.execution.restore(stored, documents, [told], T0)
    assert [type(each) for each in again.cycle.resume_migration(orders, T0)] == [StoreMigration]
    assert [move.phase for move in again.plan.moves] == [Phase.SETTLING, Phase.SENT]
    assert again.execution.memory == MoveMemory(failed=(FailedPair(vm_id="v2", host_id="b", until_ns=T0 + 99 * S, why="x"),))
    assert plans(again.tick()) == []


def test_a_restarted_coordinator_believes_a_host_once_it_has_said_what_runs_there() -> None:
    run = Run()
    run.placed(("v1", "a", "b"), ("v2", "a", "c"))
    steps = {step.vm_id: step for plan in plans(run.tick()) for step in plan.steps}
    stored = [each.plan for each in run.out if isinstance(each, StoreMigration)][-1]
    again = Run()
    again.cycle.fleet = Fleet()
    homes = {"v1": "a", "v2": "a", "v3": "b"}  # as the registry has them: both moves ended while nobody wrote it down
    again.cycle.fleet.restore([(host, CAPACITY) for host in "abc"], {vm_id: (host, domain(vm_id)) for vm_id, host in homes.items()})
    again.execution.restore(stored, {}, [Outcome(step=step, state=OutcomeState.VERIFIED) for step in steps.values()], T0)
    for host_id in "abc":
        again.hello(host_id)
    again.tick(1000.0)
    assert {move.phase for move in again.plan.moves} == {Phase.SETTLING}, "the start took longer than VMs are waited for"
    for host_id, vm_ids in (("a", ()), ("b", ("v3", "v1")), ("c", ("v2",))):
        again.inventory(host_id, *vm_ids)
    again.tick()
    assert {move.phase for move in again.plan.moves} == {Phase.DONE}


def asleep(run: Run, host_id: str = "c") -> None:
    run.execution.book = PowerBook(hosts={host_id: HostPower(state=Power.ASLEEP)})
    run.handle(cy.HostLost(host_id=host_id, why="asleep"))


def switched(instructions: list[cy.Instruction]) -> list[tuple[str, bool]]:
    return [(each.order.host_id, each.order.wake) for each in instructions if isinstance(each, SwitchPower)]


def test_an_empty_host_sleeps_after_its_time_and_its_book_is_stored_first() -> None:
    run = Run(switchable=True)
    run.placed()
    assert switched(run.tick()) == []
    out = run.tick(61)
    assert switched(out) == [("c", False)]
    assert [type(each) for each in out if isinstance(each, StoreDocument | SwitchPower)] == [StoreDocument, SwitchPower]
    assert [each.name for each in out if isinstance(each, StoreDocument)] == [BOOK]
    run.handle(PowerTold(host_id="c", wake=False, error="no answer"))
    assert run.execution.book.of("c").state is Power.AWAKE


def test_no_host_sleeps_before_placement_has_spoken() -> None:
    run = Run(switchable=True)
    run.tick()
    assert switched(run.tick(1000)) == []


def test_a_growth_on_its_way_takes_the_room_of_a_move() -> None:
    run = Run()
    grow = Step(id="3-1-0", vm_id="v3", kind=StepKind.MEMORY, value=64 * GIB, before=GIB, deadline_ns=T0 + 500 * S)
    run.cycle.fleet.host("b").open_steps = {grow.id: grow}
    run.placed(("v1", "a", "b"), ("v2", "a", "c"))
    assert [move.vm_id for move in run.plan.moves] == ["v2"]
    assert run.plan.dropped == {"v1": "b has no room for it on the way"}


def test_a_host_that_a_plan_counts_on_stays_awake() -> None:
    run = Run(replace(POLICY, always=False), switchable=True)
    run.placed(("v1", "a", "c"))
    run.tick()
    assert switched(run.tick(61)) == []


def test_demand_that_passes_what_is_awake_wakes_a_host_and_keeps_an_empty_one_awake() -> None:
    run = Run(switchable=True, cpu=500.0)
    asleep(run)
    run.placed()
    assert switched(run.tick()) == []
    run = Run(switchable=True, cpu=5_000.0)
    asleep(run)
    run.placed()
    assert switched(run.tick()) == [("c", True)]
    run = Run(switchable=True, cpu=5_000.0)
    run.placed()
    run.tick()
    assert switched(run.tick(61)) == []
    assert run.execution.awake_why["c"].startswith("needed again after 0 s off")


def test_hosts_that_cannot_be_switched_are_left_alone() -> None:
    run = Run()
    run.placed()
    run.tick()
    assert switched(run.tick(1000)) == []


def test_what_the_settings_say_of_execution() -> None:
    config = CoordinatorConfig(placement=PlacementConfig(execute="execute", wave_vms=3, per_host=1, begin_s=60, seen_s=30))
    policy = execution_policy(config)
    assert (policy.patience.begin_s, policy.patience.seen_s) == (60.0, 30.0)
    assert (policy.execute, policy.always, policy.limits.vms, policy.limits.per_source, policy.moves.block) == (True, False, 3, 1, 3)
    assert not execution_policy(CoordinatorConfig()).execute
