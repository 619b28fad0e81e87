"""History in S3 (a real server), and the server goes away: decisions and acknowledgements go on, the coordinator says so, and it ends."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from s3_server import running_s3, s3_place

from bench.service_fleet import ServiceFleet
from coordinator.store.history import ParquetHistory
from shared.units import BUCKET_S


@pytest.mark.slow
@pytest.mark.long
def test_history_in_s3_that_goes_away_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    vm_id = "host-0000-vm00"
    with running_s3() as address:
        url = s3_place(address)
        fleet = ServiceFleet(hosts=3, vms=2, speed=20.0, ready_s=3.0, history_url=url)
        fleet.start()
        fleet.until("ready", fleet.ready, 120)
        fleet.start_agents()
        fleet.until("a bucket is in S3", lambda: ParquetHistory(url).newest_s(), 120)
        first_s = ParquetHistory(url).newest_s()
        assert first_s is not None
    with fleet:
        fleet.until("/readyz says no", lambda: not fleet.ready(), 120)
        assert "history takes no writes" in httpx.get(f"{fleet.url}/readyz", timeout=20).text
        cycle = fleet.get("/api/v1/fleet")["cycle"]
        fleet.until("decisions go on", lambda: fleet.get("/api/v1/fleet")["cycle"] > cycle, 120)
        fleet.until("frames are acknowledged", lambda: fleet.agents[0].ask("told").waiting <= 3, 60)
        with running_s3(port=int(address.rpartition(":")[2])):
            fleet.until("/readyz says yes", fleet.ready, 120)
            history = ParquetHistory(url)
            newest_s = history.newest_s()
            assert newest_s is not None
            assert newest_s > first_s
            since = int(newest_s - first_s) // BUCKET_S + 1
            assert not np.isnan(history.load([vm_id], newest_s, since).mean[0, 0]).any()
            fleet.kill()
