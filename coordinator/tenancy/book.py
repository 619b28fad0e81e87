"""All that is registered, as one value: a change makes a new book. Pure.

The registry holds the same rows on disk; answers and decisions read the book, so neither waits for a disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.learning.objectives import Sla
from coordinator.tenancy.model import FLEET_POLICY, ApplicationSpec, ClientSpec, EventSpec, Kind, PolicySpec, Row, SlaSpec, Spec


@dataclass(frozen=True, kw_only=True)
class Book:
    """Rows by id. Never changed in place."""

    clients: Mapping[str, Row[ClientSpec]] = field(default_factory=dict)
    applications: Mapping[str, Row[ApplicationSpec]] = field(default_factory=dict)
    slas: Mapping[str, Row[SlaSpec]] = field(default_factory=dict)
    policies: Mapping[str, Row[PolicySpec]] = field(default_factory=dict)
    events: Mapping[str, Row[EventSpec]] = field(default_factory=dict)

    def of(self, kind: Kind) -> Mapping[str, Row[Spec]]:
        """The rows of one kind."""
        found: Mapping[str, Row[Spec]] = getattr(self, _FIELDS[kind])
        return found

    def with_rows(self, kind: Kind, rows: Iterable[Row[Spec]]) -> Book:
        """The same with these rows, put in or in place of those of their ids."""
        return self._with(kind, {**self.of(kind), **{row.id: row for row in rows}})

    def without(self, kind: Kind, ids: Iterable[str]) -> Book:
        """The same without these rows."""
        gone = set(ids)
        return self._with(kind, {id_: row for id_, row in self.of(kind).items() if id_ not in gone})

    def fleet_policy(self) -> PolicySpec | None:
        """What holds for every VM."""
        return self._policy(FLEET_POLICY)

    def client_policy(self, client: str) -> PolicySpec | None:
        """What holds for a client's VMs."""
        return self._policy(f"client/{client}")

    def vm_policy(self, vm_id: str) -> PolicySpec | None:
        """What holds for one VM."""
        return self._policy(f"vm/{vm_id}")

    def sla_of(self, client: str) -> Sla | None:
        """What a client was promised; None = nothing, or it is not registered."""
        row = self.clients.get(client)
        promised = None if row is None or row.spec.sla is None else self.slas.get(row.spec.sla)
        return None if promised is None else Sla(id=promised.id, name=promised.spec.name, objectives=promised.spec.objectives)

    def slas_by_client(self) -> Iterator[tuple[str, Sla]]:
        """Every client that was promised something."""
        for client in self.clients:
            if (sla := self.sla_of(client)) is not None:
                yield client, sla

    def _with(self, kind: Kind, rows: Mapping[str, Row[Spec]]) -> Book:
        changed: dict[str, Any] = {_FIELDS[kind]: rows}  # rows of a kind have the specs of the kind
        return replace(self, **changed)

    def _policy(self, id_: str) -> PolicySpec | None:
        row = self.policies.get(id_)
        return None if row is None else row.spec


_FIELDS = {
    Kind.CLIENT: "clients",
    Kind.APPLICATION: "applications",
    Kind.SLA: "slas",
    Kind.POLICY: "policies",
    Kind.EVENT: "events",
}
