"""Brings the registry's database to this program's schema: migrations in one transaction, one program at a time.

A database without revisions is one of an earlier program and is adopted: revision 0001 makes only what is missing. One with a revision that
is not in this package was made by a newer program and is refused. Invariants: the schema is as it was or as it should be, nothing between
(SQLite and PostgreSQL both roll back DDL); who comes second waits for the first and finds nothing to do.

`python -m coordinator.store.schema "What changed"` writes the next revision from what the tables say and the migrations do not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, inspect, select, text

from coordinator.store import access_tables, alert_tables, compliance_tables, tenancy_tables, vm_tables
from coordinator.store import tables as t
from shared.errors import ConfigError

LOCK_KEY: Final = 0x7469_6465  # "tide": of pg_advisory_xact_lock
FOLDER: Final = Path(__file__).parent / "migrations"

TABLES: Final = (
    t,
    access_tables,
    alert_tables,
    compliance_tables,
    tenancy_tables,
    vm_tables,
)


def migrate(engine: Engine, shown: str) -> None:
    """Apply what is missing. ConfigError for a database newer than this program; SQLAlchemyError where it cannot be reached."""
    with engine.connect() as connection:
        _refuse_newer(connection, shown)
        if revision_of(connection) == head():
            return  # the usual start takes no lock
    with _alone(engine) as connection:
        _refuse_newer(connection, shown)
        command.upgrade(_config(connection), "head")
        if _schema_version(connection) is None:
            connection.execute(t.settings.insert().values(name="schema_version", value=t.SCHEMA_VERSION))


def check(engine: Engine, shown: str) -> tuple[str | None, str]:
    """(revision of the database, this program's). None = none yet. Raises as `migrate`; changes nothing."""
    with engine.connect() as connection:
        _refuse_newer(connection, shown)
        return revision_of(connection), head()


def revision_of(connection: Connection) -> str | None:
    """Revision that a database is at; None where it has none."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """This program's newest revision."""
    newest = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert newest is not None, "the package holds its migrations"
    return newest


def _refuse_newer(connection: Connection, shown: str) -> None:
    scripts = {each.revision for each in ScriptDirectory.from_config(_config(None)).walk_revisions()}
    found = revision_of(connection)
    if found is not None and found not in scripts:
        raise ConfigError(f"registry {shown}: revision {found}, this program reads up to {head()}: upgrade it")
    version = _schema_version(connection)
    if version is not None and version > t.SCHEMA_VERSION:
        raise ConfigError(f"registry {shown}: schema version {version}, this program reads up to {t.SCHEMA_VERSION}: upgrade it")


def _schema_version(connection: Connection) -> int | None:
    """None: an empty database, or one whose maker was killed."""
    if not inspect(connection).has_table("settings"):
        return None
    return connection.execute(select(t.settings.c.value).where(t.settings.c.name == "schema_version")).scalar()


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other program's migration runs beside."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))  # a large table takes as long as it takes
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
            yield connection
        return
    # Python's sqlite3 begins a transaction before a write, not before DDL: here it is begun by hand, and at once as a writer's
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def write_next(message: str) -> None:
    """Write the next revision, for a person to read and put right."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        command.upgrade(_config(connection), "head")
        config = _config(connection)
        number = f"{int(head()) + 1:04d}"
        config.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
        command.revision(config, message, autogenerate=True, rev_id=number, version_path=str(FOLDER / "versions"))


if __name__ == "__main__":
    write_next(" ".join(sys.argv[1:]))
