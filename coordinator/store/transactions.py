"""One transaction on the registry's engine; a database that is away is a HostError, which callers retry or answer with 503."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from coordinator.store.database import outages


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Commits at the end, or nothing. Raises HostError."""
    with outages(engine), engine.begin() as connection:
        yield connection
