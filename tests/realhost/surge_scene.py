"""A coordinator and agents on real hosts shortly before a surge that their history knows of: what tests and bench/real_surge set up alike.

The simulated day starts at 08:59 when everything is ready; the surge is due at 09:05, every day of the stored week.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from real_host import RealHost, wait_for

from coordinator.demo import Fleet, agent_settings, coordinator_settings, free_port
from coordinator.model import HistoryBlock
from coordinator.pki import create_ca, issue_coordinator, issue_host
from coordinator.store.history import ParquetHistory
from shared.model import Mode
from shared.units import BUCKET_S, MBIT, MIB, NS_PER_S

DAY_S = 1_789_344_000 // 86_400 * 86_400
NOW_S = DAY_S + 8 * 3600 + 59 * 60  # when the coordinator is told to start its clock
SURGE_S = 9 * 3600 + 5 * 60  # of the day, for 40 minutes
HISTORY_BUCKETS = 7 * 288
READY_S = 20  # Ray and the models load meanwhile
QUIET = (100.0, 60.0 * MIB, 1e4, 0.4 * MBIT, 0.2 * MBIT)


def history(vm_ids: tuple[str, ...], surges: Mapping[str, tuple[float, ...]]) -> HistoryBlock:
    """A week of five-minute buckets, quiet but for the daily surge of the VMs in `surges`: their level [r] within it."""
    rng = np.random.default_rng(7)
    end_s = NOW_S // BUCKET_S * BUCKET_S - BUCKET_S
    starts = end_s - BUCKET_S * np.arange(HISTORY_BUCKETS - 1, -1, -1)
    surge = (starts % 86_400 >= SURGE_S) & (starts % 86_400 < SURGE_S + 2400)
    mean = np.empty((len(vm_ids), 5, HISTORY_BUCKETS), np.float32)
    for v, vm_id in enumerate(vm_ids):
        for r in range(5):
            level = np.where(surge, surges.get(vm_id, QUIET)[r], QUIET[r])
            mean[v, r] = level * rng.lognormal(0, 0.01 if r == 1 else 0.05, HISTORY_BUCKETS)
    capacity = np.full((len(vm_ids), 5), np.nan, np.float32)
    return HistoryBlock(vm_ids=vm_ids, end_s=end_s, mean=mean, peak=mean * 1.1, censored=np.zeros_like(mean), capacity=capacity)


def configure(fleet: Fleet, hosts: Mapping[str, tuple[RealHost, Mode]], past: HistoryBlock, speed: float) -> None:
    """Certificates, history and configuration of the coordinator and of one agent per host, by host id."""
    pki, ports = fleet.folder / "pki", (free_port(), free_port())
    create_ca(pki)
    ParquetHistory(fleet.folder / "coordinator" / "history").append_history(past)
    fleet.url, fleet.host_ids = f"http://127.0.0.1:{ports[1]}/", list(hosts)
    clock = {"simulated_start_ns": NOW_S * NS_PER_S, "real_start_ns": time.time_ns() + READY_S * NS_PER_S, "speed": speed}
    files = issue_coordinator(pki, ["localhost"], ["127.0.0.1"])
    fleet.configure("coordinator", coordinator_settings(fleet.folder, files, *ports) | {"clock": clock})
    for host_id, (host, mode) in hosts.items():
        home = fleet.folder / host_id
        home.mkdir()
        settings = agent_settings(home, host_id, issue_host(pki, host_id), ports[0], mode)
        settings |= {
            "hypervisor": "libvirt",
            "libvirt_uri": host.uri,
            "network_namespace": host.netns,
            "clock": clock,
            "guard": {"memory_floor_bytes": 64 * MIB, "step_timeout_s": 180, "reading_max_age_s": 120},
        }
        fleet.configure(host_id, settings)


def start(fleet: Fleet) -> None:
    """The coordinator, then the agents as soon as it can decide."""
    fleet.start("coordinator")
    until(fleet, "readyz")
    for host_id in fleet.host_ids:
        fleet.start(host_id)


def until(fleet: Fleet, page: str, seconds: float = 120.0) -> None:
    """Wait until the coordinator answers this page."""

    def answers() -> bool:
        fleet.check()
        with contextlib.suppress(OSError):
            fleet.get(page)
            return True
        return False

    wait_for(answers, page, seconds)


def clock_s(fleet: Fleet) -> float:
    """Seconds of the simulated day."""
    now: Any = fleet.get("api/v1/fleet")
    return float(now["now_s"]) - DAY_S
