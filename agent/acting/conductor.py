"""Carries out asks: guard → journal → submit → observe → outcome, for the local rule, for the steps of plans, and for the owner. Pure.

Why one place: whoever wants something of a VM goes through the guard and becomes a flight here, so mode, guard, journal, rates and promises
bind all alike. The parts: flights (on their way to the host), pursuits (steps in strides), ownership (whose a value is), undoing (what took
effect), the migration desk, the teller. In a shadowing mode everything happens but the submit.
Invariant: nothing is submitted but by `Flights.submit`, after a verdict of the guard, or as the undo of such a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from agent.acting.autonomy import Allowance
from agent.acting.flights import Flights, with_value
from agent.acting.guard import Guard, Verdict
from agent.acting.ledger import Ledger, VmRecord
from agent.acting.levers import FIELDS, grows, shows
from agent.acting.migration import MigrationDesk
from agent.acting.ownership import Foreign, Ownership, Sight
from agent.acting.plans import PlanBook
from agent.acting.pursuits import Pursuits
from agent.acting.reactive import Ask
from agent.acting.reconcile import Recovered, local_prefix, memory_sums
from agent.acting.telling import Teller
from agent.acting.undoing import StepMemory, Undoable
from agent.events import Decision, Instruction, Note, TakenUp, UndoOrdered, Verb, WriteJournal
from shared.config import GuardConfig, MigrationConfig
from shared.model import Allocation, Domain, HostCapacity
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

# Answers to a local rule that only mean "not yet"; reporting them as refusals would bury the refusals.
NOT_YET: Final = frozenset({RefusalCode.NOTHING_TO_DO, RefusalCode.VM_BUSY, RefusalCode.COOLDOWN, RefusalCode.BACKING_OFF})
# A batch of undos ends within a minute, told or done; what is left is in the outcome and can be ordered again.
UNDO_NS: Final = 55 * NS_PER_S
# Limits that travelled wait for the first readings here, which a balloon that still moves can hold up.
ARRIVAL_NS: Final = 120 * NS_PER_S
# One lever's way back after the lease; what the guard holds up until then is tried again afterwards.
DECAY_NS: Final = 600 * NS_PER_S


class Conductor:
    """The acting half of the agent's core. Appends to `out`, the instruction list of the event in hand."""

    def __init__(
        self,
        *,
        host_id: str,
        boot_id: str,
        capacity: HostCapacity,
        config: GuardConfig,
        recovered: Recovered,
        ship: Callable[[Outcome], None],
        migration: MigrationConfig | None = None,
    ) -> None:
        prefix = local_prefix(host_id, boot_id)
        self.ledger = Ledger(config, capacity)
        self.book = PlanBook(host_id, prefix, recovered.epoch, recovered.sequence, recovered.seen)
        self.teller = Teller(self.ledger, prefix, recovered.next_local, ship)
        self.ownership = Ownership(recovered.owned)
        self._memory = StepMemory(recovered.taken)
        self.flights = Flights(self.ledger, self.ownership, self._memory, self.teller, config)
        self.moves = MigrationDesk(host_id, migration or MigrationConfig(), self.ledger, self._emit, self._moved)
        self._pursuits = Pursuits(Guard(config), self.ledger, self.flights, self.moves, self.book, self.teller)
        self.flights.landed = self._pursuits.land
        self._recovered: Recovered | None = recovered
        self._chased: dict[tuple[str, StepKind], Ask] = {}  # growths of the local rule that need another stride at once
        self._arrivals: dict[str, Allocation] = {}  # limits that travelled with VMs not read yet
        self._arriving: set[str] = set()
        self._decaying: dict[tuple[str, StepKind], int] = {}  # when a lever's way back may be begun again

    @property
    def out(self) -> list[Instruction]:
        """Where instructions go."""
        return self.teller.out

    @out.setter
    def out(self, out: list[Instruction]) -> None:
        self.teller.out = out

    def _emit(self, instruction: Instruction) -> None:
        self.out.append(instruction)

    @property
    def guard(self) -> Guard:
        """The guard with the settings in force."""
        return self._pursuits.guard

    def configure(self, guard: GuardConfig, migration: MigrationConfig) -> None:
        """New settings, for what is under way as well."""
        self._pursuits.guard = Guard(guard)
        self.ledger.configure(guard)
        self.flights.configure(guard)
        self.moves.config = migration

    # Inventory and readings

    def define(self, domains: tuple[Domain, ...], now_ns: int) -> None:
        """Take over the inventory. Steps of VMs that left end here; on the first one, steps open in the journal are taken up."""
        names = {vm_id: record.domain.name for vm_id, record in self.ledger}
        for vm_id in self.ledger.define(domains):
            code = RefusalCode.VM_NOT_RUNNING if vm_id in self.ledger.vms else RefusalCode.UNKNOWN_VM
            self.flights.drop(vm_id, code, now_ns)
            self._pursuits.drop(vm_id, code, f"{names[vm_id]} left the host", now_ns)
            self._memory.lose(vm_id)
            if self.ownership.forget(vm_id):
                self.out.append(WriteJournal(entry=self.ownership.owned(vm_id, now_ns)))
        if self._recovered is not None:
            recovered, self._recovered = self._recovered, None
            self._take_up(recovered, now_ns)
        self.moves.inventory(now_ns)

    def _take_up(self, recovered: Recovered, now_ns: int) -> None:
        for vm_id in self.ledger.vms:
            for kind, value in self.ownership.defaults(vm_id).items():
                self.ledger.began_with(vm_id, kind, value)
        for owned in recovered.owned:
            self.ledger.yield_to(owned.vm_id, owned.yielded_until_ns)
            for kind, until_ns in owned.held.items():
                self.ledger.yield_to(owned.vm_id, until_ns, kind)
            if owned.oom_at_ns is not None:
                self.ledger.restore_oom(owned.vm_id, owned.oom_at_ns)
        for intent, memory_bytes in zip(recovered.changes, memory_sums(recovered), strict=True):
            step, unplanned = intent.step, intent.origin in ("reactive", "autonomy") and grows(intent.before, intent.step.value)
            self.ledger.restore_change(
                step.vm_id, step.kind, intent.before, step.value, intent.at_ns, unplanned=unplanned, memory_bytes=memory_bytes
            )
        for at_ns in recovered.failures:
            self.ledger.restore_failure(at_ns)
        for (vm_id, kind), (points, until_ns) in recovered.doubts.items():
            self.ownership.doubt(vm_id, kind, points, until_ns)
        for intent in recovered.open:
            if intent.step.kind is StepKind.MIGRATE:
                self.moves.take_up(intent, now_ns)
        self.flights.take_up(recovered, now_ns)
        for intent, moved in recovered.unfinished:
            if intent.goal is not None:
                self._pursuits.abandon(intent.goal, intent.origin, moved=moved, now_ns=now_ns)

    def meet(self, runs: Mapping[str, str], vm_ids: list[str], now_ns: int) -> None:
        """A round of samples shows these runs of VMs, before its values are taken over."""
        for vm_id in vm_ids:
            record = self.ledger.vms.get(vm_id)
            if record is None:
                continue
            emptied = {StepKind.MEMORY: record.domain.memory_max_bytes, StepKind.VIRTIO_MEM: 0}
            sight = self.ownership.meet(vm_id, runs.get(vm_id, ""), emptied, now_ns)
            if sight is Sight.RESTARTED:
                self._memory.lose(vm_id)
                self.flights.drop(vm_id, RefusalCode.VM_NOT_RUNNING, now_ns)
            elif sight is Sight.REBOOTED:
                self.out.append(Note(level="info", event="guest_rebooted", fields={"vm": vm_id, "name": record.domain.name}))

    def watch(self, vm_id: str, now_ns: int) -> None:
        """Values of the VM were taken over: notice what somebody else changed, and leave the VM to them."""
        record = self.ledger.vms[vm_id]
        if not record.domain.running:  # on its way here by migration: libvirt is still setting its limits
            return
        own = {StepKind.MEMORY: record.domain.memory_max_bytes} if record.lately_short(now_ns) else {}
        answers = record.reading is not None and record.reading.memory_reading_age_ms is not None
        changes, first = self.ownership.judge(vm_id, record.in_force, now_ns, own, answers=answers)
        news = self.ownership.note_oom(vm_id, record.oom_at_ns)
        if changes:
            self._yield(vm_id, record, changes, now_ns)
        if first or news or changes:
            self.out.append(WriteJournal(entry=self.ownership.owned(vm_id, now_ns, changes)))

    def _yield(self, vm_id: str, record: VmRecord, changes: list[Foreign], now_ns: int) -> None:
        yield_s = self.guard.config.foreign_yield_s
        if yield_s:
            self.ownership.yield_to(vm_id, now_ns + yield_s * NS_PER_S)
            self.ledger.yield_to(vm_id, now_ns + yield_s * NS_PER_S)
        for change in changes:
            self._memory.lose(vm_id, change.kind)
            self.flights.cede(vm_id, change.kind, change.found, now_ns)
            fields: dict[str, str | int] = {
                "vm": vm_id,
                "name": record.domain.name,
                "kind": change.kind,
                "believed": change.believed,
                "found": change.found,
                "yield_s": yield_s,
            }
            self.out.append(Note(level="warning", event="foreign_change", fields=fields))
            decision = Decision(
                at_ns=now_ns,
                kind=change.kind,
                from_value=change.believed,
                to_value=change.found,
                origin="foreign",
                verdict=Verb.FOREIGN,
                code=RefusalCode.YIELDED if yield_s else "",
                detail=f"changed by somebody else: the VM is left to them for {yield_s} s",
            )
            self.teller.add(vm_id, decision)

    # Local asks

    def locals(self, asks: list[tuple[str, VmRecord, Ask]], allow: Allowance, now_ns: int) -> None:
        """Try what the local rule asks for: what takes before what gives, the important VM before the other, else in order."""
        self._chased.clear()  # the rule has looked again
        for vm_id, record, ask in sorted(asks, key=lambda one: (one[2].grow, -one[1].domain.policy.priority if one[2].grow else 0)):
            self._local(vm_id, record, ask, allow, now_ns)

    def _local(self, vm_id: str, record: VmRecord, ask: Ask, allow: Allowance, now_ns: int) -> None:
        kind = ask.kind
        if not (allow.local_growth if ask.grow else allow.local_shrink):
            return
        if kind in record.pending:
            if ask.grow and not allow.shadow:
                self.flights.relent(vm_id, kind, now_ns)
            return
        timeout_ns = self.guard.config.step_timeout_s * NS_PER_S
        before = record.in_force.get(kind)
        step = Step(id="local", vm_id=vm_id, kind=kind, value=ask.value, before=before, reason=ask.reason, deadline_ns=now_ns + timeout_ns)
        verdict = self.guard.check(step, self.ledger.view(vm_id, kind, now_ns), now_ns, unplanned=ask.grow)
        teller = self.teller
        if verdict.value is None:
            assert verdict.code is not None
            if verdict.code in NOT_YET or not teller.worth_telling(record, kind, verdict.code, now_ns):
                teller.repeats[verdict.code] += 1
                return
            outcome = Outcome(step=teller.named(step), state=OutcomeState.REFUSED, value=before, code=verdict.code, detail=verdict.detail)
            teller.tell(outcome, allow.origin, before, now_ns)
        elif allow.shadow:
            if teller.worth_telling(record, kind, OutcomeState.SHADOWED, now_ns):
                teller.shadow(teller.named(step), verdict, allow.origin, before, now_ns)
            else:
                teller.repeats[OutcomeState.SHADOWED] += 1
        else:
            # The rule asks again on the next sample: one stride of a long way is all that is asked of this step. Growth does not wait
            # for that sample: its next stride follows when this one is verified.
            if verdict.code is RefusalCode.STEP_TOO_LARGE:
                step, verdict = with_value(step, verdict.value), Verdict(value=verdict.value)
                if ask.grow:
                    self._chased[vm_id, kind] = ask
            self.flights.submit(teller.named(step), verdict, allow.origin, now_ns, unplanned=ask.grow)

    # Plans

    def plan(self, plan: Plan, least_epoch: int, allow: Allowance, now_ns: int) -> None:
        """Take or refuse a plan; begin what can begin."""
        if self._pursuits.plan(plan, least_epoch, now_ns):
            self._pursuits.pursue(allow, now_ns)

    def forbid_plans(self, code: RefusalCode, why: str, now_ns: int) -> None:
        """Steps are no longer carried out: end what has not begun; what is in flight ends with its flight."""
        self._chased.clear()
        self._pursuits.forbid(code, why, now_ns)

    def pause(self, holders: str, now_ns: int) -> None:
        """The kill switch is held by these: nothing begins, what is in the air is left alone, moves are given up."""
        if not self._pursuits.paused:
            self.forbid_plans(RefusalCode.PAUSED, f"paused by {holders}", now_ns)
            self.moves.abort_all(RefusalCode.PAUSED, f"paused by {holders}", now_ns)
        self._pursuits.paused = holders

    def resume(self, now_ns: int) -> None:
        """Nobody holds the kill switch any more."""
        self._pursuits.paused = ""
        self.flights.resume(now_ns)

    def pursue(self, allow: Allowance, now_ns: int) -> None:
        """Try every step whose time has come."""
        self._pursuits.pursue(allow, now_ns)
        self._welcome(now_ns)

    # Flights

    def read(self, vm_id: str, allocation: Allocation, allow: Allowance, now_ns: int) -> None:
        """A read-back arrived."""
        if not self.ledger.note_allocation(vm_id, allocation, now_ns):
            return
        endings = self.flights.read(vm_id, allocation, now_ns)
        self.watch(vm_id, now_ns)
        for ending in endings:
            ask = self._chased.pop((vm_id, ending.flight.step.kind), None)
            if ask is not None and ending.state is OutcomeState.VERIFIED:
                self._local(vm_id, self.ledger.vms[vm_id], ask, allow, now_ns)
        if endings:
            self._pursuits.pursue(allow, now_ns)

    def follow(self, may_act: bool, now_ns: int) -> None:
        """Time passed: look after flights and moves."""
        self.flights.follow(may_act, now_ns)
        self.moves.follow(may_act, now_ns)

    def _moved(self, outcome: Outcome, origin: str, now_ns: int) -> None:
        self.book.pursuits.pop(outcome.step.id, None)
        self.teller.tell(outcome, origin, None, now_ns)

    # The owner's defaults, undos, limits that travelled

    def undoable(self, order: UndoOrdered) -> list[Undoable]:
        """What the order would do now, in its order; empty = nothing of that kind."""
        in_force = {(vm_id, kind): value for vm_id, record in self.ledger for kind, value in record.in_force.items()}
        return self._memory.undoable(order, in_force)

    def undo(self, order: UndoOrdered, allow: Allowance, now_ns: int) -> None:
        """Take steps back through the guard; each lever ends in an outcome, and plans leave it alone for a while."""
        undos = self.undoable(order)
        fields: dict[str, str | int] = {"step": order.step_id, "since_ns": order.since_ns or 0, "vm": order.vm_id, "levers": len(undos)}
        if not undos:
            self.teller.counters[OutcomeState.REFUSED, RefusalCode.NOTHING_TO_UNDO] += 1
            self.out.append(Note(level="warning", event="undo_refused", fields={**fields, "code": RefusalCode.NOTHING_TO_UNDO}))
            return
        self.out.append(Note(level="info", event="undo_ordered", fields=fields))
        hold_ns, deadline_ns = self.guard.config.foreign_yield_s * NS_PER_S, now_ns + UNDO_NS
        for undo in undos:
            reason = f"undo of {', '.join(undo.step_ids)}"[:256]
            if undo.code is not None:
                step = Step(
                    id=self.teller.next_id(), vm_id=undo.vm_id, kind=undo.kind, value=undo.value, reason=reason, deadline_ns=deadline_ns
                )
                refused = Outcome(step=step, state=OutcomeState.REFUSED, value=undo.in_force, code=undo.code, detail=undo.detail)
                self.teller.tell(refused, "operator", undo.in_force, now_ns)
                continue
            self.ownership.hold(undo.vm_id, undo.kind, now_ns + hold_ns)
            self.ledger.yield_to(undo.vm_id, now_ns + hold_ns, undo.kind)
            self.out.append(WriteJournal(entry=self.ownership.owned(undo.vm_id, now_ns)))
            self._pursuits.restore(
                undo.vm_id, undo.kind, undo.value, origin="operator", reason=reason, deadline_ns=deadline_ns, now_ns=now_ns
            )
        self._pursuits.pursue(allow, now_ns)

    def decay(self, allow: Allowance, now_ns: int) -> None:
        """The lease is over: levers of ours go back to the owner's defaults, stepwise, under every limit of the guard."""
        if not allow.decay:
            self._decaying.clear()
            return
        busy = {(pursuit.step.vm_id, pursuit.step.kind) for pursuit in self.book.pursuits.values()}
        for vm_id, record in self.ledger:
            for kind, value in self.ownership.defaults(vm_id).items():
                current = record.in_force.get(kind)
                if current is None or shows(kind, value, current) or kind in record.pending or (vm_id, kind) in busy:
                    continue
                if now_ns < self._decaying.get((vm_id, kind), 0):
                    continue
                self._decaying[vm_id, kind] = now_ns + DECAY_NS
                self._pursuits.restore(
                    vm_id, kind, value, origin="autonomy", reason="lease_over", deadline_ns=now_ns + DECAY_NS, now_ns=now_ns
                )

    def arrived(self, vm_id: str, limits: Allocation, now_ns: int) -> None:
        """Limits travelled with a VM that came here: begin to apply them as soon as it has been read."""
        self._arrivals[vm_id] = limits
        self._welcome(now_ns)

    def _welcome(self, now_ns: int) -> None:
        for vm_id in [vm_id for vm_id in self._arrivals if vm_id in self.ledger.vms and self.ledger.vms[vm_id].in_force]:
            limits, record = self._arrivals.pop(vm_id), self.ledger.vms[vm_id]
            for kind, (name, _) in FIELDS.items():
                value, current = getattr(limits, name), record.in_force.get(kind)
                # What cannot be read here cannot be set here; memory and vCPUs have travelled with the machine.
                if value is not None and current is not None and not shows(kind, value, current):
                    self._pursuits.restore(
                        vm_id, kind, value, origin="migration", reason="arrived", deadline_ns=now_ns + ARRIVAL_NS, now_ns=now_ns
                    )
            self._arriving.add(vm_id)
        for vm_id in sorted(self._arriving):
            if not self._pursuits.of("migration", vm_id):
                self._arriving.discard(vm_id)
                self.out.append(TakenUp(vm_id=vm_id))
