"""Of the API's double fleet: mode scores, a migration plan that waits for an operator, what sizing sees coming. Invented numbers."""

from __future__ import annotations

from collections.abc import Sequence

from planned_moves import planned_move

from coordinator.migration_plan import MigrationPlan
from coordinator.service import view as vw
from coordinator.service.migrations import HostPowerView, MigrationState
from coordinator.service.sizing import ClientBudget, HostScarcity, SizingView
from coordinator.service.vm_past import PlannedStep, VmHostStay
from shared.errors import Refusal
from shared.model import Mode
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB

START_S = 1_795_300_200  # a Sunday in November 2026, multiple of 300


class RunningDouble:
    """Scores, MigrationView and sizing over invented numbers. `sent` collects what operators asked for."""

    sent: list[tuple[str, object, str]]
    modes: dict[str, Mode]
    now_s: int

    def scores(self) -> vw.Scores:
        def score(mode: Mode, minutes: float, over: float, steps: int) -> vw.ModeScore:
            hosts = [h for h, m in self.modes.items() if m is mode]
            return vw.ModeScore(
                mode=mode,
                hosts=len(hosts),
                vms=sum(home in hosts for home in self.home.values()),
                violation_minutes=minutes + self.cycle / 20,
                violation_depth=0.11 if mode is Mode.REACTIVE else 0.06,
                allocation_over_use=over,
                steps_applied=steps,
                steps_refused=steps // 9,
                pinball=0.041 if mode is Mode.PREDICTIVE else None,
                naive_pinball=0.058,
            )

        modes = (score(Mode.REACTIVE, 214.0, 1.62, 1840), score(Mode.PREDICTIVE, 61.0, 1.55, 1322)) if self.modes else ()
        return vw.Scores(since_s=float(START_S), until_s=float(self.now_s), modes=modes)

    def migration(self) -> MigrationState:
        power = (HostPowerView(host_id="kvm-03", state="asleep", since_s=float(self.now_s), lead_s=180.0, why="silent after its order"),)
        return MigrationState(execute=True, plan=self.migration_plan, failed=(), cooling={"vm-01-01": self.now_s + 60.0}, power=power)

    async def migrations(self, limit: int) -> Sequence[MigrationPlan]:
        return [self.migration_plan][:limit]

    async def order_migration(self, plan_id: str, action: str, actor: str) -> MigrationState:
        if plan_id != self.migration_plan.id:
            raise Refusal(RefusalCode.PRECONDITION_CHANGED, f"migration plan {plan_id!r} is not the newest one")
        self.sent.append((plan_id, action, actor))
        return self.migration()

    async def vm_hosts(self, vm_id: str, limit: int) -> Sequence[VmHostStay]:
        if vm_id not in self.home:
            return []
        here = VmHostStay(host_id=self.home[vm_id], since_s=START_S - 7200.0, until_s=None)
        return [here, VmHostStay(host_id="kvm-99", since_s=START_S - 86_400.0, until_s=START_S - 7200.0)][:limit]

    async def steps(self, limit: int, vm_id: str | None = None) -> Sequence[PlannedStep]:
        found = [
            PlannedStep(
                host_id=home,
                issued_s=float(self.now_s),
                step=Step(id=f"1-7-{n}", vm_id=each, kind=StepKind.CPU_QUOTA, value=1500, deadline_ns=(self.now_s + 600) * 10**9),
            )
            for n, (each, home) in enumerate(sorted(self.home.items()))
            if vm_id in (None, each)
        ]
        return found[:limit]

    @property
    def migration_plan(self) -> MigrationPlan:
        """One move that waits for an operator."""
        move = planned_move("vm-01-00", "kvm-01", "kvm-02", client="aurora")
        return MigrationPlan(id="m1", created_ns=START_S * 10**9, moves=(move,))

    def sizing(self, limit: int) -> SizingView:
        scarce = HostScarcity(
            host_id="kvm-01",
            resource="memory_bytes",
            from_s=self.now_s,
            until_s=self.now_s + 600,
            missing=3.0 * GIB,
            penalty=14.0,
            grain=float(GIB),
            grain_price=5.1,
            grain_saves=4.9,
        )
        budget = ClientBudget(client="aurora", budget=0.01, violated=0.004, burn_rate=0.4, spent=0.1)
        return SizingView(issued_s=self.now_s, scarce=(scarce,)[:limit], budgets=(budget,)[:limit], infeasible=(), spare=())

    def metrics_text(self) -> str:
        return f"# TYPE tidegate_cycles_total counter\ntidegate_cycles_total {self.cycle}\n"

    def ready(self) -> tuple[bool, str]:
        return self.is_ready
