"""Which host each VM was with, from when to when: kept by the VM's UUID, so a migrated or renamed VM stays one VM.

A stay begins when the fleet places a VM with a host and ends when it places it elsewhere or nowhere. Invariants: a VM has at most one stay
without an end; telling the same again, or an older story after a newer one, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, select
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.fleet import Relocation
from coordinator.store.database import outages
from coordinator.store.vm_tables import vm_hosts


@dataclass(frozen=True, kw_only=True)
class Stay:
    """One VM with one host; `until_ns` None = still. Times by the coordinator's clock."""

    host_id: str
    since_ns: int
    until_ns: int | None


class Transactions(Protocol):
    """The registry: an engine, and the transaction that a thread's writes share."""

    engine: Engine

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """One for all that is written within."""
        ...


class VmHosts:
    """Over the registry's database. Raises HostError where that cannot take or give it now."""

    def __init__(self, registry: Transactions) -> None:
        self.together = registry.together
        self._writing, self._engine = registry.writing, registry.engine
        self._insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[registry.engine.dialect.name]

    def save(self, relocations: Sequence[Relocation]) -> None:
        """VMs' changes of host, oldest first, in one transaction."""
        wanted = sorted({each.vm_id for each in relocations})
        with self._writing() as connection:
            rows = connection.execute(select(vm_hosts).where(vm_hosts.c.vm_id.in_(wanted), vm_hosts.c.until_ns.is_(None)))
            still = {row.vm_id: (row.host_id, row.since_ns) for row in rows}
            changed: dict[tuple[str, int], dict[str, object]] = {}
            for each in relocations:
                host_id, since_ns = still.get(each.vm_id, (None, -1))
                if host_id == each.host_id or each.at_ns < since_ns:
                    continue
                if host_id is not None:
                    changed[each.vm_id, since_ns] = _row(each.vm_id, host_id, since_ns, each.at_ns)
                    del still[each.vm_id]
                if each.host_id is not None:
                    # two changes within one moment of the clock: the later one is where the VM is
                    changed[each.vm_id, each.at_ns] = _row(each.vm_id, each.host_id, each.at_ns, None)
                    still[each.vm_id] = (each.host_id, each.at_ns)
            if changed:
                insert = self._insert(vm_hosts)
                columns = {name: insert.excluded[name] for name in ("host_id", "until_ns")}
                statement = insert.on_conflict_do_update(index_elements=["vm_id", "since_ns"], set_=columns)
                connection.execute(statement, list(changed.values()))

    def of(self, vm_id: str, limit: int) -> list[Stay]:
        """Newest first."""
        query = select(vm_hosts).where(vm_hosts.c.vm_id == vm_id).order_by(vm_hosts.c.since_ns.desc()).limit(limit)
        with outages(self._engine), self._engine.connect() as connection:
            return [Stay(host_id=row.host_id, since_ns=row.since_ns, until_ns=row.until_ns) for row in connection.execute(query)]


def _row(vm_id: str, host_id: str, since_ns: int, until_ns: int | None) -> dict[str, object]:
    return {"vm_id": vm_id, "since_ns": since_ns, "host_id": host_id, "until_ns": until_ns}
