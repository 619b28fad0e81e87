"""The registry as it was before it had migrations.

Every part only where it is missing: a database of an earlier program is adopted as it is, and one that lacks the younger of these tables
gets them.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None

_ID: Final = sa.String(128)


def upgrade() -> None:
    """Tables and indexes of November 2026."""
    _table("settings", sa.Column("name", sa.String(64), primary_key=True), sa.Column("value", sa.BigInteger, nullable=False))
    _fleet()
    _decisions()
    _table("documents", sa.Column("name", sa.String(64), primary_key=True), _text("text"))
    _table("tokens", sa.Column("token_hash", _ID, primary_key=True), sa.Column("name", _ID, nullable=False), _number("created_ns"))
    _index("domains", "host_id")
    _index("plans", "issued_ns")
    _index("receipts", "issued_s")
    op.create_index("receipts_by_vm", "receipts", ["vm_id", "issued_s"], if_not_exists=True)
    _index("outcomes", "vm_id")
    _index("outcomes", "finished_ns")
    _index("migrations", "created_ns")


def _fleet() -> None:
    _table("hosts", _key("host_id"), sa.Column("boot_id", _ID, nullable=False), _text("capacity"), _number("seen_ns"))
    _table("domains", _key("vm_id"), sa.Column("host_id", _ID, nullable=False), _text("domain"), _number("seen_ns"))
    _table("acked", _key("host_id"), _key("boot_id"), _number("sequence"))
    _table("modes", _key("host_id"), sa.Column("mode", sa.String(16), nullable=False))
    _table("pauses", _key("host_id"), sa.Column("paused", sa.Integer, nullable=False))
    _table("policies", _key("vm_id"), _text("policy"))


def _decisions() -> None:
    epoch, sequence = (sa.Column(name, sa.BigInteger, primary_key=True, autoincrement=False) for name in ("epoch", "sequence"))
    _table("plans", _key("host_id"), epoch, sequence, _number("issued_ns"), _text("plan"))
    _table("receipts", _key("id"), sa.Column("vm_id", _ID, nullable=False), _number("issued_s"), _text("receipt"))
    _table(
        "outcomes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("host_id", _ID, nullable=False),
        sa.Column("step_id", _ID, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("vm_id", _ID, nullable=False),
        _number("finished_ns"),
        _text("outcome"),
        sa.UniqueConstraint("host_id", "step_id", "state"),
    )
    _table("migrations", _key("id"), _number("created_ns"), _text("plan"))


def _table(name: str, *parts: sa.schema.SchemaItem) -> None:
    op.create_table(name, *parts, if_not_exists=True)


def _index(table: str, column: str) -> None:
    op.create_index(f"ix_{table}_{column}", table, [column], if_not_exists=True)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, _ID, primary_key=True)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)
