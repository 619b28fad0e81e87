"""What alembic runs to reach the database: the connection and its transaction are the caller's (coordinator/store/schema.py).

`render_as_batch`: SQLite cannot alter a column, so alembic copies the table there.
"""

from __future__ import annotations

from alembic import context

from coordinator.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
