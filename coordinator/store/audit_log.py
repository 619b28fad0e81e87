"""The audit on disk: rows are added, never changed. Several processes may write (the coordinator, the command line): the sequence is
the primary key, so two that take the same place cannot both have it, and the later one tries again behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from coordinator.store.access_tables import audit
from coordinator.store.audit_chain import FIRST, PRUNE, AuditEntry, AuditRow, Broken, Walk, chained, pruned
from coordinator.store.transactions import transaction
from shared.errors import HostError

TRIES: Final = 20  # against another writer; each loss means that the other one got on
PAGE: Final = 1000


class Wanted(NamedTuple):
    """Which rows; None = all. `before`: of a lower sequence; `target`: that it begins with; `since_ns`: of that moment and later."""

    before: int | None = None
    actor: str | None = None
    target: str | None = None
    result: str | None = None
    since_ns: int | None = None


class AuditLog:
    """Over the registry's engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """Durable when it returns. Raises HostError."""
        if not entries:
            return
        for _ in range(TRIES):
            try:
                self._append(entries)
            except IntegrityError:  # another process took the place
                continue
            except OperationalError as error:
                if "locked" not in str(error):
                    raise HostError(f"registry: {error}") from error
                continue
            except SQLAlchemyError as error:
                raise HostError(f"registry: {error}") from error
            return
        raise HostError(f"registry: the audit's end was taken by others {TRIES} times in a row")

    def newest(self, limit: int, wanted: Wanted | None = None) -> list[AuditRow]:
        """Newest first."""
        wanted = Wanted() if wanted is None else wanted
        query = select(audit)
        if wanted.before is not None:
            query = query.where(audit.c.sequence < wanted.before)
        if wanted.actor is not None:
            query = query.where(audit.c.actor == wanted.actor)
        if wanted.target is not None:
            query = query.where(audit.c.target.startswith(wanted.target, autoescape=True))
        if wanted.result is not None:
            query = query.where(audit.c.result == wanted.result)
        if wanted.since_ns is not None:
            query = query.where(audit.c.time_ns >= wanted.since_ns)
        with transaction(self._engine) as connection:
            rows = connection.execute(query.order_by(audit.c.sequence.desc()).limit(limit)).mappings()
            return [AuditRow(**row) for row in rows]

    def verify(self) -> tuple[Walk, Broken | None]:
        """Walk the whole chain, a page at a time."""
        walk = Walk()
        while True:
            query = select(audit).where(audit.c.sequence > walk.tip[0]).order_by(audit.c.sequence).limit(PAGE)
            with transaction(self._engine) as connection:
                rows = [AuditRow(**row) for row in connection.execute(query).mappings()]
            broken = walk.over(rows)
            if broken is not None or len(rows) < PAGE:
                return walk, broken or walk.end()

    def prune(self, keep: int, now_ns: int) -> int:
        """Drop all but the newest `keep` rows and say so in one more, in one transaction; how many went. Raises HostError."""
        with transaction(self._engine) as connection:
            newest = connection.execute(select(audit.c.sequence).order_by(audit.c.sequence.desc()).limit(1)).scalar() or 0
            first = newest - keep + 1
            oldest = connection.execute(select(audit.c.sequence).order_by(audit.c.sequence).limit(1)).scalar() or 0
            found = connection.execute(select(audit.c.previous).where(audit.c.sequence == first)).scalar()
            if found is None or first <= oldest:
                return 0
            words = {"actor": "", "role": "", "how": "coordinator", "action": PRUNE, "target": "audit", "result": "ok", "request_id": ""}
            entry = AuditEntry(time_ns=now_ns, what=pruned(first, found), status=0, **words)
            self._chain(connection, [entry])
            return connection.execute(delete(audit).where(audit.c.sequence < first)).rowcount

    def _append(self, entries: Sequence[AuditEntry]) -> None:
        with self._engine.begin() as connection:
            self._chain(connection, entries)

    @staticmethod
    def _chain(connection: Connection, entries: Sequence[AuditEntry]) -> None:
        last = connection.execute(select(audit.c.sequence, audit.c.hash).order_by(audit.c.sequence.desc()).limit(1)).first()
        sequence, previous = (0, FIRST) if last is None else (last.sequence, last.hash)
        rows = []
        for entry in entries:
            row = chained(entry, sequence + 1, previous)
            sequence, previous = row.sequence, row.hash
            rows.append(msgspec.structs.asdict(row))
        connection.execute(audit.insert(), rows)
