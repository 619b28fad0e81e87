"""Tables of service-objective minutes: one document an hour, see coordinator/learning/compliance_hours.py."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, LargeBinary, Table

from coordinator.store.tables import metadata

compliance_hours = Table(
    "compliance_hours",
    metadata,
    Column("hour_s", BigInteger, primary_key=True, autoincrement=False),
    Column("document", LargeBinary, nullable=False),
)
