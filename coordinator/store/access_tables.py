"""Tables of who may do what and who did: token grants, the audit chain, kept answers, operations. Part of tables.metadata."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from coordinator.store.tables import metadata

token_grants = Table(
    "token_grants",
    metadata,
    Column("token_hash", String(128), primary_key=True),
    Column("id", String(32), nullable=False, unique=True),  # first digits of the hash: names a token without being one
    Column("name", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("client", String(256)),  # of role client only
    Column("created_ns", BigInteger, nullable=False),
    Column("created_by", String(300), nullable=False),
    Column("expires_ns", BigInteger),  # NULL = never
    Column("revoked_ns", BigInteger),
    Column("used_s", BigInteger),  # coarse: noted at most every ten minutes
)

# append-only: `sequence` is dense, `hash` covers `previous` and all other columns
audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("time_ns", BigInteger, nullable=False, index=True),
    Column("actor", String(300), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("how", String(300), nullable=False),  # token:ID, certificate:NAME, cli, address:IP
    Column("action", String(300), nullable=False),
    Column("target", Text, nullable=False),
    Column("what", Text, nullable=False),  # JSON
    Column("status", Integer, nullable=False),
    Column("result", String(64), nullable=False),  # "ok" or the refusal's code
    Column("request_id", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

# what POSTs with an Idempotency-Key were answered; status NULL = under way
answers = Table(
    "answers",
    metadata,
    Column("actor", String(300), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("process", String(64), nullable=False),  # which start of the coordinator took it
    Column("created_ns", BigInteger, nullable=False, index=True),
    Column("status", Integer),
    Column("location", Text),
    Column("media_type", String(128)),
    Column("body", Text),
)

# who ordered which plan; what became of it is read from plans and outcomes
operations = Table(
    "operations",
    metadata,
    Column("id", String(300), primary_key=True),
    Column("host_id", String(128), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("vm_id", String(128), nullable=False, index=True),
    Column("actor", String(300), nullable=False),
    Column("created_ns", BigInteger, nullable=False, index=True),
)
