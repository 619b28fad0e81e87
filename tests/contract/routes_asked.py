"""Every route of the application, walked, and how to ask it: a good body for those that take one, values for its path parameters."""

from __future__ import annotations

import re
from typing import Any

from callers_double import callers

OWN_VM, FOREIGN_VM = "vm-01-00", "vm-01-01"
CHANGES = ("PUT", "PATCH")
GOLD = {"name": "Gold", "objectives": [{"metric": "ready", "threshold_permille": 20, "share_permille": 995}]}
BACKUP = {"name": "Backup", "start_s": 1_790_000_000, "duration_s": 3600}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("PUT", "/api/v1/hosts/{host_id}/mode"): {"mode": "observe"},
    ("PUT", "/api/v1/hosts/{host_id}/pause"): {"paused": False},
    ("PUT", "/api/v1/fleet/pause"): {"paused": False},
    ("PUT", "/api/v1/migrations/{plan_id}"): {"action": "approve"},
    ("POST", "/api/v1/vms/{vm_id}/resources"): {"vcpus": 3},
    ("POST", "/api/v1/signals"): {"readings": [{"time_s": 0, "vm_id": OWN_VM, "requests_per_s": 1}]},
    ("POST", "/api/v1/tokens"): {"name": "made", "role": "viewer"},
    ("POST", "/api/v1/alerts/{alert_id}/acknowledgement"): {"comment": "mine"},
    ("POST", "/api/v1/silences"): {"matchers": [{"name": "vm", "value": OWN_VM}], "ends_s": 4_000_000_000, "comment": "mine"},
    ("POST", "/api/v1/events/trigger"): {"name": "launch", "effect": "cpu=x2", "duration_s": 3600},
    ("POST", "/api/v1/clients"): {"id": "made", "name": "Made"},
    ("POST", "/api/v1/applications"): {"id": "shop", "client": "acme", "name": "Shop"},
    ("POST", "/api/v1/slas"): {"id": "gold", **GOLD},
    ("POST", "/api/v1/events"): {"id": "backup", **BACKUP},
    **{(method, "/api/v1/clients/{id}"): {"name": "Acme"} for method in CHANGES},
    **{(method, "/api/v1/applications/{id}"): {"client": "acme", "name": "Shop"} for method in CHANGES},
    **{(method, "/api/v1/slas/{id}"): GOLD for method in CHANGES},
    **{(method, "/api/v1/events/{id}"): BACKUP for method in CHANGES},
    **{(method, f"/api/v1/policies/{level}"): {"priority": "high"} for method in CHANGES for level in ("fleet", "client/{id}", "vm/{id}")},
}
QUERIES = {"/api/v1/placement/why-not": "?vm={vm}&host=kvm-01"}
STREAM = "/api/v1/stream"  # does not end: test_streaming.py and the live matrix of tests/e2e ask it


def routes() -> list[tuple[str, str]]:
    """(method, template) of every route of the application."""
    with callers() as found:
        return sorted(
            (method, route.path_format)
            for route in found.client.app.routes
            for method in route.methods  # type: ignore[union-attr]  # HTTP routes only
            if method != "OPTIONS"
        )


ROUTES = routes()


def path_of(template: str, vm: str, ids: dict[str, str]) -> str:
    known = {
        "vm_id": vm,
        "host_id": "kvm-01",
        "plan_id": "m1",
        "id": "acme",
        "kind": "vm",
        "client": "acme",
        "path": "x",
        "alert_id": "a1",
        "silence_id": "s1",
        **ids,
    }
    known["name"] = "app.js" if template.startswith("/static/") else vm
    return re.sub(r"\{(\w+)\}", lambda match: known[match[1]], template) + QUERIES.get(template, "").format(vm=vm)
