"""The registry's tables of alerts: alerts as they were last, silences, and what receivers are still to be told (the outbox)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text, UniqueConstraint

from coordinator.store.tables import metadata

alerts = Table(
    "alerts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("rule", String(64), nullable=False),
    Column("active", Integer, nullable=False, index=True),  # 1 = pending or firing
    Column("started_s", BigInteger, nullable=False, index=True),
    Column("alert", Text, nullable=False),
)

silences = Table(
    "silences",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("ends_s", BigInteger, nullable=False, index=True),
    Column("silence", Text, nullable=False),
)

# written in the transaction that changes the alert, deleted when the receiver has taken it
alert_outbox = Table(
    "alert_outbox",
    metadata,
    # SQLite numbers only an INTEGER key by itself
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("receiver", String(160), nullable=False),
    Column("note_id", String(64), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    UniqueConstraint("receiver", "note_id"),
    Index("alert_outbox_in_order", "receiver", "id"),
)
