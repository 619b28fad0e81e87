"""The HTTP API over an in-memory fleet, for whoever asks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from api_client import HASH, Client
from callers_double import MANY
from fleet_double import FleetDouble
from litestar.testing import TestClient

from coordinator.service.api import create_app
from coordinator.service.auth import TokenVerifier
from coordinator.service.safeguards import in_memory


@pytest.fixture(scope="session")
def open_client() -> Iterator[Client]:
    """One application for all tests: building it costs more than asking it. They are one caller, who may ask as often as they like."""
    tokens = TokenVerifier({HASH: "ops"})
    app = create_app(FleetDouble(), tokens, safeguards=in_memory(tokens, MANY))
    with TestClient(app, base_url="http://127.0.0.1:8080") as client:
        yield client


@pytest.fixture
def fleet() -> Any:
    return FleetDouble()


@pytest.fixture
def client(open_client: Client, fleet: Any) -> Client:
    open_client.app.state["view"] = fleet
    return open_client
