"""Tokens as they are stored: a hash, and what it grants. Tokens of before there were roles count as operators.

Invariant: only hashes are stored; a revoked token never comes back, whatever is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, delete, func, or_, select, update

from coordinator.store.access_tables import token_grants as grants
from coordinator.store.tables import tokens
from coordinator.store.transactions import transaction
from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode
from shared.roles import Role

MAX_TOKENS: Final = 10_000  # verification keeps them all in memory
KEPT_NS: Final = 90 * 86_400 * 10**9  # a token that is over stays in the list for so long
ID_DIGITS: Final = 16


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What one token may do. Times in ns of the real clock; `used_s` is coarse."""

    id: str
    name: str
    role: Role = Role.OPERATOR
    client: str | None = None  # of role client: whose VMs it sees
    created_ns: int = 0
    created_by: str = ""
    expires_ns: int | None = None
    revoked_ns: int | None = None
    used_s: int | None = None

    def holds(self, now_ns: int) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_ns is None and (self.expires_ns is None or now_ns < self.expires_ns)


def id_of(token_hash: str) -> str:
    """What a token is called in lists: the first digits of its hash."""
    return token_hash.removeprefix("sha256:")[:ID_DIGITS]


class TokenStore:
    """Over the registry's engine. Every method raises HostError when the database cannot."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def grants(self) -> dict[str, Grant]:
        """hash -> grant, all that are known, those that are over included."""
        with transaction(self._engine) as connection:
            return _grants(connection)

    def save(self, token_hash: str, grant: Grant, now_ns: int) -> None:
        """A new token. Refusal(RATE_LIMITED): as many as are kept."""
        over = or_(grants.c.revoked_ns < now_ns - KEPT_NS, grants.c.expires_ns < now_ns - KEPT_NS)
        with transaction(self._engine) as connection:
            connection.execute(delete(grants).where(over))
            if (connection.execute(select(func.count()).select_from(grants)).scalar() or 0) >= MAX_TOKENS:
                raise Refusal(RefusalCode.RATE_LIMITED, f"{MAX_TOKENS} tokens are kept: let some expire first")
            connection.execute(grants.insert().values(token_hash=token_hash, **_row(grant)))

    def revoke(self, name: str, now_ns: int) -> tuple[Grant, ...]:
        """Tokens of this id or name, revoked now; those that were already are left alone. Empty = none."""
        with transaction(self._engine) as connection:
            chosen = {
                token_hash: msgspec.structs.replace(grant, revoked_ns=now_ns)
                for token_hash, grant in _grants(connection).items()
                if name in (grant.id, grant.name) and grant.revoked_ns is None
            }
            for token_hash, grant in chosen.items():
                connection.execute(delete(tokens).where(tokens.c.token_hash == token_hash))
                connection.execute(delete(grants).where(grants.c.token_hash == token_hash))
                connection.execute(grants.insert().values(token_hash=token_hash, **_row(grant)))
        return tuple(chosen.values())

    def touch(self, used: Mapping[str, int]) -> None:
        """hash -> when it was used last, Unix seconds."""
        with transaction(self._engine) as connection:
            for token_hash, used_s in used.items():
                connection.execute(update(grants).where(grants.c.token_hash == token_hash).values(used_s=used_s))


def _grants(connection: Connection) -> dict[str, Grant]:
    found = {
        row["token_hash"]: Grant(id=id_of(row["token_hash"]), name=row["name"], created_ns=row["created_ns"])
        for row in connection.execute(select(tokens)).mappings()
    }
    for row in connection.execute(select(grants).order_by(grants.c.created_ns)).mappings():
        values: dict[str, Any] = {**row, "role": Role(row["role"])}
        token_hash = values.pop("token_hash")
        found[token_hash] = Grant(**values)
    return found


def _row(grant: Grant) -> dict[str, Any]:
    return {**msgspec.structs.asdict(grant), "role": grant.role.value}


class KnownGrants:
    """`grants` for the event loop: a registry that is in trouble (`why` says so) is not waited for, and what was known last stays."""

    def __init__(self, store: TokenStore, why: Callable[[], str]) -> None:
        self._store, self._why = store, why
        self._known = store.grants()

    def __call__(self) -> Mapping[str, Grant]:
        if not self._why():
            with suppress(HostError):
                self._known = self._store.grants()
        return self._known
