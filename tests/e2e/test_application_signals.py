"""What an application tells over HTTP survives kill -9 and ends beside the demand in the history that models are loaded from."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from coordinator.store.history import ParquetHistory
from shared.units import BUCKET_S

pytestmark = pytest.mark.slow


def tell(ring: Any, *readings: dict[str, Any]) -> httpx.Response:
    answer: httpx.Response = ring.post("signals", {"readings": list(readings)})
    return answer


def test_from_the_api_over_a_kill_to_the_models(ring: Any) -> None:
    vm_id, other = ring.host("host-0")["vm_ids"][:2]
    ring.until(lambda: 30 < ring.get("fleet")["now_s"] % BUCKET_S < 120, "the first half of a bucket")
    now_s = ring.get("fleet")["now_s"]
    start_s = int(now_s) // BUCKET_S * BUCKET_S
    answer = tell(
        ring,
        {"vm_id": vm_id, "time_s": start_s, "requests_per_s": 100, "queue_length": 2},
        {"vm_id": vm_id, "time_s": start_s + 10, "requests_per_s": 500},
        {"vm_id": other, "time_s": start_s, "queue_length": 0},
    )
    assert answer.status_code == 200, answer.text
    taken = answer.json()
    assert (taken["vms"], taken["taken"] + taken["late"], taken["replaced"]) == (2, 3, 0)
    again = tell(ring, {"vm_id": vm_id, "time_s": start_s + 10, "requests_per_s": 300}).json()
    assert (again["taken"] + again["late"], again["replaced"]) == (0, 1)
    ring.fleet.kill("coordinator")
    ring.fleet.start("coordinator")
    ring.until(ring.settled, "the coordinator is back")
    last = {entry["signal"]: entry["value"] for entry in ring.get(f"vms/{vm_id}")["signals"]}
    assert last == {"requests_per_s": 300, "queue_length": 2}

    def stored() -> list[tuple[float | None, float | None]]:
        by_name = {series["signal"]: series["mean"] for series in ring.get(f"vms/{vm_id}/history?hours=2")["signals"]}
        return [pair for pair in zip(*by_name.values(), strict=True) if pair[0] is not None]

    ring.until(lambda: stored() == [(200, 2)], "the mean is in the history")
    loaded = ParquetHistory(ring.fleet.folder / "coordinator" / "history").load([vm_id, other], start_s, 1)
    assert loaded.signals is not None
    np.testing.assert_array_equal(loaded.signals[:, :, 0], [[200, 2], [np.nan, 0]])


def test_what_is_wrong_is_refused_and_nothing_of_it_taken(ring: Any) -> None:
    vm_id = ring.host("host-1")["vm_ids"][0]
    now_s = ring.get("fleet")["now_s"]
    good = {"vm_id": vm_id, "time_s": now_s, "requests_per_s": 1}
    bare = ring.http.post("/api/v1/signals", json={"readings": [good]})
    assert (bare.status_code, bare.json()["code"]) == (401, "unauthorized")
    for wrong, status, field in (
        ({"time_s": now_s + 6000}, 400, "readings[1].time_s"),
        ({"time_s": now_s - 6000}, 400, "readings[1].time_s"),
        ({"requests_per_s": -1}, 400, "readings[1].requests_per_s"),
        ({"vm_id": "nobody"}, 404, "readings[1].vm_id"),
    ):
        refused = tell(ring, good, good | wrong)
        assert (refused.status_code, refused.json()["field"]) == (status, field), refused.text
    assert ring.get(f"vms/{vm_id}")["signals"] == []
    counted = [line for line in ring.http.get("/metrics").text.splitlines() if line.startswith("tidegate_signals_total")]
    assert any('outcome="refused"' in line and float(line.split()[-1]) >= 6 for line in counted), counted
