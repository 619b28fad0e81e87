"""What `tidegate registry` does to the database, beside a running coordinator or without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, func, insert, select, text
from sqlalchemy.engine import URL

from coordinator.store.database import open_engine, outages, registry_url, shown
from coordinator.store.schema import check as check_schema
from coordinator.store.schema import head, migrate, revision_of
from coordinator.store.tables import metadata, settings
from shared.config import CoordinatorConfig
from shared.errors import ConfigError

COPY_ROWS: Final = 1000  # at a time in memory; a receipt has about a kilobyte


def check(config: CoordinatorConfig) -> tuple[str | None, str]:
    """(revision of the database, this program's). ConfigError: it is newer than this program. HostError: it cannot be reached now."""
    with _opened(registry_url(config)) as engine:
        return check_schema(engine, shown(engine.url))


def upgrade(config: CoordinatorConfig) -> tuple[str | None, str]:
    """Apply what is missing; (revision before, after). Raises as `check`."""
    Path(config.state_dir).mkdir(parents=True, exist_ok=True)
    with _opened(registry_url(config)) as engine:
        with engine.connect() as connection:
            before = revision_of(connection)
        migrate(engine, shown(engine.url))
    return before, head()


def copy(config: CoordinatorConfig, source_url: str) -> int:
    """All rows of another registry into the configured one, which must be new; how many. One transaction. Raises as `check`.

    The epoch comes along: agents would refuse the plans of a coordinator that counts from one again.
    """
    Path(config.state_dir).mkdir(parents=True, exist_ok=True)
    with _opened(source_url) as source, _opened(registry_url(config)) as target:
        found, wanted = check_schema(source, shown(source.url))
        if found != wanted:
            what = f"revision {found or 'none'}, needed is {wanted}"
            raise ConfigError(f"registry {shown(source.url)}: {what}; `tidegate registry upgrade` brings it there")
        migrate(target, shown(target.url))
        with source.connect() as reading, target.begin() as writing:
            if writing.execute(select(settings.c.value).where(settings.c.name == "epoch")).scalar() is not None:
                raise ConfigError(f"registry {shown(target.url)}: it was in use already, allowed is a new one")
            writing.execute(settings.delete())
            return _copy_rows(reading, writing)


def _copy_rows(reading: Connection, writing: Connection) -> int:
    count = 0
    for table in metadata.sorted_tables:
        rows = reading.execution_options(yield_per=COPY_ROWS).execute(select(table).order_by(*table.primary_key)).mappings()
        for part in rows.partitions():
            writing.execute(insert(table), [dict(row) for row in part])
            count += len(part)
        numbered = table.autoincrement_column
        if numbered is not None and writing.dialect.name == "postgresql":
            # its own counting goes on behind the numbers that came along
            last = select(func.coalesce(func.max(numbered), 0)).scalar_subquery()
            sequence = text(f"pg_get_serial_sequence('{table.name}', '{numbered.name}')")
            writing.execute(select(func.setval(sequence, last + 1, False)))
    return count


@contextmanager
def _opened(url: str | URL) -> Iterator[Engine]:
    engine = open_engine(url)
    try:
        with outages(engine):
            yield engine
    finally:
        engine.dispose()
