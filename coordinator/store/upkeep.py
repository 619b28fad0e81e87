"""What `tidegate registry` does to the database, beside a running coordinator or without one."""

from __future__ import annotations

from pathlib import Path

from coordinator.store.database import open_engine, outages, registry_url, shown
from coordinator.store.schema import check as check_schema
from coordinator.store.schema import head, migrate, revision_of
from shared.config import CoordinatorConfig


def check(config: CoordinatorConfig) -> tuple[str | None, str]:
    """(revision of the database, this program's). ConfigError: it is newer than this program. HostError: it cannot be reached now."""
    engine = open_engine(registry_url(config))
    with outages(engine):
        found = check_schema(engine, shown(engine.url))
    engine.dispose()
    return found


def upgrade(config: CoordinatorConfig) -> tuple[str | None, str]:
    """Apply what is missing; (revision before, after). Raises as `check`."""
    Path(config.state_dir).mkdir(parents=True, exist_ok=True)
    engine = open_engine(registry_url(config))
    with outages(engine):
        with engine.connect() as connection:
            before = revision_of(connection)
        migrate(engine, shown(engine.url))
    engine.dispose()
    return before, head()
