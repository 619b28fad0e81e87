"""The registry's schema on SQLite and on a real PostgreSQL: migrations say what the tables say, and no database is lost on the way."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgres_server import Postgres
from sqlalchemy import inspect, text

import coordinator.store
from coordinator.store import schema, tables
from coordinator.store.database import open_engine
from coordinator.store.registry import SqlRegistry
from shared.errors import ConfigError, HostError
from shared.model import Mode

FIXTURES = Path(__file__).parents[1] / "fixtures" / "registries"
DATABASES = [pytest.param("sqlite"), pytest.param("postgresql", marks=pytest.mark.server)]


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


def run(url: str, *statements: str) -> None:
    engine = open_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement.replace(":", r"\:")))
    engine.dispose()


def older(url: str) -> None:
    """A database as the first program made it: no revisions, and some tables are not there yet."""
    name = "sqlite" if url.startswith("sqlite") else "postgresql"
    run(url, *filter(str.strip, (FIXTURES / f"first.{name}.sql").read_text().split(";\n")))


def differences(url: str) -> list[object]:
    """What the tables say and the database does not, or the other way round."""
    engine = open_engine(url)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), tables.metadata)
    engine.dispose()
    return list(found)


def test_every_file_of_tables_is_known() -> None:
    files = {path.stem for path in Path(coordinator.store.__file__).parent.glob("*tables.py")}
    assert files == {module.__name__.rpartition(".")[2] for module in schema.TABLES}


def test_migrations_make_the_tables_and_nothing_else(url: str) -> None:
    SqlRegistry(url).close()
    assert differences(url) == []
    engine = open_engine(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    assert names == {*tables.metadata.tables, "alembic_version"}


def test_a_database_from_before_the_migrations_is_adopted(url: str) -> None:
    older(url)
    registry = SqlRegistry(url)
    assert registry.next_epoch() == 42
    assert registry.modes() == {"h1": Mode.PREDICTIVE}
    assert registry.token_names() == {"sha256:ab": "grafana"}
    assert registry.domains()["vm1"][0] == "h1"
    assert [(stay.host_id, stay.since_ns, stay.until_ns) for stay in registry.vm_hosts.of("vm1", 9)] == [("h1", 77, None)]
    registry.save_pause("h1", True)  # a table that it did not have
    registry.close()
    assert differences(url) == []
    again = SqlRegistry(url)
    assert (again.next_epoch(), again.pauses()) == (43, {"h1"})
    again.close()


def test_a_database_of_a_newer_program_is_refused(url: str) -> None:
    SqlRegistry(url).close()
    run(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match=f"revision 9999, this program reads up to {schema.head()}: upgrade it"):
        SqlRegistry(url)
    run(url, f"UPDATE alembic_version SET version_num = '{schema.head()}'", "UPDATE settings SET value = 99 WHERE name = 'schema_version'")
    with pytest.raises(ConfigError, match="schema version 99, this program reads up to 1: upgrade it"):
        SqlRegistry(url)


def test_a_migration_that_fails_leaves_the_database_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    older(url)
    run(url, "CREATE TABLE steps (mine INTEGER)")  # somebody else's: revision 0002 cannot have it
    with pytest.raises((ConfigError, HostError), match="steps"):
        SqlRegistry(url)
    engine = open_engine(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    assert "alembic_version" not in names
    assert "vm_hosts" not in names, "it comes before `steps` in the same revision"
    run(url, "DROP TABLE steps")
    registry = SqlRegistry(url)
    assert registry.next_epoch() == 42
    registry.close()


def test_many_starters_make_one_schema_and_get_epochs_of_their_own(url: str) -> None:
    epochs: list[int] = []
    failures: list[BaseException] = []
    together = threading.Barrier(6)

    def start() -> None:
        together.wait()
        try:
            registry = SqlRegistry(url)
            epochs.extend(registry.next_epoch() for _ in range(5))
            registry.close()
        except BaseException as error:  # noqa: BLE001  # a thread's failure is the test's
            failures.append(error)

    starters = [threading.Thread(target=start) for _ in range(6)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert failures == []
    assert sorted(epochs) == list(range(1, 31))
    assert differences(url) == []
