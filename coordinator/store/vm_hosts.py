"""Which host each VM was with, from when to when: kept by the VM's UUID, so a migrated or renamed VM stays one VM.

A stay begins when the fleet places a VM with a host and ends when it places it elsewhere or nowhere. Invariants: a VM has at most one stay
without an end; telling the same again, or an older story after a newer one, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select, update
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


class VmHosts:
    """Over the registry's engine. Raises HostError where the database cannot take or give it now."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]

    def save(self, relocations: Sequence[Relocation]) -> None:
        """VMs' changes of host, oldest first, in one transaction."""
        with outages(self._engine), self._engine.begin() as connection:
            wanted = sorted({each.vm_id for each in relocations})
            rows = connection.execute(select(vm_hosts).where(vm_hosts.c.vm_id.in_(wanted), vm_hosts.c.until_ns.is_(None)))
            still = {row.vm_id: (row.host_id, row.since_ns) for row in rows}
            for each in relocations:
                host_id, since_ns = still.get(each.vm_id, (None, -1))
                if host_id == each.host_id or each.at_ns < since_ns:
                    continue
                if host_id is not None:
                    begun = (vm_hosts.c.vm_id == each.vm_id) & (vm_hosts.c.since_ns == since_ns)
                    connection.execute(update(vm_hosts).where(begun).values(until_ns=each.at_ns))
                    del still[each.vm_id]
                if each.host_id is not None:
                    row = {"vm_id": each.vm_id, "since_ns": each.at_ns, "host_id": each.host_id, "until_ns": None}
                    insert = self._insert(vm_hosts).values(row)
                    # two changes within one moment of the clock: the later one is where the VM is
                    changed = {"host_id": each.host_id, "until_ns": None}
                    connection.execute(insert.on_conflict_do_update(index_elements=["vm_id", "since_ns"], set_=changed))
                    still[each.vm_id] = (each.host_id, each.at_ns)

    def of(self, vm_id: str, limit: int) -> list[Stay]:
        """Newest first."""
        query = select(vm_hosts).where(vm_hosts.c.vm_id == vm_id).order_by(vm_hosts.c.since_ns.desc()).limit(limit)
        with outages(self._engine), self._engine.connect() as connection:
            return [Stay(host_id=row.host_id, since_ns=row.since_ns, until_ns=row.until_ns) for row in connection.execute(query)]
