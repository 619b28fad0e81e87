"""One transaction on the registry's engine; what the database cannot do is a HostError, which callers retry or answer with 503."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from shared.errors import HostError


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Commits at the end, or nothing. Raises HostError."""
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise HostError(f"registry: {error}") from error
