"""What happens at the agents' door, and what is to be done about it: the vocabulary of the core in sessions.py and its drivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shared.messages import (
    AgentMessage,
)
from shared.model import HostSample, Mode, Policy
from shared.plan import Plan

LOG_FULL: Final = "the coordinator's log is full"


@dataclass(frozen=True)
class Connected:
    """A peer passed the TLS handshake; `cert_host_id` is what its certificate says."""

    conn_id: int
    cert_host_id: str


@dataclass(frozen=True)
class Received:
    """One whole WebSocket message."""

    conn_id: int
    frame: bytes


@dataclass(frozen=True)
class Disconnected:
    """The transport is gone."""

    conn_id: int


@dataclass(frozen=True)
class Durable:
    """Every AppendWal of these streams up to these sequences is on disk."""

    upto: Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class StoreFull:
    """The coordinator can(not) make frames durable. While full, they stay on the agents and senders are sent away for a while."""

    full: bool
    reason: str = LOG_FULL


@dataclass(frozen=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True)
class PlanReady:
    """A plan for one host; the newest not yet delivered one is kept until the host is there or the plan has expired."""

    plan: Plan


@dataclass(frozen=True)
class ModeOrdered:
    """The API's order for a host; remembered, and repeated in every Welcome."""

    host_id: str
    mode: Mode


@dataclass(frozen=True)
class PauseOrdered:
    """The kill switch for one host, or for the whole fleet (None); remembered, and repeated in every Welcome."""

    host_id: str | None
    paused: bool


@dataclass(frozen=True)
class PoliciesOrdered:
    """Policies over those of domains, for one host; not remembered: the driver sends them again after every inventory."""

    host_id: str
    policies: Mapping[str, Policy]


Event = Connected | Received | Disconnected | Durable | StoreFull | Tick | PlanReady | ModeOrdered | PauseOrdered | PoliciesOrdered


@dataclass(frozen=True)
class Reply:
    """Send this frame."""

    conn_id: int
    frame: bytes


@dataclass(frozen=True)
class Close:
    """Close after what was sent before."""

    conn_id: int
    reason: str


@dataclass(frozen=True)
class AppendWal:
    """Log this frame; answer with Durable once it is on disk."""

    host_id: str
    boot_id: str
    sequence: int
    frame: bytes


@dataclass(frozen=True)
class Deliver:
    """Hand to the decision cycle. `samples` is the decoded block of a Samples message, else empty."""

    host_id: str
    message: AgentMessage
    samples: tuple[HostSample, ...] = ()


@dataclass(frozen=True)
class HostUp:
    """The host speaks (again)."""

    host_id: str


@dataclass(frozen=True)
class HostDown:
    """The host has been silent for too long: it counts as full."""

    host_id: str
    reason: str


@dataclass(frozen=True)
class PlanUnsent:
    """This plan was never on a connection and never will be: it expired, or a newer one came first."""

    plan: Plan


Instruction = Reply | Close | AppendWal | Deliver | HostUp | HostDown | PlanUnsent
