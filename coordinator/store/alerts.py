"""Alerts, silences and the outbox of notifications, in the registry's database. Every write is one transaction.

The transactional outbox is what makes "nothing lost" true: a change of an alert and the notes that tell of it are durable together or not
at all, and a note goes only when its receiver took it. Killed in between, the same note goes again, under the same id. Bounded:
MAX_WAITING notes for each receiver (the oldest go, and are counted), resolved alerts for RETENTION_S and at most MAX_ALERTS, silences for
a week after their end. Raises HostError where the database refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.learning.alerts import Alert, Change, Turn
from coordinator.learning.silences import Silence
from coordinator.store.alert_tables import alert_outbox, alerts, silences
from coordinator.store.transactions import transaction
from shared.units import NS_PER_S

MAX_WAITING: Final = 10_000  # notes of one receiver: a week of one a minute; about 20 MB
MAX_ALERTS: Final = 100_000
RETENTION_S: Final = 30 * 86_400
SILENCES_S: Final = 7 * 86_400
_DIALECTS: Final = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One alert in a note."""

    turn: Turn
    alert: Alert


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What receivers are told at once: turns of one rule's alerts. The same id means the same note."""

    id: str
    created_s: float
    rule: str
    entries: tuple[Entry, ...]


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A note that a receiver has not taken yet; `place` orders them."""

    place: int
    note: Note


class AlertStore:
    """`engine`: the registry's; its tables exist."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Any = _DIALECTS[engine.dialect.name]

    def save(self, changes: Sequence[Change], notes: Sequence[Note], receivers: Sequence[str]) -> None:
        """Alerts as they are now, and what each receiver is to be told: all or nothing. A note that is there already stays as it is."""
        gone = [change.alert.id for change in changes if change.turn is Turn.DROPPED]
        kept = {change.alert.id: change.alert for change in changes if change.turn is not Turn.DROPPED}
        rows = [
            {"id": a.id, "rule": a.rule, "active": int(a.active), "started_s": int(a.started_s), "alert": _json(a)} for a in kept.values()
        ]
        told = [
            {"receiver": receiver, "note_id": note.id, "created_ns": int(note.created_s * NS_PER_S), "note": _json(note)}
            for note in notes
            for receiver in receivers
        ]
        with transaction(self._engine) as connection:
            if gone:
                connection.execute(delete(alerts).where(alerts.c.id.in_(gone)))
            if rows:
                self._upsert(connection, alerts, rows)
            if told:
                connection.execute(self._insert(alert_outbox).on_conflict_do_nothing(index_elements=["receiver", "note_id"]), told)

    def load(self, resolved: int) -> list[Alert]:
        """Every active alert and the newest resolved ones."""
        active = select(alerts.c.alert).where(alerts.c.active == 1)
        ended = select(alerts.c.alert).where(alerts.c.active == 0).order_by(alerts.c.started_s.desc(), alerts.c.id).limit(resolved)
        return [msgspec.json.decode(row[0], type=Alert) for query in (active, ended) for row in self._rows(query)]

    def waiting(self, receiver: str, limit: int) -> list[Waiting]:
        """Oldest first."""
        query = select(alert_outbox.c.id, alert_outbox.c.note).where(alert_outbox.c.receiver == receiver)
        rows = self._rows(query.order_by(alert_outbox.c.id).limit(limit))
        return [Waiting(place=row[0], note=msgspec.json.decode(row[1], type=Note)) for row in rows]

    def taken(self, place: int) -> None:
        """The receiver has it."""
        with transaction(self._engine) as connection:
            connection.execute(delete(alert_outbox).where(alert_outbox.c.id == place))

    def backlog(self) -> dict[str, tuple[int, int]]:
        """receiver -> notes that wait, ns of the oldest."""
        columns = (alert_outbox.c.receiver, func.count(), func.min(alert_outbox.c.created_ns))
        return {row[0]: (row[1], row[2]) for row in self._rows(select(*columns).group_by(alert_outbox.c.receiver))}

    def save_silence(self, silence: Silence) -> None:
        with transaction(self._engine) as connection:
            self._upsert(connection, silences, [{"id": silence.id, "ends_s": int(silence.ends_s), "silence": _json(silence)}])

    def silences(self) -> list[Silence]:
        """By id; those that have ended of late too."""
        return [msgspec.json.decode(row[0], type=Silence) for row in self._rows(select(silences.c.silence).order_by(silences.c.id))]

    def prune(self, now_s: float, receivers: Sequence[str]) -> int:
        """Delete what is past its bound, and notes for receivers that are not set any more; how many notes nobody will ever get."""
        lost = 0
        with transaction(self._engine) as connection:
            connection.execute(delete(silences).where(silences.c.ends_s < int(now_s) - SILENCES_S))
            ended = select(alerts.c.started_s).where(alerts.c.active == 0).order_by(alerts.c.started_s.desc())
            edge = connection.execute(ended.offset(MAX_ALERTS - 1).limit(1)).scalar()
            oldest = max(int(now_s) - RETENTION_S, -1 if edge is None else edge)
            connection.execute(delete(alerts).where(alerts.c.active == 0, alerts.c.started_s < oldest))
            lost += connection.execute(delete(alert_outbox).where(alert_outbox.c.receiver.not_in(receivers))).rowcount
            for receiver in receivers:
                mine = select(alert_outbox.c.id).where(alert_outbox.c.receiver == receiver).order_by(alert_outbox.c.id.desc())
                last = connection.execute(mine.offset(MAX_WAITING).limit(1)).scalar()
                if last is not None:
                    lost += connection.execute(
                        delete(alert_outbox).where(alert_outbox.c.receiver == receiver, alert_outbox.c.id <= last)
                    ).rowcount
        return lost

    def _upsert(self, connection: Connection, table: Table, rows: Sequence[dict[str, object]]) -> None:
        insert = self._insert(table)
        changed = {column.name: insert.excluded[column.name] for column in table.columns if column.name != "id"}
        connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed), list(rows))

    def _rows(self, query: Any) -> list[Any]:
        with transaction(self._engine) as connection:
            return list(connection.execute(query))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
