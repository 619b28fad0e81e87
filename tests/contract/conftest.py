"""Servers that contract suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgres_server import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    server.start()
    yield server
    server.remove()
