"""Execution of placements: advised moves become an ordered plan, the plan runs in waves, emptied hosts sleep and wake. Pure.

Sits between the decision cycle, which feeds it and sends its steps as plans, and the two state machines of coordinator/planning (waves,
sleep). Everything it must not forget is a document that it asks to be stored before anything that follows from it is carried out: after a
restart `restore` reads them back, and nothing that was in flight is sent again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from coordinator.fleet import Fleet
from coordinator.migration_plan import MigrationPlan, Patience, PlannedMove, Status, WaveLimits
from coordinator.model import F64, ForecastBlock, HostState, Outlook
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.site import DEFAULT_SITE, rack_of
from coordinator.placement.problem import I32, NOWHERE, Problem
from coordinator.planning import sleep, waves
from coordinator.planning.moves_problem import DEFAULT_Z, demand_ahead, moves_problem
from coordinator.planning.order_moves import MoveOrder, MovePolicy, Readiness, order_moves
from coordinator.planning.sleep import HostSeen, Power, PowerBook, PowerPolicy, PowerTold
from shared.model import Mode
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import BUCKET_S, NS_PER_MS, NS_PER_S, UNLIMITED

PLAN_LIFE_S = 7_200.0  # a move that could not begin so long after its plan was made is left out
MEMORY, BOOK = "moves_memory", "power_book"  # names of documents


class FailedPair(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that is not to be sent to a host until then."""

    vm_id: str
    host_id: str
    until_ns: int
    why: str


class MoveMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives a plan: failed pairs, and VMs that have moved of late."""

    failed: tuple[FailedPair, ...] = ()
    cooling: dict[str, int] = {}  # vm_id -> until_ns

    def at(self, now_ns: int) -> MoveMemory:
        """What still holds."""
        failed = tuple(pair for pair in self.failed if pair.until_ns > now_ns)
        return MoveMemory(failed=failed, cooling={vm_id: until for vm_id, until in self.cooling.items() if until > now_ns})


@dataclass(frozen=True, kw_only=True)
class ExecutionPolicy:
    """`execute` False: placement stays advice. `always`: plans run without an operator's word."""

    execute: bool = False
    always: bool = False
    moves: MovePolicy = field(default_factory=MovePolicy)
    limits: WaveLimits = field(default_factory=WaveLimits)
    patience: Patience = field(default_factory=Patience)
    power: PowerPolicy = field(default_factory=PowerPolicy)
    handover_s: float = 600.0  # from a woken host's first word to VMs that run there: a decision, an order, a wave
    fill: float = 0.9  # of the awake hosts' CPU that the fleet's demand may take before another host is woken


@dataclass(frozen=True, kw_only=True)
class StoreMigration:
    """Make a plan's state durable."""

    plan: MigrationPlan


@dataclass(frozen=True, kw_only=True)
class StoreDocument:
    """Make a small document durable; `text` is JSON."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class SendSteps:
    """Send these MIGRATE steps to their host, in a plan that keeps what else is open there; none = take back what has not begun."""

    host_id: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class SwitchPower:
    """Switch one host; answer with DecisionCycle.power_told."""

    order: sleep.PowerOrder


Order = StoreMigration | StoreDocument | SendSteps | SwitchPower


class Execution:
    """The running plan, the memory of what failed, and the power book."""

    def __init__(self, policy: ExecutionPolicy, switchable: Mapping[str, str | None] | None = None) -> None:
        """`switchable`: host -> why its power cannot be switched, None = it can; a host that is not named cannot."""
        self.policy = policy
        self.switchable = dict(switchable or {})
        self.plan: MigrationPlan | None = None
        self.memory = MoveMemory()
        self.book = PowerBook()
        self.awake_why: dict[str, str] = {}  # why hosts that are wanted empty stay awake
        self.replan: str = ""  # why another placement is wanted before its turn
        self._filled: frozenset[str] = frozenset()  # hosts that keep VMs where the newest placement has its way
        self._site = DEFAULT_SITE  # of the newest placement
        self._ahead: tuple[F64, F64] | None = None  # Unix seconds, and the fleet's CPU demand from each on
        self._empty_since: dict[str, int] = {}

    def restore(self, plan: MigrationPlan | None, documents: Mapping[str, str], outcomes: Iterable[Outcome], now_ns: int) -> list[Order]:
        """After a restart. What the newest plan has in flight is neither forgotten nor sent again; `outcomes` may have come meanwhile."""
        if MEMORY in documents:
            self.memory = msgspec.json.decode(documents[MEMORY], type=MoveMemory)
        if BOOK in documents:
            self.book = msgspec.json.decode(documents[BOOK], type=PowerBook)
        self.plan = plan
        return [order for outcome in outcomes for order in self.told(outcome, now_ns)]

    @property
    def running(self) -> bool:
        """Whether a plan is under way."""
        return self.plan is not None and self.plan.status in (Status.RUNNING, Status.STOPPING)

    @property
    def asleep(self) -> frozenset[str]:
        """Silent hosts that sleep and may be woken."""
        return frozenset(host_id for host_id, host in self.book.hosts.items() if host.state in (Power.ASLEEP, Power.WAKING))

    def forbidden(self, now_ns: int) -> frozenset[tuple[str, str]]:
        """(VM, host) pairs that placement should not ask for, and hosts that could not be woken for any VM as ("", host)."""
        pairs = {(pair.vm_id, pair.host_id) for pair in self.memory.failed if pair.until_ns > now_ns}
        broken = {("", host_id) for host_id, host in self.book.hosts.items() if host.state is Power.FAILED and host.until_ns > now_ns}
        return frozenset(pairs | broken)

    def cooling(self, now_ns: int) -> frozenset[str]:
        """VMs that have moved of late."""
        return frozenset(vm_id for vm_id, until_ns in self.memory.cooling.items() if until_ns > now_ns)

    def placed(  # noqa: PLR0917  # what the cycle knows
        self,
        placed: Placed,
        hosts: Sequence[HostState],
        forecast: ForecastBlock,
        fleet: Fleet,
        now_ns: int,
        outlook: Outlook | None = None,
    ) -> list[Order]:
        """The hook: placement has answered for these hosts, and its moves become the next plan."""
        if not self.policy.execute:
            return []
        alive = [host for host in hosts if host.alive]
        self._ahead = demand_ahead(alive, forecast, outlook, DEFAULT_Z if placed.fleet is None else placed.fleet.z)
        found = moves_problem(placed, hosts, fleet)
        if found is None:
            self._filled = frozenset(host.host_id for host in hosts if host.vms)
            return [] if self.running else self._withdraw("a placement that holds everything", now_ns)
        self._site = placed.site
        return self._propose(*found, fleet, now_ns)

    def _propose(self, problem: Problem, goal: I32, ready: Readiness, fleet: Fleet, now_ns: int) -> list[Order]:
        """An assignment to be reached from the homes of the problem. A plan that runs goes on; one that waits for a word is replaced."""
        self._filled = frozenset(problem.host_ids[h] for h in goal[goal != NOWHERE])
        if self.running:
            return []
        allowed, refused = self._permitted(problem, goal, fleet, now_ns)
        order = order_moves(problem, allowed, self._with_sleepers(problem, ready), self.policy.moves)
        plan = self._planned(problem, order, refused, fleet, now_ns)
        if self.plan is not None and not self.plan.over and _same(self.plan, plan):
            return []
        out = self._withdraw("a newer placement", now_ns)
        if not plan.moves:
            return out
        if self.policy.always:
            plan, _ = waves.advance(plan, waves.Approved(actor="placement.approve"), now_ns)
        self.plan = plan
        return [*out, StoreMigration(plan=plan)]

    def _withdraw(self, actor: str, now_ns: int) -> list[Order]:
        """The plan that waits for a word, if there is one, is aborted."""
        if self.plan is None or self.plan.over:
            return []
        old, _ = waves.advance(self.plan, waves.Aborted(actor=actor), now_ns)
        self.plan = None
        return [StoreMigration(plan=old)]

    def order(self, event: waves.Approved | waves.Aborted, now_ns: int) -> list[Order]:
        """An operator's word."""
        return self._advance(event, now_ns)

    def told(self, outcome: Outcome, now_ns: int) -> list[Order]:
        """An outcome of any step; those of migrations of the plan count."""
        if outcome.step.kind is not StepKind.MIGRATE:
            return []
        return self._advance(waves.StepTold(outcome=outcome), now_ns)

    def unsent(self, plan: Plan, now_ns: int) -> list[Order]:
        """A plan that no host will ever see: its moves may be asked for again at once."""
        out: list[Order] = []
        for step in plan.steps:
            refused = Outcome(step=step, state=OutcomeState.REFUSED, code=RefusalCode.PLAN_STALE, detail="it never reached its host")
            out += self.told(refused, now_ns)
        return out

    def look(self, fleet: Fleet, now_ns: int) -> list[Order]:
        """Time passed."""
        if not self.policy.execute:
            return []
        out: list[Order] = []
        if self.plan is not None and not self.plan.over:
            out += self._advance(_looked(fleet), now_ns)
        return out + self._look_at_power(fleet, now_ns)

    def power_told(self, event: PowerTold, now_ns: int) -> list[Order]:
        """What a power switch answered."""
        return self._keep_book(sleep.told(self.book, event, self.policy.power, now_ns))

    def _permitted(self, problem: Problem, goal: I32, fleet: Fleet, now_ns: int) -> tuple[I32, dict[str, str]]:
        """The goal without moves that memory, modes or power forbid, and why each of those is left out."""
        forbidden, cooling = self.forbidden(now_ns), self.cooling(now_ns)
        allowed, why = goal.copy(), {}
        for v in np.flatnonzero((goal != problem.home) & (goal != NOWHERE) & (problem.home != NOWHERE)):
            vm_id, source, target = problem.vm_ids[v], problem.host_ids[problem.home[v]], problem.host_ids[goal[v]]
            if (vm_id, target) in forbidden or ("", target) in forbidden:
                why[vm_id] = f"its move to {target} failed of late, or {target} could not be woken"
            elif vm_id in cooling:
                why[vm_id] = "it has moved of late"
            elif fleet.host(source).mode is not Mode.PREDICTIVE:
                why[vm_id] = f"{source} is in mode {fleet.host(source).mode}: only predictive hosts send VMs away"
            elif fleet.host(target).mode is Mode.OFF:
                why[vm_id] = f"{target} is in mode off"
            else:
                continue
            allowed[v] = problem.home[v]
        return allowed, why

    def _with_sleepers(self, problem: Problem, ready: Readiness) -> Readiness:
        awake_s = ready.awake_s.copy()
        for h, host_id in enumerate(problem.host_ids):
            state = self.book.of(host_id).state
            if state in (Power.ASLEEP, Power.FALLING, Power.WAKING):
                awake_s[h] = max(awake_s[h], self.book.lead_s(host_id, self.policy.power) + self.policy.power.margin_s)
            elif state is Power.FAILED:
                awake_s[h] = np.inf
        return Readiness(seconds=ready.seconds, awake_s=awake_s, held=ready.held, held_until_s=ready.held_until_s)

    def _planned(self, problem: Problem, order: MoveOrder, refused: dict[str, str], fleet: Fleet, now_ns: int) -> MigrationPlan:
        moves = []
        for move in order.moves:
            vm_id, source, target = problem.vm_ids[move.vm], problem.host_ids[move.source], problem.host_ids[move.target]
            vm = fleet.vms.get(vm_id)
            latest_s = min(move.latest_s, move.begin_s + PLAN_LIFE_S)
            moves.append(
                PlannedMove(
                    vm_id=vm_id,
                    client=vm.domain.policy.client if vm is not None else "",
                    source=source,
                    target=target,
                    racks=(rack_of(self._site, source), rack_of(self._site, target)),
                    stage=move.stage,
                    # stages follow each other by what has been verified; a time counts where a valley or a wake is waited for
                    not_before_ns=now_ns + int(move.begin_s * NS_PER_S) if move.begin_s >= BUCKET_S else now_ns,
                    latest_ns=now_ns + int(latest_s * NS_PER_S),
                    seconds=move.seconds,
                    block=move.block,
                    parking=move.parking,
                    after=move.after,
                )
            )
        dropped = refused | {problem.vm_ids[v]: why for v, why in order.dropped.items()}
        return MigrationPlan(
            id=f"m{now_ns // NS_PER_MS}",
            created_ns=now_ns,
            moves=tuple(moves),
            dropped=dict(sorted(dropped.items())),
            awake_by_ns={problem.host_ids[h]: now_ns + int(s * NS_PER_S) for h, s in order.awake_by_s.items()},
            limits=self.policy.limits,
            patience=self.policy.patience,
        )

    def _advance(self, event: waves.Event, now_ns: int) -> list[Order]:
        before = self.plan
        if before is None:
            return []
        self.plan, wanted = waves.advance(before, event, now_ns)
        out: list[Order] = [StoreMigration(plan=self.plan)] if self.plan != before else []
        memory = self.memory
        steps: dict[str, list[Step]] = {}
        for each in wanted:
            match each:
                case waves.SendMove():
                    move = self.plan.moves[each.number]
                    steps.setdefault(move.source, []).append(_step(move, each))
                case waves.Withdraw():
                    steps.setdefault(each.host_id, [])
                case waves.Remember():
                    pair = FailedPair(vm_id=each.vm_id, host_id=each.host_id, until_ns=each.until_ns, why=each.why)
                    memory = msgspec.structs.replace(memory, failed=(*memory.failed, pair))
                case waves.Cool():
                    memory = msgspec.structs.replace(memory, cooling={**memory.cooling, each.vm_id: each.until_ns})
                case waves.Replan():
                    self.replan = each.why
        if memory != self.memory:
            self.memory = memory.at(now_ns)
            out.append(StoreDocument(name=MEMORY, text=msgspec.json.encode(self.memory).decode()))
        return [*out, *(SendSteps(host_id=host_id, steps=tuple(found)) for host_id, found in sorted(steps.items()))]

    def _look_at_power(self, fleet: Fleet, now_ns: int) -> list[Order]:
        if not self.switchable:
            return []
        counted = self.plan.hosts if self.plan is not None and not self.plan.over else frozenset()
        needed = self._needed(fleet, now_ns)
        seen = {}
        for host_id, record in fleet.hosts.items():
            vms = sum(fleet.vms[vm_id].host_id == host_id for vm_id in record.vm_ids)
            if vms or not (record.alive and record.counted):
                self._empty_since.pop(host_id, None)
            else:
                self._empty_since.setdefault(host_id, now_ns)
            seen[host_id] = HostSeen(
                heard=record.alive,
                vms=vms,
                empty_since_ns=self._empty_since.get(host_id),
                counted_on=host_id in counted,
                # before the first placement since the start nothing is known of what will be needed
                wanted_empty=vms == 0 and host_id not in self._filled and self._ahead is not None,
                needed_ns=needed.get(host_id),
                cannot=self.switchable.get(host_id, "no power switch is set for it"),
            )
        book, orders, self.awake_why = sleep.look(self.book, seen, self.policy.power, now_ns)
        return [*self._keep_book(book), *(SwitchPower(order=order) for order in orders)]

    def _needed(self, fleet: Fleet, now_ns: int) -> dict[str, int]:
        """When each host that sleeps, or may be put to sleep, has to take VMs: by the plan, or as demand passes what is awake."""
        found = dict(self.plan.awake_by_ns) if self.plan is not None and not self.plan.over else {}
        if self._ahead is None:
            return found
        times, demand = self._ahead
        awake = [h for h, record in fleet.hosts.items() if record.alive and record.capacity and self.book.of(h).state is not Power.FALLING]
        idle = sorted(h for h in awake if not any(fleet.vms[vm_id].host_id == h for vm_id in fleet.host(h).vm_ids))
        asleep = sorted(h for h, host in self.book.hosts.items() if host.state in (Power.ASLEEP, Power.WAKING, Power.FAILED))
        room = sum(_cpu(fleet, h) for h in awake) * self.policy.fill
        for host_id in asleep:  # the first sleepers are those that are needed first
            short = np.flatnonzero(demand > room)
            if not len(short):
                break
            handover_ns = int(self.policy.handover_s * NS_PER_S)
            found.setdefault(host_id, max(now_ns, int(times[short[0]]) * NS_PER_S - handover_ns))
            room += _cpu(fleet, host_id) * self.policy.fill
        room = sum(_cpu(fleet, h) for h in awake) * self.policy.fill
        for host_id in idle:  # would the others do without this one?
            room -= _cpu(fleet, host_id) * self.policy.fill
            short = np.flatnonzero(demand > room)
            if len(short):
                found.setdefault(host_id, max(now_ns, int(times[short[0]]) * NS_PER_S))
        return found

    def _keep_book(self, book: PowerBook) -> list[Order]:
        if book == self.book:
            return []
        self.book = book
        return [StoreDocument(name=BOOK, text=msgspec.json.encode(book).decode())]


def _cpu(fleet: Fleet, host_id: str) -> float:
    capacity = fleet.host(host_id).capacity
    return 0.0 if capacity is None else float(capacity.cpu_millicores)


def _step(move: PlannedMove, send: waves.SendMove) -> Step:
    return Step(
        id=send.step_id,
        vm_id=move.vm_id,
        kind=StepKind.MIGRATE,
        value=UNLIMITED,
        reason="parking" if move.parking else "placement",
        target=move.target,
        deadline_ns=send.deadline_ns,
    )


def _looked(fleet: Fleet) -> waves.Looked:
    # a host that is back, but has not said yet which VMs it has, proves nothing: after a restart the registry may be behind
    alive = {host_id: record for host_id, record in fleet.hosts.items() if record.alive and record.counted}
    return waves.Looked(
        at={vm_id: vm.host_id for vm_id, vm in fleet.vms.items() if vm.domain.running},
        acting=frozenset(host_id for host_id, record in alive.items() if record.mode is Mode.PREDICTIVE and not record.paused_by),
        awake=frozenset(host_id for host_id, record in alive.items() if record.mode is not Mode.OFF),
        strain={vm_id: vm.strain for vm_id, vm in fleet.vms.items() if vm.strain is not None},
        client_vms=Counter(vm.domain.policy.client for vm in fleet.vms.values()),
    )


def _same(old: MigrationPlan, new: MigrationPlan) -> bool:
    """Whether two plans that have not begun would do the same."""
    first, second = ({(move.vm_id, move.source, move.target) for move in plan.moves} for plan in (old, new))
    return first == second
