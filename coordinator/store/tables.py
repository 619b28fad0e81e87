"""The registry's tables. Structured values are JSON text by msgspec; the columns beside it are what queries select and sort by.

Additive only; a change that older code could not read raises SCHEMA_VERSION, and a registry newer than this code is refused.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

SCHEMA_VERSION: Final = 1

metadata = MetaData()

settings = Table("settings", metadata, Column("name", String(64), primary_key=True), Column("value", BigInteger, nullable=False))

hosts = Table(
    "hosts",
    metadata,
    Column("host_id", String(128), primary_key=True),
    Column("boot_id", String(128), nullable=False),
    Column("capacity", Text, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
)

domains = Table(
    "domains",
    metadata,
    Column("vm_id", String(128), primary_key=True),
    Column("host_id", String(128), nullable=False, index=True),
    Column("domain", Text, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
)

acked = Table(
    "acked",
    metadata,
    Column("host_id", String(128), primary_key=True),
    Column("boot_id", String(128), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
)

modes = Table("modes", metadata, Column("host_id", String(128), primary_key=True), Column("mode", String(16), nullable=False))

# "*" = the whole fleet
pauses = Table("pauses", metadata, Column("host_id", String(128), primary_key=True), Column("paused", Integer, nullable=False))

policies = Table("policies", metadata, Column("vm_id", String(128), primary_key=True), Column("policy", Text, nullable=False))

plans = Table(
    "plans",
    metadata,
    Column("host_id", String(128), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("issued_ns", BigInteger, nullable=False, index=True),
    Column("plan", Text, nullable=False),
)

receipts = Table(
    "receipts",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("vm_id", String(128), nullable=False),
    Column("issued_s", BigInteger, nullable=False, index=True),
    Column("receipt", Text, nullable=False),
    Index("receipts_by_vm", "vm_id", "issued_s"),
)

outcomes = Table(
    "outcomes",
    metadata,
    # SQLite numbers only an INTEGER key by itself
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("host_id", String(128), nullable=False),
    Column("step_id", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("vm_id", String(128), nullable=False, index=True),
    Column("finished_ns", BigInteger, nullable=False, index=True),
    Column("outcome", Text, nullable=False),
    UniqueConstraint("host_id", "step_id", "state"),
)

# plans of migrations, each as the state that it was last in
migrations = Table(
    "migrations",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("created_ns", BigInteger, nullable=False, index=True),
    Column("plan", Text, nullable=False),
)

# small documents by name: what execution must not forget between two plans
documents = Table("documents", metadata, Column("name", String(64), primary_key=True), Column("text", Text, nullable=False))

tokens = Table(
    "tokens",
    metadata,
    Column("token_hash", String(128), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
)
