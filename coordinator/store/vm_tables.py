"""Tables of what became of each VM: the hosts it was with, and the steps that plans held for it.

A stay has no end while it lasts. A step's row repeats what its plan says, so that a VM's steps are found without reading every plan.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, String, Table, Text

from coordinator.store.tables import metadata

vm_hosts = Table(
    "vm_hosts",
    metadata,
    Column("vm_id", String(128), primary_key=True),
    Column("since_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("host_id", String(128), nullable=False),
    Column("until_ns", BigInteger, nullable=True, index=True),
)

steps = Table(
    "steps",
    metadata,
    Column("host_id", String(128), primary_key=True),
    Column("step_id", String(128), primary_key=True),
    Column("vm_id", String(128), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("issued_ns", BigInteger, nullable=False, index=True),
    Column("step", Text, nullable=False),
    Index("steps_by_vm", "vm_id", "issued_ns"),
)
