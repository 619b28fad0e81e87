"""Kill -9 of the coordinator: the hosts keep what they have, grow under pressure only, and no sample is lost or counted twice."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shared.errors import HostError
from shared.units import BUCKET_S

pytestmark = pytest.mark.slow

SAMPLES_PER_BUCKET = 60
OUTAGE_S = 600  # simulated: over two buckets
# A reading and the counter of rounds are not one moment: one round may be on the other side of each end.
SLACK = 2


class Rounds(threading.Thread):
    """Writes down every agent's number of sampling rounds, all the time."""

    def __init__(self, ring: Any) -> None:
        super().__init__()
        self.ring, self.ended = ring, threading.Event()
        self.seen: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def run(self) -> None:
        while not self.ended.wait(0.01):
            for host_id in self.ring.fleet.host_ids:
                try:
                    status = self.ring.status(host_id)
                except HostError:
                    continue
                self.seen[host_id].append((status["clock_s"], status["sampling_rounds"]))

    def between(self, host_id: str, start_s: float, end_s: float) -> int:
        """Rounds of one host between two moments."""
        before_end = [rounds for at_s, rounds in self.seen[host_id] if at_s < end_s]
        before_start = [rounds for at_s, rounds in self.seen[host_id] if at_s < start_s]
        return before_end[-1] - before_start[-1]


def stored_samples(history: Path) -> dict[tuple[int, str], int]:
    """(bucket start, VM) -> samples as history has them: of rows with the same key the one written last."""
    found: dict[tuple[int, str], int] = {}
    for part in sorted((history / "buckets").glob("*.parquet")):
        rows = pq.read_table(part, columns=["start_s", "vm_id", "samples"])
        for start_s, vm_id, samples in zip(*(rows.column(name).to_pylist() for name in rows.column_names), strict=True):
            if samples is not None:
                found[start_s, vm_id] = samples
    return found


def test_hosts_keep_their_limits_and_every_sample_counts_once(ring: Any) -> None:
    rounds = Rounds(ring)
    rounds.start()
    try:
        first_s = int(ring.get("fleet")["now_s"]) // BUCKET_S * BUCKET_S + BUCKET_S
        ring.until(lambda: ring.get("fleet")["now_s"] > first_s + 60, "in the middle of a bucket")
        epoch = ring.get("fleet")["epoch"]
        ring.fleet.kill("coordinator")
        _outage(ring)
        ring.fleet.start("coordinator")
        ring.until(ring.settled, "the agents are back and have emptied their spools")
        after = ring.get("fleet")
        assert after["epoch"] > epoch
        last_s = int(after["now_s"]) // BUCKET_S * BUCKET_S + BUCKET_S  # the first bucket without a part of the outage
        vms = {vm_id: host["id"] for host in ring.get("hosts") for vm_id in host["vm_ids"]}
        assert len(vms) == 9
        history = ring.fleet.folder / "coordinator" / "history"

        def complete() -> bool:
            stored = stored_samples(history)
            newest = max(start_s for start_s, _ in stored)
            return newest >= last_s and not [problem for problem in _differences(stored, rounds, vms, first_s, last_s) if problem]

        try:
            ring.until(complete, "history holds every round once", 30)
        except AssertionError as error:
            raise AssertionError(_differences(stored_samples(history), rounds, vms, first_s, last_s)) from error
        _counted_once(ring)
    finally:
        rounds.ended.set()
        rounds.join()


def _outage(ring: Any) -> None:
    """From the kill to OUTAGE_S later: links down, spools grow, sizes only grow and for a reason that the host measured."""
    hosts = ring.fleet.host_ids
    for host_id in hosts:
        ring.until(lambda host_id=host_id: not ring.status(host_id)["link_up"], "the link is seen down")
        ring.until(lambda host_id=host_id: not ring.status(host_id)["steps_in_flight"], "what was in flight has landed")
    began_s = ring.status(hosts[0])["clock_s"]
    spool = {host_id: ring.status(host_id)["spool_frames"] for host_id in hosts}
    newest = {host_id: ring.in_force(host_id) for host_id in hosts}
    while (now_s := ring.status(hosts[0])["clock_s"]) < began_s + OUTAGE_S:
        for host_id in hosts:
            values = ring.in_force(host_id)
            assert values.keys() == newest[host_id].keys()
            shrunk = {key: (newest[host_id][key], value) for key, value in values.items() if 0 <= value < newest[host_id][key]}
            assert not shrunk, f"{host_id} shrank without a coordinator at {now_s}"
            newest[host_id] = values
        time.sleep(0.02)
    for host_id in hosts:
        assert not ring.status(host_id)["link_up"]
        assert ring.status(host_id)["spool_frames"] > spool[host_id]
        for vm_id in {vm_id for vm_id, _ in newest[host_id]}:
            story = ring.fleet.ask(host_id, "why", vm_id)["story"]
            done = [entry for entry in story if entry["at_ns"] > began_s * 1e9 and entry["verdict"] == "submitted"]
            assert all((entry["origin"], entry["to_value"] > entry["from_value"]) == ("autonomy", True) for entry in done), done
    # the owner's command line needs no coordinator
    assert ring.agent(hosts[0], "mode", "observe").returncode == 0
    assert ring.status(hosts[0])["mode"] == "observe"
    assert ring.agent(hosts[0], "mode", "unpin").returncode == 0


def _differences(stored: dict[tuple[int, str], int], rounds: Rounds, vms: dict[str, str], first_s: int, last_s: int) -> list[str]:
    """What history has too much or too little of, bucket by bucket and in all."""
    problems = []
    for vm_id, host_id in sorted(vms.items()):
        total = 0
        for start_s in range(first_s, last_s, BUCKET_S):
            found, sampled = stored.get((start_s, vm_id), 0), rounds.between(host_id, start_s, start_s + BUCKET_S)
            total += found
            if abs(found - sampled) > SLACK or found > SAMPLES_PER_BUCKET + 1:
                problems.append(f"{host_id} {vm_id} bucket {start_s - first_s}: {found} stored, {sampled} sampled")
        sampled = rounds.between(host_id, first_s, last_s)
        if abs(total - sampled) > SLACK:
            problems.append(f"{host_id} {vm_id} in all: {total} stored, {sampled} sampled")
    return problems


def _counted_once(ring: Any) -> None:
    """The gateway says so too: an acknowledged frame that comes again is not delivered."""
    assert all(host["spool_dropped"] == 0 for host in ring.get("hosts"))
