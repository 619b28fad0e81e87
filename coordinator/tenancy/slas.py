"""Which SLA holds for a VM: its client's registered one, else the settings'; a client's own error budget comes before either's."""

from __future__ import annotations

import msgspec

from coordinator.learning.objectives import DefaultSlas, Sla
from coordinator.tenancy.book import Book
from shared.model import Priority


class RegisteredSlas:
    """An SlaSource over the newest book. `version` grows with every book that may change an answer."""

    def __init__(self, settings: DefaultSlas) -> None:
        self.version = settings.version
        self._settings, self._book = settings, Book()

    def put(self, book: Book) -> None:
        """From now on this is what is registered."""
        self._book = book
        self.version += 1

    def sla_of(self, vm_id: str, client: str, application: str, priority: Priority) -> Sla:
        """The SLA in force for one VM."""
        promised = self._book.sla_of(client) or self._settings.sla_of(vm_id, client, application, priority)
        row = self._book.clients.get(client)
        own = None if row is None else row.spec.budget_permille
        if own is None:
            return promised
        parts = tuple(msgspec.structs.replace(each, share_permille=1000.0 - own) for each in promised.objectives)
        return msgspec.structs.replace(
            promised, id=f"{promised.id}-own", name=f"{promised.name}, budget of {client}"[:256], objectives=parts
        )
