"""A migration plan as a document: its moves, how far each is, and the limits that it keeps to. Changed by coordinator/planning/waves alone.

Versioned as the registry's documents are: additive, so that a plan of an older coordinator is read and carried on.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Phase(StrEnum):
    """Where a move is. The last four are ends."""

    WAITING = "waiting"
    QUEUED = "queued"  # in the running wave, for a slot of its source or target
    SENT = "sent"
    SETTLING = "settling"  # the agent verified it; seen and watched on its target
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # never sent
    LOST = "lost"  # sent, and nobody ever said how it ended


OVER: Final = frozenset({Phase.DONE, Phase.FAILED, Phase.SKIPPED, Phase.LOST})
OPEN: Final = frozenset({Phase.QUEUED, Phase.SENT, Phase.SETTLING})


class Status(StrEnum):
    """Where a plan is. The last three are ends."""

    PROPOSED = "proposed"  # waits for an operator
    RUNNING = "running"
    STOPPING = "stopping"  # nothing new begins; what is in flight ends
    DONE = "done"
    STOPPED = "stopped"  # by its second regression
    ABORTED = "aborted"  # by an operator


class WaveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one wave may touch."""

    vms: int = 10
    hosts: int = 8  # sources and targets
    racks: int = 4
    clients: int = 4
    client_share: float = 0.25  # of one client's VMs, but always one
    per_source: int = 2  # under way at a time
    per_target: int = 2


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long things are waited for, and how often they are tried. Seconds."""

    tries: int = 3
    retry_s: float = 30.0
    begin_s: float = 120.0  # within which the agent must begin
    lost_s: float = 300.0  # beyond twice the expected length without any word
    seen_s: float = 90.0  # from the outcome to the VM being seen on its target
    settle_s: float = 60.0  # watched on its target
    regressions: int = 2  # the plan ends with this one
    failed_s: float = 21_600.0  # a failed (VM, host) pair is remembered
    cooldown_s: float = 3_600.0  # a VM that has moved stays


class PlannedMove(msgspec.Struct, frozen=True, kw_only=True):
    """One migration of a plan, and where it is. `after`: moves (by number) whose failure takes this one's room or rule away."""

    vm_id: str
    client: str
    source: str
    target: str
    racks: tuple[str, str]
    stage: int
    not_before_ns: int
    latest_ns: int  # to begin; later its ramp has come
    seconds: float
    block: int = -1
    parking: bool = False
    after: tuple[int, ...] = ()
    phase: Phase = Phase.WAITING
    tries: int = 0
    step_id: str = ""  # of the newest try
    sent_ns: int = 0
    changed_ns: int = 0
    strain: float = 0.0  # of the VM when it was sent, 0..1
    why: str = ""


class MigrationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state."""

    id: str
    created_ns: int
    moves: tuple[PlannedMove, ...]
    status: Status = Status.PROPOSED
    dropped: dict[str, str] = {}  # vm_id -> why it has no move at all
    awake_by_ns: dict[str, int] = {}  # sleeping hosts that moves count on
    limits: WaveLimits = WaveLimits()
    patience: Patience = Patience()
    wave: int = 0
    regressions: int = 0
    stalled_ns: int = 0  # since when moves are due and none can begin; 0 = not so
    why: str = ""
    actor: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing of it will happen any more."""
        return self.status in (Status.DONE, Status.STOPPED, Status.ABORTED)

    @property
    def hosts(self) -> frozenset[str]:
        """Hosts that open moves count on."""
        return frozenset(host for move in self.moves if move.phase not in OVER for host in (move.source, move.target))
