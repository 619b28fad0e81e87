"""kill -9 of the coordinator at random moments under load: nothing that was acknowledged is lost or counted twice, and it is soon back.

Agents are the product's own link over TLS and keep what is not acknowledged. In the end the history is read: of every VM and bucket, the
number of samples and the mean of the CPU readings must be those of the samples that agents hold an acknowledgement for.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from bench.report import Figure, finish, options
from bench.service_agents import Told
from bench.service_fleet import ServiceFleet
from shared.units import BUCKET_S, NS_PER_S

SPEED = 10.0
GRACE_S = 30  # a bucket counts as closed this long after its end: its grace of 10 s, and a tick


def run(hosts: int, vms: int, kills: int, *, between_s: tuple[float, float], seed: int = 1) -> list[Figure]:
    """Kill, start, wait for all agents and for a forecast; then compare."""
    rng = random.Random(seed)
    ready: list[float] = []
    cycles: list[float] = []
    spent: list[float] = []
    with ServiceFleet(hosts=hosts, vms=vms, speed=SPEED, ready_s=4.0) as fleet:
        fleet.start()
        fleet.until("ready", fleet.ready, 120)
        fleet.start_agents()
        fleet.until("a forecast", lambda: fleet.get("/api/v1/fleet")["cycle"], 180)
        for _ in range(kills):
            time.sleep(rng.uniform(*between_s))
            fleet.kill()
            fleet.start()
            ready.append(fleet.until("ready", fleet.ready, 300))
            spent.append(fleet.cpu_s())
            cycles.append(fleet.until("a decision", lambda: fleet.get("/api/v1/fleet")["cycle"], 300))
        agents = fleet.agents[0]
        agents.ask("pause")
        fleet.until("all is acknowledged", lambda: agents.ask("told").waiting == 0, 120)
        told = agents.ask("all")
        last_s = max(start_s for buckets in told.expected.values() for start_s in buckets)
        ends_s = last_s + BUCKET_S + GRACE_S
        real_s = fleet.clock.real_start_ns / NS_PER_S + (ends_s - fleet.clock.simulated_start_ns / NS_PER_S) / SPEED
        fleet.until("the last bucket is closed", lambda: time.time() > real_s, 120)
        fleet.until("the last bucket is stored", lambda: _newest(fleet.folder) >= last_s, 60)
        lost, doubled, wrong, cells = _compare(fleet.folder / "coordinator" / "history", told, fleet.vms)
    return [
        Figure(name=f"VM samples acknowledged, {hosts} agents x {vms} VMs", value=told.acked, unit=""),
        Figure(name="kills", value=kills, unit=""),
        Figure(name="VM buckets compared", value=cells, unit=""),
        Figure(name="acknowledged VM samples lost", value=lost, unit="", bar="= 0", holds=lost == 0),
        Figure(name="VM samples counted twice", value=doubled, unit="", bar="= 0", holds=doubled == 0),
        Figure(name="VM buckets with another mean", value=wrong, unit="", bar="= 0", holds=wrong == 0),
        Figure(name="killed to ready, slowest", value=max(ready), unit="s", bar="<= 10 s", holds=max(ready) <= 10),
        Figure(name="  processor seconds of the process until then", value=max(spent), unit="s"),
        Figure(name="ready to the next decision, slowest", value=max(cycles), unit="s", bar="<= 30 s", holds=max(cycles) <= 30),
    ]


def _newest(folder: Path) -> int:
    """Start of the newest bucket that the folder's parts hold; looked up from outside the process that writes."""
    try:
        table = ds.dataset(_parts(folder / "coordinator" / "history"), format="parquet").to_table(columns=["start_s"])
    except OSError:
        return -1  # a part was merged away under our eyes
    return int(table.column("start_s").to_numpy().max(initial=-1))


def _parts(history: Path) -> list[str]:
    return sorted(str(path) for path in (history / "buckets").glob("*.parquet"))


def _compare(history: Path, told: Told, vms: int) -> tuple[int, int, int, int]:
    """(samples lost, samples too many, buckets with another mean, buckets compared), over all VMs."""
    stored: dict[tuple[str, int], tuple[int, float]] = {}
    for path in _parts(history):  # the later part has the last word
        table = ds.dataset(path, format="parquet").to_table(columns=["vm_id", "start_s", "samples", "usage_cpu_millicores"])
        columns = (table.column(name).to_pylist() for name in table.column_names)
        stored |= {(vm_id, start_s): (samples, mean) for vm_id, start_s, samples, mean in zip(*columns, strict=True)}
    found: Counter[str] = Counter()
    for host_id, buckets in told.expected.items():
        for start_s, (count, total) in buckets.items():
            for vm in range(vms):
                samples, mean = stored.get((f"{host_id}-vm{vm:02d}", start_s), (0, np.nan))
                found["cells"] += 1
                found["lost"] += max(0, count - samples)
                found["doubled"] += max(0, samples - count)
                found["wrong"] += not np.isclose(mean, total / count, rtol=1e-5)
    return found["lost"], found["doubled"], found["wrong"], found["cells"]


def main() -> None:
    """python -m bench.service_kill [--quick] [--kills N] [--json FILE]"""
    parser = options(__doc__ or "")
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    hosts, vms, kills, longest_s = (10, 10, 2, 4.0) if arguments.quick else (200, 40, arguments.kills, 40.0)
    figures = run(hosts, vms, kills, between_s=(0.5, longest_s))
    finish(figures, arguments.json, strict=False)


if __name__ == "__main__":
    main()
