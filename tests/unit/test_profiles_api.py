"""Workload profiles over HTTP, over a history of known shape; how a client's VMs add."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from api_client import Client, problem

from coordinator.live_profiles import together

CPU = 0


def test_a_vm_and_its_client(client: Client, fleet: Any) -> None:
    own = client.get("/api/v1/vms/vm-01-00/profile?days=7").json()
    cpu = own["resources"][CPU]
    assert (own["of"], own["vms"], own["until_s"] - own["from_s"], own["time_zone"]) == ("vm-01-00", 1, 7 * 86_400, "UTC")
    assert (cpu["kind"], cpu["peaks"][0]["minute_of_day"], cpu["day_strength"], cpu["predictability"]) == (
        "daily",
        720,
        pytest.approx(1.0, abs=0.01),
        None,
    )
    name = fleet.vm("vm-01-00").client
    whole = client.get(f"/api/v1/clients/{name}/profile?days=7").json()
    assert whole["vms"] == whole["vms_used"] == len(fleet.vm_ids(None, name)) > 1
    assert whole["resources"][CPU]["mean"] == pytest.approx(whole["vms"] * cpu["mean"])
    assert whole["resources"][CPU]["highest"] < whole["vms"] * cpu["highest"], "independent bursts do not all meet"


def test_a_profile_is_read_once_in_a_while(client: Client, fleet: Any) -> None:
    loads = fleet.profiles._history
    for _ in range(3):
        client.get("/api/v1/vms/vm-01-00/profile")
    assert loads.loads == 1
    client.get("/api/v1/vms/vm-01-00/profile?days=3")
    fleet.office.clock.now_s += 1801
    client.get("/api/v1/vms/vm-01-00/profile")
    assert loads.loads == 3


def test_what_there_is_no_profile_of(client: Client) -> None:
    problem(client.get("/api/v1/vms/nobody/profile"), 404, "unknown_vm")
    assert problem(client.get("/api/v1/clients/nobody/profile"), 404, "invalid_value")["field"] == "id"
    for days in ("0", "29", "x"):
        assert problem(client.get(f"/api/v1/vms/vm-01-00/profile?days={days}"), 400, "invalid_value")["field"] == "days"


def test_sums_leave_out_what_is_not_known() -> None:
    mean = np.array([[[1, 1, np.nan, np.nan]], [[3, np.nan, np.nan, 3]], [[np.nan] * 4]], np.float32)
    total, tops = together(mean, mean + 4)
    np.testing.assert_allclose(total, [[4, 2, np.nan, 6]])
    np.testing.assert_allclose(tops, total + np.array([[32**0.5, 32**0.5, np.nan, 32**0.5]]))
