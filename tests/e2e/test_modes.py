"""The owner's command line on the host: pins, the kill switch, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HOST = "host-0"


def test_a_pin_wins_over_the_api_and_outlives_a_kill(ring: Any) -> None:
    pinned = ring.agent(HOST, "mode", "observe", "--json")
    told = json.loads(pinned.stdout)
    assert told.pop("ordered") in (None, "reactive"), "what another test may have ordered last"
    assert told == {"mode": "observe", "pinned": "observe", "default": "reactive"}
    ring.until(lambda: ring.host(HOST)["mode_pinned"], "the coordinator knows")
    refused = ring.put_mode(HOST, "predictive")
    assert (refused.status_code, refused.json()["code"]) == (409, "locally_pinned")
    ring.fleet.kill(HOST)
    ring.fleet.start(HOST)
    assert ring.until(lambda: ring.status(HOST), "the agent is back")["mode"] == "observe"
    ring.until(lambda: ring.host(HOST)["alive"], "the host is back")
    assert ring.host(HOST)["mode"] == "observe"
    assert ring.agent(HOST, "mode", "unpin").returncode == 0
    ring.until(lambda: (host := ring.host(HOST))["mode"] == "reactive" and not host["mode_pinned"], "the pin is gone")


def test_the_api_orders_a_mode_where_nothing_is_pinned(ring: Any) -> None:
    try:
        assert ring.put_mode("host-1", "observe").status_code == 200
        ring.until(lambda: ring.status("host-1")["mode"] == "observe", "the order arrived")
        assert ring.host("host-1")["mode_ordered"] == "observe"
    finally:
        assert ring.put_mode("host-1", "reactive").status_code == 200
        ring.until(lambda: ring.status("host-1")["mode"] == "reactive", "the order arrived")


def test_off_is_the_kill_switch(ring: Any) -> None:
    assert ring.agent("host-2", "mode", "off").returncode == 0
    off_s = ring.status("host-2")["clock_s"]
    before = ring.until(lambda: at_rest(ring, "host-2"), "what was in flight has landed")
    cycle = ring.get("fleet")["cycle"]
    ring.until(lambda: ring.get("fleet")["cycle"] >= cycle + 2, "two decisions later")
    assert ring.in_force("host-2") == before
    stories = [ring.fleet.ask("host-2", "why", vm_id)["story"] for vm_id in {vm_id for vm_id, _ in before}]
    late = [entry for story in stories for entry in story if entry["verdict"] == "submitted" and entry["at_ns"] > off_s * 1e9]
    assert late == []
    assert ring.status("host-2")["sampling_rounds"] > 0, "sampling goes on"


def at_rest(ring: Any, host_id: str) -> dict[tuple[str, str], int] | None:
    """Values in force once nothing is in flight and two more samples have shown the same (a balloon takes its time); else None."""
    if ring.status(host_id)["steps_in_flight"]:
        return None
    seen, rounds = ring.in_force(host_id), ring.status(host_id)["sampling_rounds"]
    ring.until(lambda: ring.status(host_id)["sampling_rounds"] >= rounds + 3, "three samples later")
    return seen if ring.in_force(host_id) == seen else None


def test_status_vms_and_why_are_for_programs_and_for_people(ring: Any) -> None:
    status = json.loads(ring.agent(HOST, "status", "--json").stdout)
    assert (status["host_id"], status["mode"], status["link_up"], status["vms"]) == (HOST, "reactive", True, 3)
    text = ring.agent(HOST, "status").stdout
    assert "mode: reactive\n" in text and "link_up: True\n" in text
    vms = json.loads(ring.agent(HOST, "vms", "--json").stdout)
    assert len(vms) == 3 and all(vm["in_force"] and vm["capabilities"]["balloon"] is None for vm in vms)
    header, *rows = ring.agent(HOST, "vms").stdout.splitlines()
    assert header.split()[:2] == ["vm_id", "name"] and [row.split()[0] for row in rows] == [vm["vm_id"] for vm in vms]
    busy = ring.until(lambda: next((vm for vm in json.loads(ring.agent(HOST, "vms", "--json").stdout) if vm["newest"]), None), "a decision")
    why = json.loads(ring.agent(HOST, "why", busy["name"], "--json").stdout)
    assert why["vm_id"] == busy["vm_id"] and {"kind", "verdict", "reason"} <= why["story"][0].keys()
    assert "verdict=" in ring.agent(HOST, "why", busy["vm_id"]).stdout


def test_what_does_not_exist_is_refused_with_its_own_exit_code(ring: Any, program: Any) -> None:
    unknown = ring.agent(HOST, "why", "nobody")
    assert unknown.returncode == 3 and "unknown_vm" in unknown.stderr and "Traceback" not in unknown.stderr
    wrong = ring.agent(HOST, "mode", "turbo")
    assert wrong.returncode == 2 and "predictive" in wrong.stderr
    nobody = program("agent", "status", "--socket", str(ring.socket(HOST)) + ".none")
    assert nobody.returncode == 4 and "is tidegate-agent running?" in nobody.stderr
