"""schemathesis asks every operation of the OpenAPI document, of a live coordinator with real agents: no server error, answers as declared.

Values that the schema allows, values that it does not, and the same with ids that exist, so that more than the first check is reached. The
processes are this module's own: orders of every kind are carried out on them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

pytestmark = pytest.mark.slow

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT, config=SchemathesisConfig()).get_all_operations()]
STREAM = "/api/v1/stream"
EXAMPLES = int(os.environ.get("TIDEGATE_EXAMPLES", "5"))  # of each operation and mode; some hundred operations
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def admin(own_ring: Any, program: Any) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """Address, headers and ids that exist."""
    made = program("coordinator", "token", "new", "boss", "--role", "admin", "--config", str(own_ring.fleet.folder / "coordinator.toml"))
    host = own_ring.host("host-0")
    receipts = own_ring.until(lambda: own_ring.get("receipts"), "a receipt")
    ids = {"host_id": "host-0", "vm_id": host["vm_ids"][0], "receipt_id": receipts[0]["id"]}
    yield own_ring.fleet.url.rstrip("/"), {"Authorization": f"Bearer {made.stdout.strip()}"}, ids
    left = httpx.get(f"{own_ring.fleet.url}readyz")
    assert left.status_code == 200, "the coordinator has survived it"


def asked() -> Iterator[Any]:
    """(operation, mode, with ids that exist): each that there is; what takes nothing has no wrong values, what names nothing no ids."""
    for operation in OPERATIONS:
        takes = list(operation.iter_parameters()) or operation.body
        for mode in GenerationMode:
            for real in (False, True):
                if (mode is GenerationMode.POSITIVE or takes) and (not real or "_id}" in operation.path):
                    yield pytest.param(operation, mode, real, id=f"{operation.label}, {mode.value}{', real ids' if real else ''}")


@pytest.mark.parametrize(("operation", "mode", "real"), list(asked()))
def test_no_server_error_and_answers_as_declared(admin: Any, operation: Any, mode: GenerationMode, real: bool) -> None:
    url, headers, ids = admin
    known = {name: value for name, value in ids.items() if f"{{{name}}}" in operation.path}

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if real:
            case.path_parameters = {**(case.path_parameters or {}), **known}
        if case.path.endswith("/stream"):
            _ask_stream(url, case, headers)
            return
        response = case.call(base_url=url, headers=headers, timeout=20)
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            assert response.headers["content-type"][0].startswith("application/problem+json"), response.text

    ask()


def _ask_stream(url: str, case: Any, headers: dict[str, str]) -> None:
    """It does not end: only how it begins can be looked at."""
    with httpx.stream("GET", url + STREAM, params=case.query or {}, headers=headers, timeout=10) as response:
        assert response.status_code in (200, 400, 429), response.status_code
