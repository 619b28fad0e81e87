"""Which host each VM was with, and the steps of plans as rows."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"


def upgrade() -> None:
    """Begin every known VM's stay where it was seen last: nothing older is known."""
    op.create_table(
        "vm_hosts",
        sa.Column("vm_id", sa.String(128), primary_key=True),
        sa.Column("since_ns", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("host_id", sa.String(128), nullable=False),
        sa.Column("until_ns", sa.BigInteger, nullable=True),
    )
    op.create_index("ix_vm_hosts_until_ns", "vm_hosts", ["until_ns"])
    op.execute("INSERT INTO vm_hosts (vm_id, since_ns, host_id, until_ns) SELECT vm_id, seen_ns, host_id, NULL FROM domains")
    op.create_table(
        "steps",
        sa.Column("host_id", sa.String(128), primary_key=True),
        sa.Column("step_id", sa.String(128), primary_key=True),
        sa.Column("vm_id", sa.String(128), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("issued_ns", sa.BigInteger, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
    )
    op.create_index("ix_steps_issued_ns", "steps", ["issued_ns"])
    op.create_index("steps_by_vm", "steps", ["vm_id", "issued_ns"])
