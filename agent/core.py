"""The agent's core, sans-I/O: `handle(event, now_ns)` returns what is to be done. The only place that knows every stage of the agent.

No clock, I/O or randomness inside: the same events give the same instructions, byte for byte, so any run replays and whole fleets simulate.
Invariants (property-tested): modes off and observe never submit, nor does a paused host; an Intent precedes its SubmitStep; without a
link nothing shrinks but towards the owner's defaults after the lease; floors, ceilings and the host's commit limits hold for whatever is
submitted.
`now_ns` is wall time, because plans carry deadlines of another machine; a clock set back only prolongs cooldowns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.acting.autonomy import Allowance, allowance
from agent.acting.conductor import Conductor
from agent.acting.ledger import VmRecord
from agent.acting.ordered import with_orders
from agent.acting.reactive import Ask, LocalRule, ReactiveRule
from agent.acting.reconcile import Recovered
from agent.acting.summaries import PlanSummary, VmSummary, plan_summary, summary
from agent.acting.telling import HistoryLine
from agent.acting.undoing import Undoable
from agent.events import (
    Acked,
    AllocationRead,
    Decision,
    Event,
    Instruction,
    InventoryRead,
    LimitsArrived,
    LinkDown,
    LinkUp,
    MigrationEnded,
    MigrationProgressed,
    ModeOrdered,
    ModePinned,
    Note,
    PauseOrdered,
    PersistMode,
    PersistPause,
    PlanArrived,
    PoliciesOrdered,
    Sampled,
    SendMessage,
    SettingsChanged,
    Shipped,
    SpoolFrame,
    Started,
    StepAccepted,
    StepRejected,
    Stopping,
    Tick,
    TrimSpool,
    UndoOrdered,
    WriteJournal,
)
from agent.link.shipping import Shipper
from shared.config import GuardConfig, MigrationConfig, ReactiveConfig
from shared.messages import Hello, Inventory, Status
from shared.model import Domain, HostCapacity, Mode, Policy, effective_mode
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

# The coordinator takes a host for silent after 60 s: five heartbeats may get lost.
HEARTBEAT_NS: Final = 10 * NS_PER_S


class AgentCore:
    """State of one agent. Every public method but `handle` only reads."""

    def __init__(
        self,
        *,
        host_id: str,
        boot_id: str,
        capacity: HostCapacity,
        guard: GuardConfig | None = None,
        reactive: ReactiveConfig | None = None,
        default_mode: Mode = Mode.OBSERVE,
        pinned: Mode | None = None,
        ordered: Mode | None = None,
        frame_samples: int = 3,
        next_sequence: int = 0,
        recovered: Recovered | None = None,
        migration: MigrationConfig | None = None,
        standalone: bool = False,
        paused_by: tuple[str, ...] = (),
        rule: LocalRule | None = None,
    ) -> None:
        """`standalone`: no coordinator is configured. `paused_by`: who held the kill switch when the last process ended. `rule`: another
        than the product's own, for comparisons.
        """
        self.host_id = host_id
        self.boot_id = boot_id
        self.capacity = capacity
        self.pinned = pinned
        self.ordered = ordered
        self.default_mode = default_mode
        self.link_up = False
        self.standalone = standalone
        self.paused_by = tuple(sorted(set(paused_by)))
        self._alone_since_ns: int | None = None
        self._epoch = 0
        self._domains: tuple[Domain, ...] = ()  # as the hypervisor defines them; the inventory tells of these
        self._policies: dict[str, Policy] = {}  # the coordinator's word on some of them
        self._status_due_ns = 0
        recovered = recovered or Recovered()
        self._unshipped = recovered.unshipped
        self._shipper = Shipper(boot_id, next_sequence, frame_samples)
        self._rule: LocalRule = rule or ReactiveRule(reactive or ReactiveConfig())
        self._acting = Conductor(
            host_id=host_id,
            boot_id=boot_id,
            capacity=capacity,
            config=guard or GuardConfig(),
            recovered=recovered,
            ship=self._shipper.outcome,
            migration=migration,
        )
        self._out: list[Instruction] = []
        if self.paused_by:
            self._acting.pause(", ".join(self.paused_by), 0)

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take in one event at wall time `now_ns`; what to do, in this order."""
        self._out = self._acting.out = []
        match event:
            case Sampled():
                self._sampled(event, now_ns)
            case Tick():
                self._tick(now_ns)
            case AllocationRead():
                if event.allocation is not None:
                    self._acting.read(event.vm_id, event.allocation, self._allowance(now_ns), now_ns)
            case StepAccepted():
                self._acting.flights.accepted(event.step_id, now_ns)
            case StepRejected():
                self._acting.flights.rejected(event.step_id, event.code, event.detail, event.retriable, now_ns)
            case PlanArrived():
                self._acting.plan(event.plan, self._epoch, self._allowance(now_ns), now_ns)
            case ModeOrdered():
                self._set_mode(self.pinned, event.mode, now_ns)
            case PoliciesOrdered():
                self._policies = event.policies
                self._acting.define(with_orders(self._domains, self._policies), now_ns)
            case ModePinned():
                self._set_mode(event.mode, self.ordered, now_ns)
            case PauseOrdered():
                self._pause(event, now_ns)
            case UndoOrdered():
                self._acting.undo(event, self._allowance(now_ns), now_ns)
            case SettingsChanged():
                self._rule = ReactiveRule(event.reactive)
                self._acting.configure(event.guard, event.migration)
            case MigrationProgressed():
                self._acting.moves.progressed(event, now_ns)
            case MigrationEnded():
                self._acting.moves.ended(event, now_ns)
            case LimitsArrived():
                self._acting.arrived(event.vm_id, event.limits, now_ns)
                self._acting.pursue(self._allowance(now_ns), now_ns)
            case InventoryRead():
                self._inventory(event, now_ns)
            case LinkUp() | LinkDown() | Acked():
                self._link(event, now_ns)
            case Started() | Stopping():
                self._ends(event)
        if self._shipper.outcomes_full:
            self._ship_outcomes()
        return self._out

    @property
    def mode(self) -> Mode:
        """The control mode in force: off while anybody holds the kill switch."""
        return Mode.OFF if self.paused_by else effective_mode(self.pinned, self.ordered, self.default_mode)

    @property
    def mode_pinned(self) -> bool:
        """The owner pinned the mode on the host."""
        return self.pinned is not None

    @property
    def counters(self) -> Mapping[tuple[str, str], int]:
        """Outcomes since start by (state, refusal code or "")."""
        return self._acting.teller.counters

    @property
    def repeats(self) -> Mapping[str, int]:
        """Answers to local asks that were the same as a moment before and not reported again, by code or state."""
        return self._acting.teller.repeats

    @property
    def next_sequence(self) -> int:
        """Number of the next frame."""
        return self._shipper.next_sequence

    @property
    def in_flight(self) -> int:
        """Steps submitted and not yet ended, moves among them."""
        return len(self._acting.flights.actuator) + len(self._acting.moves)

    @property
    def waiting(self) -> int:
        """Plan steps taken and not yet ended."""
        return len(self._acting.book.pursuits)

    def why(self, vm_id: str) -> tuple[Decision, ...] | None:
        """The newest decisions about one VM, oldest first; None when there is no such VM."""
        record = self._acting.ledger.vms.get(vm_id)
        return None if record is None else tuple(record.story)

    def history(self, n: int = 100) -> tuple[HistoryLine, ...]:
        """The newest `n` decisions and outcomes over all VMs, oldest first; a thousand are kept."""
        return tuple(self._acting.teller.history)[-n:] if n > 0 else ()

    def undoable(self, *, step_id: str = "", since_ns: int | None = None, vm_id: str = "") -> tuple[Undoable, ...]:
        """What an UndoOrdered with these fields would set now, in its order; empty = NOTHING_TO_UNDO."""
        return tuple(self._acting.undoable(UndoOrdered(step_id=step_id, since_ns=since_ns, vm_id=vm_id)))

    def vms(self) -> tuple[VmSummary, ...]:
        """Every VM, sorted by id."""
        return tuple(summary(vm_id, record, self._acting.ownership) for vm_id, record in self._acting.ledger)

    def plan(self, now_ns: int) -> PlanSummary:
        """The newest plan, for the command line."""
        return plan_summary(self._acting.book, now_ns)

    def in_force(self, vm_id: str) -> Mapping[StepKind, int]:
        """Values in force of one VM as last read; a lever that was never read is missing. KeyError when there is no such VM."""
        return self._acting.ledger.vms[vm_id].in_force

    def hello(self, now_ns: int, agent_version: str, hypervisor: str) -> Hello:
        """The first message of a connection."""
        return Hello(
            host_id=self.host_id,
            boot_id=self.boot_id,
            agent_version=agent_version,
            wall_ns=now_ns,
            capacity=self.capacity,
            mode=self.mode,
            mode_pinned=self.mode_pinned,
            hypervisor=hypervisor,
            takes_policies=True,
        )

    def status(self, now_ns: int, *, spool_frames: int = 0, spool_dropped: int = 0) -> Status:
        """Mode and newest plan; the spool's figures are the service's to fill in."""
        return Status(
            wall_ns=now_ns,
            mode=self.mode,
            mode_pinned=self.mode_pinned,
            spool_frames=spool_frames,
            spool_dropped=spool_dropped,
            plan_epoch=self._acting.book.epoch,
            plan_sequence=self._acting.book.sequence,
            paused_by=self.paused_by[:8],
            vms_yielded=len(self._acting.ownership.yielded(now_ns)),
        )

    def _allowance(self, now_ns: int) -> Allowance:
        since_ns, lease_ns = self._alone_since_ns, self._acting.guard.config.lease_s * NS_PER_S
        return allowance(
            self.mode,
            link_up=self.link_up,
            plan_live=self._acting.book.live(now_ns),
            standalone=self.standalone,
            lease_over=since_ns is not None and now_ns - since_ns >= lease_ns,
            paused=bool(self.paused_by),
        )

    def _sampled(self, event: Sampled, now_ns: int) -> None:
        """Sampling never stops, not even in mode off: the rule's memory and the coordinator's history have no holes."""
        sample = event.sample
        allow = self._allowance(now_ns)
        self._acting.meet(event.runs, sorted(sample.vms), now_ns)
        # All values first: what one VM is promised bounds what another may get, and what is not ours is not acted on.
        known = self._acting.ledger.note_samples(sample.vms, sample.wall_ns, event.seen_ns)
        asks: list[tuple[str, VmRecord, Ask]] = []
        for vm_id, record, reading in known:
            self._acting.watch(vm_id, now_ns)
            if record.domain.policy.excluded:
                continue
            wanted = self._rule.asks(
                reading, record.situation, record.demand, sample.wall_ns, planned=allow.planned, sustained=allow.sustained
            )
            asks.extend((vm_id, record, ask) for ask in wanted)
        self._acting.locals(asks, allow, now_ns)
        self._out.extend(self._shipper.sample(sample))

    def _tick(self, now_ns: int) -> None:
        if self._alone_since_ns is None and not self.link_up and not self.standalone:
            self._alone_since_ns = now_ns
        allow = self._allowance(now_ns)
        if self.paused_by:
            self._acting.moves.follow(False, now_ns)  # flights are neither followed up nor undone; moves are given up
        else:
            self._acting.follow(self.mode.acts, now_ns)
        self._acting.decay(allow, now_ns)
        self._acting.pursue(allow, now_ns)
        self._ship_outcomes()
        if self.link_up and not 0 < self._status_due_ns - now_ns <= HEARTBEAT_NS:
            self._send_status(now_ns)

    def _inventory(self, event: InventoryRead, now_ns: int) -> None:
        domains = tuple(sorted(event.domains, key=lambda domain: domain.vm_id))
        changed = domains != self._domains
        self._domains = domains
        self._acting.define(with_orders(domains, self._policies), now_ns)
        if changed and self.link_up:
            self._out.append(SendMessage(message=Inventory(domains=domains)))

    def _set_mode(self, pinned: Mode | None, ordered: Mode | None, now_ns: int) -> None:
        if (pinned, ordered) == (self.pinned, self.ordered):
            return
        old = self.mode
        self.pinned, self.ordered = pinned, ordered
        new = self.mode
        self._out.append(PersistMode(pinned=pinned, ordered=ordered))
        fields: dict[str, str | int] = {"old": old, "new": new, "pinned": int(self.mode_pinned)}
        self._out.append(Note(level="info", event="mode", fields=fields))
        if new is not old:
            # What was queued to act must not turn up as a shadow, and what was shadowed must not act: the next plan decides.
            self._acting.forbid_plans(RefusalCode.MODE_FORBIDS, "the mode changed", now_ns)
        if self.link_up:
            self._send_status(now_ns)

    def _pause(self, event: PauseOrdered, now_ns: int) -> None:
        held = set(self.paused_by) | {event.by} if event.paused else set(self.paused_by) - {event.by}
        if held == set(self.paused_by):
            return
        self.paused_by = tuple(sorted(held))
        # The file says for itself, at every start, whether it holds.
        self._out.append(PersistPause(by=tuple(by for by in self.paused_by if by != "file")))
        fields: dict[str, str | int] = {"by": event.by, "paused": int(event.paused), "held_by": ", ".join(self.paused_by)}
        self._out.append(Note(level="warning", event="pause", fields=fields))
        if self.paused_by:
            self._acting.pause(", ".join(self.paused_by), now_ns)
        else:
            self._acting.resume(now_ns)
        if self.link_up:
            self._send_status(now_ns)

    def _link(self, event: LinkUp | LinkDown | Acked, now_ns: int) -> None:
        if isinstance(event, LinkDown):
            if self.link_up:
                self.link_up, self._alone_since_ns = False, now_ns
                self._out.append(Note(level="warning", event="link_down", fields={"epoch": self._epoch}))
            return
        if isinstance(event, LinkUp):
            self.link_up, self._alone_since_ns = True, None
            self._epoch = max(self._epoch, event.epoch)
            self._out.append(Note(level="info", event="link_up", fields={"epoch": event.epoch, "acked": event.acked}))
            self._out.append(SendMessage(message=Inventory(domains=self._domains)))
            self._send_status(now_ns)
        sequence = event.acked if isinstance(event, LinkUp) else event.sequence
        if sequence >= self._shipper.next_sequence:
            # Believing it would drop frames that nobody has. Numbers that the coordinator holds would be taken for repeats, though.
            self._out.append(Note(level="error", event="ack_from_the_future", fields={"sequence": sequence, "next": self.next_sequence}))
            if isinstance(event, LinkUp):
                self._shipper.next_sequence = sequence + 1
        elif sequence >= 0:
            self._out.append(TrimSpool(sequence=sequence))

    def _ends(self, event: Started | Stopping) -> None:
        if isinstance(event, Started):
            for outcome in self._unshipped:
                self._shipper.outcome(outcome)
            self._unshipped = ()
            self._ship_outcomes()
            return
        self._announce(self._shipper.flush())

    def _ship_outcomes(self) -> None:
        if self._shipper.outcomes_waiting:
            self._announce(self._shipper.outcomes())

    def _announce(self, frames: list[SpoolFrame]) -> None:
        if frames:
            self._out.extend(frames)
            self._out.append(WriteJournal(entry=Shipped(sequence=frames[-1].sequence)))

    def _send_status(self, now_ns: int) -> None:
        self._status_due_ns = now_ns + HEARTBEAT_NS
        self._out.append(SendMessage(message=self.status(now_ns)))
