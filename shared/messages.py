"""Wire messages, version 1: one tagged union per direction, validated by msgspec at the edge.

Additive only: new optional fields and new tags; an unknown tag of the same version is a PeerError.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from shared.model import Domain, HostCapacity, Identifier, Label, Mode, Policy
from shared.plan import Outcome, Plan

Sequence = Annotated[int, Meta(ge=0, le=2**53)]


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """Agent's first message. `host_id` must equal the identity in its certificate."""

    host_id: Identifier
    boot_id: Identifier
    agent_version: Label
    wall_ns: int
    capacity: HostCapacity
    mode: Mode
    mode_pinned: bool
    hypervisor: Label = ""
    takes_policies: bool = False  # SetPolicies may be sent: an older agent would drop the connection over it


class Inventory(msgspec.Struct, frozen=True, kw_only=True, tag="inventory"):
    """The domains of the host, whole; sent after Hello and when they change. Not spooled: the newest is the truth."""

    domains: Annotated[tuple[Domain, ...], Meta(max_length=4096)]


class Samples(msgspec.Struct, frozen=True, kw_only=True, tag="samples"):
    """Spooled, acknowledged. `block` is a columnar sample block of shared.frame."""

    boot_id: Identifier
    sequence: Sequence
    block: Annotated[bytes, Meta(max_length=8 * 1024 * 1024)]


class Outcomes(msgspec.Struct, frozen=True, kw_only=True, tag="outcomes"):
    """Spooled, acknowledged in the same sequence as Samples."""

    boot_id: Identifier
    sequence: Sequence
    outcomes: Annotated[tuple[Outcome, ...], Meta(max_length=4096)]


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """Mode and health, sent on change and as heartbeat. Not spooled."""

    wall_ns: int
    mode: Mode
    mode_pinned: bool
    spool_frames: Sequence = 0
    spool_dropped: Sequence = 0
    plan_epoch: Sequence = 0
    plan_sequence: Sequence = 0
    paused_by: Annotated[tuple[Label, ...], Meta(max_length=8)] = ()  # who holds the kill switch: "owner", "file", "coordinator"
    vms_yielded: Sequence = 0  # VMs left to somebody else who changed them


AgentMessage = Hello | Inventory | Samples | Outcomes | Status


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """Coordinator's answer to Hello. `acked` = highest sequence of this boot already durable (-1 = none)."""

    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    wall_ns: int
    acked: Annotated[int, Meta(ge=-1, le=2**53)]
    mode: Mode | None = None
    paused: bool | None = None


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag="ack"):
    """Everything of `boot_id` up to and including `sequence` is durable."""

    boot_id: Identifier
    sequence: Sequence


class SendPlan(msgspec.Struct, frozen=True, kw_only=True, tag="plan"):
    """A plan for this host."""

    plan: Plan


class SetMode(msgspec.Struct, frozen=True, kw_only=True, tag="mode"):
    """The API's order for this host; a local pin wins over it."""

    mode: Mode


class SetPause(msgspec.Struct, frozen=True, kw_only=True, tag="pause"):
    """The fleet's kill switch, for this host. Wins over everything, a local pin included."""

    paused: bool


class SetPolicies(msgspec.Struct, frozen=True, kw_only=True, tag="policies"):
    """The policies in force for VMs of this host that differ from what their domains say; whole, it replaces the one before."""

    policies: Annotated[dict[Identifier, Policy], Meta(max_length=4096)]


class Goodbye(msgspec.Struct, frozen=True, kw_only=True, tag="goodbye"):
    """Why the coordinator closes the connection, and when to try again."""

    reason: Label
    retry_after_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0


CoordinatorMessage = Welcome | Ack | SendPlan | SetMode | SetPause | SetPolicies | Goodbye
