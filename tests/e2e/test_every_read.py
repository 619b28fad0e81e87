"""Every address that can be read without naming anything answers from a live coordinator: doubles of the view hide what is not wired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())


def plain_reads() -> list[str]:
    """Paths below /api/v1 with a GET that asks for nothing; but the stream, which does not end."""
    found = []
    for path, verbs in DOCUMENT["paths"].items():
        asked = [each for each in verbs.get("get", {}).get("parameters", ()) if each.get("required")]
        if path.startswith("/api/v1/") and "get" in verbs and "{" not in path and not asked and not path.endswith("/stream"):
            found.append(path.removeprefix("/api/v1/"))
    return found


def test_every_read_answers(ring: Any, program: Any) -> None:
    paths = plain_reads()
    made = program("coordinator", "token", "new", "reader", "--role", "admin", "--config", str(ring.fleet.folder / "coordinator.toml"))
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    assert len(paths) >= 15
    paths.remove("policies/fleet")  # there is none until somebody sets it
    wrong = {path: answer.text for path in paths if (answer := ring.http.get(f"/api/v1/{path}", headers=headers)).status_code != 200}
    assert wrong == {}
    # a coordinator that has just started holds with an empty fleet: a plan without hosts
    ring.until(lambda: ring.get("placement")["plan"] and ring.get("placement/hosts"), "a placement, and the hosts as it leaves them")
