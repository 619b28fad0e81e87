"""What is registered over the API, on disk: rows with a version, so that two who change the same thing at once cannot overwrite each other.

Invariant: a version is changed once only (`UPDATE ... WHERE version = n` decides it, also between two processes). What cannot be read back
is named and stops the start: a policy that is left out silently would be no policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from coordinator.store.tenancy_tables import TABLES
from coordinator.tenancy.book import Book
from coordinator.tenancy.model import SPECS, Kind, Row, Spec
from shared.errors import ConfigError, HostError, Refusal
from shared.refusal import RefusalCode


class TenancyStore:
    """On the registry's engine. Every method is one transaction and may block. Raises HostError where the database fails."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self) -> Book:
        """All of it. Raises ConfigError naming a row that this program cannot read."""
        book = Book()
        with self._transaction() as connection:
            for kind, table in TABLES.items():
                rows = connection.execute(select(table).order_by(table.c.id)).mappings()
                book = book.with_rows(kind, [_row(kind, row) for row in rows])
        return book

    def create(self, kind: Kind, id_: str, spec: Spec, actor: str, now_ns: int) -> Row[Spec]:
        """A new row, version 1. Raises Refusal(ALREADY_EXISTS)."""
        row = Row(id=id_, spec=spec, version=1, created_ns=now_ns, changed_ns=now_ns, changed_by=actor)
        values = {
            "id": id_,
            "version": 1,
            "created_ns": now_ns,
            "changed_ns": now_ns,
            "changed_by": actor,
            "spec": msgspec.json.encode(spec).decode(),
        }
        try:
            with self._transaction() as connection:
                connection.execute(insert(TABLES[kind]).values(**values))
        except _Taken as error:
            raise Refusal(RefusalCode.ALREADY_EXISTS, f"{kind} {id_!r} is registered already") from error
        return row

    def replace(self, kind: Kind, before: Row[Spec], spec: Spec, actor: str, now_ns: int) -> Row[Spec]:
        """The next version. Raises Refusal(VERSION_CHANGED) where `before` is not the newest."""
        row = Row(id=before.id, spec=spec, version=before.version + 1, created_ns=before.created_ns, changed_ns=now_ns, changed_by=actor)
        values = {"version": row.version, "changed_ns": now_ns, "changed_by": actor, "spec": msgspec.json.encode(spec).decode()}
        table = TABLES[kind]
        with self._transaction() as connection:
            changed = connection.execute(update(table).where(*_same(table, before)).values(**values)).rowcount
        _one(changed, kind, before)
        return row

    def remove(self, kind: Kind, before: Row[Spec]) -> None:
        """Raises Refusal(VERSION_CHANGED) where `before` is not the newest."""
        table = TABLES[kind]
        with self._transaction() as connection:
            changed = connection.execute(delete(table).where(*_same(table, before))).rowcount
        _one(changed, kind, before)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError as error:
            raise _Taken from error
        except SQLAlchemyError as error:
            raise HostError(f"registry: {error}") from error


class _Taken(Exception):
    """A row of this id is there."""


def _same(table: Table, row: Row[Spec]) -> tuple[ColumnElement[bool], ...]:
    return table.c.id == row.id, table.c.version == row.version, table.c.created_ns == row.created_ns


def _one(changed: int, kind: Kind, row: Row[Spec]) -> None:
    if changed != 1:
        raise Refusal(RefusalCode.VERSION_CHANGED, f"{kind} {row.id!r}: version {row.version} is no longer the newest")


def _row(kind: Kind, row: RowMapping) -> Row[Spec]:
    try:
        spec = msgspec.json.decode(row["spec"], type=SPECS[kind])
    except msgspec.ValidationError as error:
        raise ConfigError(f"registry: {kind} {row['id']!r}: {error}; it was stored by another version, or by hand") from error
    return Row(
        id=row["id"],
        spec=spec,
        version=row["version"],
        created_ns=row["created_ns"],
        changed_ns=row["changed_ns"],
        changed_by=row["changed_by"],
    )
