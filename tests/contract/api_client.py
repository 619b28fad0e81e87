"""The HTTP API over the double fleet, as its tests ask it: token, refusals, and what a body may hold that is no good."""

from __future__ import annotations

from typing import Any

import httpx
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient

from coordinator.service.auth import new_token
from coordinator.service.problems import PROBLEM_JSON

TOKEN, HASH = new_token()
BEARER = {"Authorization": f"Bearer {TOKEN}"}
VM = "/api/v1/vms/vm-01-00"
Client = TestClient[Litestar]
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(["vcpus", "memory_bytes", "cpu_quota_millicores", "dry_run", "x"])
JSON = st.dictionaries(NAMES, SCALARS | st.lists(SCALARS, max_size=2), max_size=5) | SCALARS


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem of a refusal, checked for what every one must have."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith(PROBLEM_JSON)
    found: dict[str, Any] = response.json()
    assert found["type"] == f"urn:tidegate:refusal:{code}"
    assert found["status"] == status
    assert found["code"] == code
    assert found["detail"]
    return found
