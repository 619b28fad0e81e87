"""Minutes of service objectives in the registry's database: an hour is one row that is replaced whole, in one transaction.

Bounded: hours older than the longest period are dropped with each new one; at 10,000 VMs a row is about 0.3 MB, 30 days 200 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Engine, Select, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.learning.compliance_hours import HourBits
from coordinator.store.compliance_tables import compliance_hours as t
from coordinator.store.transactions import transaction

_DIALECTS: Final = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class ComplianceStore:
    """`engine` of a registry whose tables are there. Every method raises HostError when the database refuses."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Any = _DIALECTS[engine.dialect.name]

    def save(self, hour: HourBits, drop_before_s: int = 0) -> None:
        """Replace an hour; hours that begin before `drop_before_s` go."""
        row = {"hour_s": hour.hour_s, "document": hour.encode()}
        insert = self._insert(t).values(row)
        with transaction(self._engine) as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["hour_s"], set_={"document": insert.excluded.document}))
            if drop_before_s:
                connection.execute(delete(t).where(t.c.hour_s < drop_before_s))

    def load(self, hour_s: int) -> HourBits | None:
        """One hour; None = nothing is stored of it."""
        return next(iter(self.hours(hour_s, hour_s + 1)), None)

    def hours(self, from_s: int = 0, until_s: int = 2**40) -> Iterator[HourBits]:
        """Hours that begin in [from_s, until_s), oldest first, one in memory at a time. ValueError where a document is none of ours."""
        keys = select(t.c.hour_s).where(t.c.hour_s >= from_s, t.c.hour_s < until_s).order_by(t.c.hour_s)
        for (hour_s,) in self._read(keys):
            for (document,) in self._read(select(t.c.document).where(t.c.hour_s == hour_s)):
                yield HourBits.decode(bytes(document))

    def _read(self, query: Select[Any]) -> list[Any]:
        with transaction(self._engine) as connection:
            return list(connection.execute(query))
