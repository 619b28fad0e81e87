"""Tables of what is registered over the API: clients, applications, SLAs, policies and events, all of one shape.

The spec is JSON by msgspec; queries select by id only, for the whole of a kind is held in memory (tenancy/model.py bounds it).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, String, Table, Text

from coordinator.store.tables import metadata
from coordinator.tenancy.model import Kind


def _table(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("id", String(160), primary_key=True),  # an identifier, in policies with its level before it
        Column("version", BigInteger, nullable=False),
        Column("created_ns", BigInteger, nullable=False),
        Column("changed_ns", BigInteger, nullable=False),
        Column("changed_by", String(128), nullable=False),
        Column("spec", Text, nullable=False),
    )


clients: Final = _table("clients")
applications: Final = _table("applications")
slas: Final = _table("slas")
policy_levels: Final = _table("policy_levels")
events: Final = _table("events")

TABLES: Final = {
    Kind.CLIENT: clients,
    Kind.APPLICATION: applications,
    Kind.SLA: slas,
    Kind.POLICY: policy_levels,
    Kind.EVENT: events,
}
