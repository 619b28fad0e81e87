"""Documents of the API's parts of which the double fleet has nothing to tell: clients, SLAs, compliance, alerts, audit, shadow report.

Of the shapes of their structs (a test compares); `offer` lets a page find them.
"""

from __future__ import annotations

import re
from typing import Any, Final

from playwright.sync_api import Page, Route

RECORD: Final = {"version": 1, "created_s": 1795423800.0, "changed_s": 1795423800.0, "changed_by": "ada"}
OBJECTIVE: Final = {"metric": "ready", "threshold_permille": 20, "share_permille": 995.0, "period_s": 2592000}
STANDING: Final = {
    "metric": "ready",
    "state": "exhausted",
    "good_minutes": 9900,
    "bad_minutes": 90,
    "unknown_minutes": 10,
    "budget_minutes": 50.0,
    "remaining_minutes": -40.0,
    "compliance": 0.99099,
    "at_least": 0.99,
    "promised": 0.995,
    "last_day": 0.98,
    "last_hour": None,
    "burn": [{"window_s": 3600, "rate": 15.2}, {"window_s": 300, "rate": None}],
    "alert": 1.1,
}
COMPLIANCE: Final = {"kind": "client", "name": "aurora", "state": "exhausted", "objectives": [STANDING]}
CLIENT: Final = {
    "id": "aurora",
    "name": "Aurora Ltd",
    "contact": "noc@aurora.example",
    "priority": "high",
    "sla": "gold",
    "budget_permille": None,
    "record": RECORD,
    "vms": 8,
}
ALERT: Final = {
    "id": "a1",
    "fingerprint": "f1",
    "rule": "HostSilent",
    "severity": "critical",
    "labels": {"host": "kvm-03"},
    "summary": "kvm-03 has been silent for 42 s",
    "action": "look at its agent",
    "page": "/#host=kvm-03",
    "state": "firing",
    "value": 42.0,
    "started_s": 1795423800.0,
    "seen_s": 1795423860.0,
    "fired_s": 1795423830.0,
    "resolved_s": None,
    "silenced_by": [],
    "acknowledged_by": None,
    "acknowledged_s": None,
    "comment": "",
    "told_s": None,
}
SILENCE: Final = {
    "silence": {
        "id": "s1",
        "matchers": [{"name": "host", "value": "kvm-0.", "regex": True, "equal": True}],
        "starts_s": 1795423800.0,
        "ends_s": 1795427400.0,
        "created_by": "ada",
        "comment": "rack 4 is moved",
    },
    "active": True,
}
RULE: Final = {
    "name": "HostSilent",
    "severity": "critical",
    "for_s": 30.0,
    "keep_s": 60.0,
    "meaning": "no word from an agent",
    "action": "look at its agent",
    "threshold": 30.0,
    "unit": "s",
    "labels": ["host"],
}
AUDIT: Final = {
    "sequence": 7,
    "time_ns": 1795423800 * 10**9,
    "actor": "ada",
    "role": "operator",
    "how": "token",
    "action": "PUT",
    "target": "/api/v1/hosts/kvm-01/mode",
    "what": '{"mode": "observe"}',
    "status": 200,
    "result": "",
    "request_id": "r1",
    "previous": "0" * 64,
    "hash": "ab" * 32,
}


def way(minutes: str, steps: int, memory: str) -> dict[str, Any]:
    """One way of control; exact decimals are text."""
    return {"violation_minutes": minutes, "steps": steps, "cpu_core_hours": "900.5", "memory_gib_hours": memory}


WAYS: Final = {"happened": way("320.0", 0, "5200.0"), "reactive": way("210.0", 900, "4300.0"), "predictive": way("80.0", 700, "4100.0")}
DOCUMENTS: Final[dict[str, Any]] = {
    "clients": {"items": [CLIENT], "total": 1, "next_cursor": None},
    "slas": {
        "items": [{"id": "gold", "name": "Gold", "objectives": [OBJECTIVE], "clients": ["aurora"], "record": RECORD}],
        "total": 1,
        "next_cursor": None,
    },
    "compliance": {"items": [COMPLIANCE], "total": 1, "next_cursor": None, "until_s": 1795423800, "method": "…"},
    "alerts": {"items": [ALERT], "total": 1, "next_cursor": None, "hidden": 0},
    "silences": [SILENCE],
    "alerts/rules": {"rules": [RULE], "evaluate_s": 30, "receivers": [{"name": "pager", "waiting": 3, "error": "connection refused"}]},
    "audit": {"items": [AUDIT], "next_cursor": None},
    "tokens": {"items": []},
    "shadow": {
        "from_s": 1794819000,
        "until_s": 1795423800,
        "made_s": 1795423800.0,
        "hosts": [{"host_id": "kvm-01", "vms": 6, "known_hours": "1008.0", "ways": WAYS}],
        "totals": WAYS,
        "hosts_needed": {"happened": 4, "reactive": 4, "predictive": 3},
        "forecast_share": 0.93,
        "methods": {"violation_minutes": "minutes in which demand passed the grant"},
        "notes": [],
    },
}


def offer(page: Page) -> None:
    """Answer these paths with their documents."""

    def answer(route: Route) -> None:
        route.fulfill(json=DOCUMENTS[re.sub(r"\?.*", "", route.request.url.partition("/api/v1/")[2])])

    for path in DOCUMENTS:
        page.route(re.compile(rf"/api/v1/{path}(\?.*)?$"), answer)
