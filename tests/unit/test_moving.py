"""What execution asks of the process: durable documents in order, power switches that answer, and the state back after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from planned_moves import planned_move

from coordinator.executing import MEMORY, Execution, ExecutionPolicy, StoreDocument, StoreMigration, SwitchPower
from coordinator.live_migrations import LiveMigrations
from coordinator.migration_plan import MigrationPlan, Phase, PlannedMove, Status
from coordinator.moving import MoveKeeper
from coordinator.planning.sleep import HostPower, Power, PowerBook, PowerOrder, PowerTold
from coordinator.power import SimulatedSwitch
from coordinator.store.pending import PendingWrites
from coordinator.store.registry import SqlRegistry
from shared.clock import ManualClock
from shared.errors import HostError, Refusal
from shared.metrics import COORDINATOR_METRICS, Metrics
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode

MOVE = planned_move("v1", "a", "b", phase=Phase.SENT, step_id="m1-0-1")
PLAN = MigrationPlan(id="m1", created_ns=5, moves=(MOVE,), status=Status.RUNNING)


class Process:
    """The keeper on a real registry; `told` is what the switch answered."""

    def __init__(self, folder: Path) -> None:
        self.registry = SqlRegistry(f"sqlite:///{folder}/registry.db")
        self.switch = SimulatedSwitch()
        self.metrics = Metrics(COORDINATOR_METRICS)
        self.told: list[object] = []
        self.keeper = MoveKeeper(self.registry, self.switch, self.write, self.told.append, self.metrics)

    def write(self, function: Callable[..., None], *arguments: object, then: Callable[[None], None] | None = None) -> None:
        function(*arguments)
        if then is not None:
            then(None)


def test_a_restart_reads_back_what_was_in_flight(tmp_path: Path) -> None:
    first = Process(tmp_path)
    first.keeper.perform(StoreMigration(plan=PLAN))
    first.keeper.perform(StoreDocument(name=MEMORY, text='{"cooling":{"v9":77}}'))
    step = Step(id="m1-0-1", vm_id="v1", kind=StepKind.MIGRATE, value=-1, target="b", deadline_ns=10**18)
    first.registry.save_outcomes("a", [Outcome(step=step, state=OutcomeState.VERIFIED)])  # stored, and the process died
    first.registry.close()

    again, execution = Process(tmp_path), Execution(ExecutionPolicy(execute=True))
    orders = again.keeper.restore(execution, 9)
    assert [type(order) for order in orders] == [StoreMigration]
    assert execution.plan is not None
    assert execution.plan.moves[0].phase is Phase.SETTLING
    assert execution.memory.cooling == {"v9": 77}
    again.registry.close()


def test_an_empty_registry_restores_nothing(tmp_path: Path) -> None:
    process, execution = Process(tmp_path), Execution(ExecutionPolicy(execute=True))
    assert process.keeper.restore(execution, 9) == []
    assert execution.plan is None
    process.registry.close()


def test_power_orders_are_answered_and_counted(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.switch.broken.add("b")

    async def run() -> None:
        process.keeper.perform(SwitchPower(order=PowerOrder(host_id="a", wake=False, why="empty")))
        process.keeper.perform(SwitchPower(order=PowerOrder(host_id="b", wake=True, why="needed")))
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        await process.keeper.close()

    asyncio.run(run())
    assert process.told == [
        PowerTold(host_id="a", wake=False),
        PowerTold(host_id="b", wake=True, error="power of b: does not answer (simulated)"),
    ]
    shown = process.metrics.render().decode()
    assert 'tidegate_power_orders_total{order="sleep",outcome="accepted"} 1' in shown
    assert 'tidegate_power_orders_total{order="wake",outcome="failed"} 1' in shown
    process.registry.close()


def test_a_power_order_waits_for_the_writes_before_it(tmp_path: Path) -> None:
    process = Process(tmp_path)

    async def run() -> None:
        writes, away = PendingWrites(lambda _: None, process.told.append, retry_first_s=0.005), True

        def store() -> None:
            if away:
                raise HostError("the database is away")

        keeper = MoveKeeper(process.registry, process.switch, writes.add, process.told.append, process.metrics)
        writes.add(store)
        keeper.perform(SwitchPower(order=PowerOrder(host_id="a", wake=False, why="empty")))
        async with asyncio.timeout(20):
            while writes.failures < 3:  # noqa: ASYNC110  # the queue tells of troubles, not of every try
                await asyncio.sleep(0.005)
            assert process.told == [], "nothing durable says that this host is to sleep"
            away = False
            while not process.told:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await keeper.close()
        assert await writes.close(10) == 0

    asyncio.run(run())
    assert process.told == [PowerTold(host_id="a", wake=False)]
    process.registry.close()


def test_ended_moves_are_counted_once_and_hosts_by_their_power(tmp_path: Path) -> None:
    process, execution = Process(tmp_path), Execution(ExecutionPolicy(execute=True))
    process.keeper.perform(StoreMigration(plan=PLAN))
    ended = MigrationPlan(id="m1", created_ns=5, moves=(PlannedMove(**{**as_dict(MOVE), "phase": Phase.DONE}),), status=Status.DONE)
    process.keeper.perform(StoreMigration(plan=ended))
    assert process.registry.migrations(9) == [ended]
    execution.book = PowerBook(hosts={"a": HostPower(state=Power.ASLEEP)})
    process.keeper.look(execution, ["a", "b"])
    assert execution.switchable == {"a": None, "b": None}
    shown = process.metrics.render().decode()
    assert 'tidegate_migrations_total{phase="done"} 1' in shown
    assert 'tidegate_hosts_power{state="asleep"} 1' in shown
    assert 'tidegate_hosts_power{state="awake"} 1' in shown
    process.registry.close()


def as_dict(move: PlannedMove) -> dict[str, object]:
    return {name: getattr(move, name) for name in move.__struct_fields__}


class Cycle:
    """The part of the cycle that the view asks."""

    def __init__(self, plan: MigrationPlan | None) -> None:
        self.execution = Execution(ExecutionPolicy(execute=True), {"a": None, "c": "no address"})
        self.execution.plan = plan
        self.execution.awake_why = {"a": "a plan counts on it"}

    def order_migration(self, event: object, now_ns: int) -> list[object]:
        return list(self.execution.order(event, now_ns))  # type: ignore[arg-type]


class Running:
    """The part of the process that the view asks."""

    def __init__(self, plan: MigrationPlan | None) -> None:
        self.cycle, self.clock = Cycle(plan), ManualClock(10**9)
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.carried: list[object] = []

    def carry_out(self, instructions: list[object]) -> None:
        self.carried += instructions

    def audit(self, event: str, **fields: object) -> None:
        self.audited.append((event, fields))


def test_an_operator_approves_and_aborts_with_an_audit_line() -> None:
    proposed = MigrationPlan(id="m1", created_ns=5, moves=(PlannedMove(**{**as_dict(MOVE), "phase": Phase.WAITING}),))
    running = Running(proposed)
    view = LiveMigrations(running)  # type: ignore[arg-type]
    state = asyncio.run(view.order_migration("m1", "approve", "ops"))
    assert state.plan is not None
    assert (state.plan.status, state.plan.actor) == (Status.RUNNING, "ops")
    assert running.audited == [("approve_migration", {"actor": "ops", "plan": "m1", "moves": 1})]
    assert [(host.host_id, host.state, host.stays) for host in state.power] == [("a", "awake", "a plan counts on it")]
    with pytest.raises(Refusal) as refused:
        asyncio.run(view.order_migration("m1", "approve", "ops"))
    assert refused.value.code is RefusalCode.NOTHING_TO_DO
    state = asyncio.run(view.order_migration("m1", "abort", "ops"))
    assert state.plan is not None
    assert state.plan.status is Status.ABORTED
    assert [type(each) for each in running.carried] == [StoreMigration, StoreMigration]


@pytest.mark.parametrize("plan", [None, PLAN])
def test_a_word_on_a_plan_that_is_not_the_newest(plan: MigrationPlan | None) -> None:
    with pytest.raises(Refusal) as refused:
        asyncio.run(LiveMigrations(Running(plan)).order_migration("m0", "abort", "ops"))  # type: ignore[arg-type]
    assert refused.value.code is RefusalCode.PRECONDITION_CHANGED
