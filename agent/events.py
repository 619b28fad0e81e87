"""What the agent's core is told (events) and what it wants done (instructions), and the entries of its journal.

Why: the core decides, the service performs. A run of the agent is the list of its events, so any run replays.
Invariant: the service carries out the instructions of one event in the order given; a journal entry is written before what follows it.
Times are wall nanoseconds. "Local" steps are those the agent decides itself; plan steps come from the coordinator.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.ports import MigrationProgress
from shared.config import GuardConfig, MigrationConfig, ReactiveConfig
from shared.messages import Inventory, Outcomes, Samples, Status
from shared.model import Allocation, Domain, HostSample, Mode, Policy
from shared.plan import Outcome, Plan, Step, StepKind
from shared.refusal import RefusalCode


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """First event of a process: steps found open in the journal are taken up again."""


class Stopping(msgspec.Struct, frozen=True, kw_only=True):
    """Last event of a process: what is collected but not yet a frame becomes one."""


class InventoryRead(msgspec.Struct, frozen=True, kw_only=True):
    """Every domain of the host, whole."""

    domains: tuple[Domain, ...]


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """One derived sampling round. `runs`: VM -> identity of its present run (RawVm.epoch), which changes with a restart or a migration.

    `seen_ns`: wall time of its oldest reading (libvirt is asked ahead of the round); None = the sample's own. What was read back later
    than that is newer than the sample.
    """

    sample: HostSample
    runs: dict[str, str] = {}
    seen_ns: int | None = None


class PlanArrived(msgspec.Struct, frozen=True, kw_only=True):
    """A plan came in over the link."""

    plan: Plan


class ModeOrdered(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator's order for this host (Welcome.mode or SetMode)."""

    mode: Mode


class PoliciesOrdered(msgspec.Struct, frozen=True, kw_only=True):
    """Policies in force for VMs of this host over what their domains say; VMs that are not named go by their own."""

    policies: dict[str, Policy]


class ModePinned(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's command on the host; None takes the pin away."""

    mode: Mode | None


class PauseOrdered(msgspec.Struct, frozen=True, kw_only=True):
    """The kill switch, by "owner" (command line), "file" or "coordinator"; each holds or lets go its own."""

    paused: bool
    by: str


class UndoOrdered(msgspec.Struct, frozen=True, kw_only=True):
    """The owner wants steps taken back: one by id, or every one begun since a wall time; of one VM where it is named."""

    step_id: str = ""
    since_ns: int | None = None
    vm_id: str = ""


class SettingsChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration was read anew and is valid."""

    guard: GuardConfig
    reactive: ReactiveConfig
    migration: MigrationConfig


class MigrationProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to WatchMigration; None = no migration of this VM is under way."""

    vm_id: str
    progress: MigrationProgress | None


class MigrationEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The migrate call returned: moved, or (with `code` or `detail`) not."""

    step_id: str
    moved: bool
    code: RefusalCode | None = None
    detail: str = ""
    progress: MigrationProgress | None = None  # final figures, where the hypervisor gave any


class LimitsArrived(msgspec.Struct, frozen=True, kw_only=True):
    """A VM came here by migration; these limits were in force where it came from."""

    vm_id: str
    limits: Allocation


class LinkUp(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator said Welcome. `acked` = highest sequence of ours it holds (-1 = none)."""

    epoch: int
    acked: int


class LinkDown(msgspec.Struct, frozen=True, kw_only=True):
    """The connection is gone."""


class Acked(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator holds everything up to `sequence`."""

    boot_id: str
    sequence: int


class StepAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """The hypervisor took the request. Not yet done."""

    step_id: str


class StepRejected(msgspec.Struct, frozen=True, kw_only=True):
    """The submit call failed. `code` None = HostError; then `retriable` says that its fate is not known (timeout, lost connection)."""

    step_id: str
    code: RefusalCode | None = None
    detail: str = ""
    retriable: bool = False


class AllocationRead(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to ReadBack; None = could not be read."""

    vm_id: str
    allocation: Allocation | None


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """Time passes: about once a second."""


Event = (
    Started
    | Stopping
    | InventoryRead
    | Sampled
    | PlanArrived
    | ModeOrdered
    | PoliciesOrdered
    | ModePinned
    | LinkUp
    | LinkDown
    | Acked
    | StepAccepted
    | StepRejected
    | AllocationRead
    | PauseOrdered
    | UndoOrdered
    | SettingsChanged
    | MigrationProgressed
    | MigrationEnded
    | LimitsArrived
    | Tick
)


class Intent(msgspec.Struct, frozen=True, kw_only=True, tag="intent"):
    """Journalled before a submit. `step.value` is what is submitted; `asked` what was asked for; `before` the before-image."""

    step: Step
    asked: int
    before: int
    origin: str
    at_ns: int
    undo_of: str = ""  # id of the step that this one takes back
    goal: Step | None = None  # the plan's step when this is one stride towards it


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag="closed"):
    """How a step ended."""

    outcome: Outcome


class PlanAccepted(msgspec.Struct, frozen=True, kw_only=True, tag="plan"):
    """A plan was taken: nothing older is, and none of its steps a second time."""

    epoch: int
    sequence: int
    at_ns: int
    step_ids: tuple[str, ...] = ()


class Shipped(msgspec.Struct, frozen=True, kw_only=True, tag="shipped"):
    """Every outcome closed above this line is in the spool, in frames up to `sequence`."""

    sequence: int


class Owned(msgspec.Struct, frozen=True, kw_only=True, tag="owned"):
    """What is ours and what is the owner's of one VM, whole; replaces every earlier one of this VM. No values at all: the VM is forgotten.

    `foreign`: the levers that somebody else was just seen to change; steps of ours on them are no longer ours to take back.
    """

    vm_id: str
    at_ns: int
    run: str = ""
    believed: dict[StepKind, int] = {}
    defaults: dict[StepKind, int] = {}  # before the first touch by us in this run
    held: dict[StepKind, int] = {}  # lever -> until when nobody but the owner touches it
    yielded_until_ns: int = 0
    oom_at_ns: int | None = None  # newest sample in which its guest had killed for want of memory
    foreign: tuple[StepKind, ...] = ()


JournalEntry = Intent | Closed | PlanAccepted | Shipped | Owned


class WriteJournal(msgspec.Struct, frozen=True, kw_only=True):
    """Append to the journal; an Intent must be durable before the next instruction is carried out."""

    entry: JournalEntry


class SubmitStep(msgspec.Struct, frozen=True, kw_only=True):
    """Call Hypervisor.submit; answer with StepAccepted or StepRejected."""

    step: Step


class ReadBack(msgspec.Struct, frozen=True, kw_only=True):
    """Read the allocation in force; answer with AllocationRead."""

    vm_id: str


class SpoolFrame(msgspec.Struct, frozen=True, kw_only=True):
    """Put into the spool (and send). `sequence` is the message's own."""

    sequence: int
    message: Samples | Outcomes


class TrimSpool(msgspec.Struct, frozen=True, kw_only=True):
    """Frames up to and including `sequence` are durable elsewhere."""

    sequence: int


class SendMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Send when connected; not spooled."""

    message: Inventory | Status


class PersistMode(msgspec.Struct, frozen=True, kw_only=True):
    """Store both, so that they survive a restart."""

    pinned: Mode | None
    ordered: Mode | None


class PersistPause(msgspec.Struct, frozen=True, kw_only=True):
    """Store who holds the kill switch, so that it survives a restart ("file" is not stored: the file itself says so)."""

    by: tuple[str, ...]


class StartMigration(msgspec.Struct, frozen=True, kw_only=True):
    """Call Migrator.migrate in a thread of its own; answer with MigrationEnded."""

    step: Step
    uri: str
    bits_per_s: int
    limits: Allocation


class WatchMigration(msgspec.Struct, frozen=True, kw_only=True):
    """Ask how far it is; answer with MigrationProgressed."""

    vm_id: str


class TuneMigration(msgspec.Struct, frozen=True, kw_only=True):
    """Change what a running migration may use."""

    vm_id: str
    bits_per_s: int


class AbortMigration(msgspec.Struct, frozen=True, kw_only=True):
    """Give up a running migration."""

    vm_id: str


class TakenUp(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that travelled with this VM are in force or refused: Migrator.taken_up."""

    vm_id: str


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A line for the log; `level` is debug, info, warning or error."""

    level: str
    event: str
    fields: dict[str, str | int]


Instruction = (
    WriteJournal
    | SubmitStep
    | ReadBack
    | SpoolFrame
    | TrimSpool
    | SendMessage
    | PersistMode
    | PersistPause
    | StartMigration
    | WatchMigration
    | TuneMigration
    | AbortMigration
    | TakenUp
    | Note
)


class Verb(StrEnum):
    """What a Decision in a VM's story records besides the outcomes of steps."""

    SUBMITTED = "submitted"
    UNDO = "undo"
    WAITING = "waiting"
    FOREIGN = "foreign"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a VM's story: `verdict` is a Verb or an OutcomeState. Values in the lever's unit, -1 = unlimited."""

    at_ns: int
    kind: str
    from_value: int | None
    to_value: int | None
    origin: str
    verdict: str
    code: str = ""
    reason: str = ""
    detail: str = ""
    step_id: str = ""
