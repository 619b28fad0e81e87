"""Tokens and audit rows as the API shows them. A plain token is in one answer only: that which made it."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from coordinator.store.audit_chain import AuditRow
from coordinator.store.tokens import Grant
from shared.roles import Role
from shared.units import NS_PER_S

MAX_DAYS: Final = 3650

Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]


class TokenOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token to be made. `client` with role client, and only then."""

    name: Name
    role: Role = Role.OPERATOR
    client: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    expires_days: Annotated[float, Meta(gt=0, le=MAX_DAYS, description="from now; none = never")] | None = None


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """One token, without itself. `used_s` is coarse: to ten minutes."""

    id: str
    name: str
    role: Role
    client: str | None
    created_s: float
    created_by: str
    expires_s: float | None
    revoked_s: float | None
    used_s: int | None


class TokenMade(msgspec.Struct, frozen=True, kw_only=True):
    """`token` is shown this once; None in an answer that an Idempotency-Key repeats."""

    token: str | None
    made: TokenView


class TokenList(msgspec.Struct, frozen=True, kw_only=True):
    """By the time they were made; those that are over stay for 90 days."""

    items: tuple[TokenView, ...]


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """The caller as this coordinator knows it. `how`: by which token, certificate or address; no secret."""

    name: str
    role: Role | None
    client: str | None
    how: str


class AuditView(msgspec.Struct, frozen=True, kw_only=True):
    """One write: who, how, what, and what came of it. `hash` covers all of it and `previous`, the hash of the row before."""

    sequence: int
    time_ns: int
    actor: str
    role: str
    how: str
    action: str
    target: str
    what: str
    status: int
    result: str
    request_id: str
    previous: str
    hash: str


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first. `next_cursor` None = these were the oldest."""

    items: tuple[AuditView, ...]
    next_cursor: int | None


def token_view(grant: Grant) -> TokenView:
    """What may be shown of a grant."""
    return TokenView(
        id=grant.id,
        name=grant.name,
        role=grant.role,
        client=grant.client,
        created_s=grant.created_ns / NS_PER_S,
        created_by=grant.created_by,
        expires_s=_seconds(grant.expires_ns),
        revoked_s=_seconds(grant.revoked_ns),
        used_s=grant.used_s,
    )


def audit_view(row: AuditRow) -> AuditView:
    """All of a row."""
    return AuditView(**msgspec.structs.asdict(row))


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / NS_PER_S
