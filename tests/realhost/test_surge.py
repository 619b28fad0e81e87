"""The ring on a real host: libvirtd and QEMU guests, a real agent and a real coordinator (Ray, TLS over TCP) as processes.

Two guests are alike but for their stored history: one had a surge every day at 09:05. The clock (five times real time) stands shortly
before. In mode observe nothing on the host may change while the receipts show what would have been done; in predictive the first guest
gets quota, vCPU, memory and network rate before 09:05, sees them, and the second one keeps what it had. No guest works before 09:05,
so a rule that looks at use alone would have done nothing.
"""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from real_host import Guest, RealHost, wait_for
from surge_scene import DAY_S, SURGE_S, clock_s, configure, history, start

from agent.adapters.libvirt_host import open_libvirt_host
from coordinator.demo import DemoOptions, Fleet
from coordinator.service.auth import new_token
from coordinator.store.registry import SqlRegistry
from shared.model import Allocation, Mode
from shared.plan import StepKind
from shared.units import MBIT, MIB, NS_PER_S

pytestmark = [pytest.mark.realhost, pytest.mark.slow, pytest.mark.timeout(420)]

SPEED = 5.0
HOST = "real-1"
SURGE = (1500.0, 120.0 * MIB, 1e4, 20.0 * MBIT, 0.2 * MBIT)


@dataclass
class Running:
    """The processes and what they act on."""

    fleet: Fleet
    surging: Guest
    flat: Guest
    token: str
    hypervisor: Any

    def allocation(self, guest: Guest) -> Allocation:
        return self.hypervisor.allocation(guest.vm_id)  # type: ignore[no-any-return]

    def clock_s(self) -> float:
        """Seconds of the simulated day."""
        return clock_s(self.fleet)

    def receipts(self, guest: Guest) -> list[dict[str, Any]]:
        found = self.fleet.get(f"api/v1/receipts?vm={guest.vm_id}&limit=50")
        return list(found["items"] if isinstance(found, dict) else found)

    def order(self, mode: Mode) -> None:
        request = urllib.request.Request(
            f"{self.fleet.url}api/v1/hosts/{HOST}/mode",
            data=msgspec.json.encode({"mode": mode}),
            method="PUT",
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status in (200, 202)


@pytest.fixture(scope="module")
def guests(real_host: RealHost) -> Iterator[tuple[Guest, Guest]]:
    """Two equal guests."""
    made = [
        real_host.define_guest(name, vcpus=1, vcpus_max=2, memory_mib=104, memory_max_mib=160, ip=f"10.78.{i}.2/24")
        for i, name in enumerate(("surging", "flat"))
    ]
    yield made[0], made[1]
    for guest in made:
        guest.close()


@pytest.fixture(scope="module")
def running(real_host: RealHost, guests: tuple[Guest, Guest]) -> Iterator[Running]:
    """Coordinator and agent as processes; both guests start with a quota of 0.3 CPU and 2 Mbit/s."""
    surging, flat = guests
    hypervisor, _ = open_libvirt_host(libvirt_uri=real_host.uri, network_namespace=real_host.netns)
    hypervisor.domains()
    for guest in guests:
        hypervisor.submit(guest.vm_id, StepKind.CPU_QUOTA, 300)
        hypervisor.submit(guest.vm_id, StepKind.NET_RX, 2 * MBIT)
    with Fleet(DemoOptions()) as fleet, contextlib.closing(hypervisor):
        token, hashed = new_token()
        past = history((surging.vm_id, flat.vm_id), {surging.vm_id: SURGE})
        configure(fleet, {HOST: (real_host, Mode.OBSERVE)}, past, SPEED)
        registry = SqlRegistry(f"sqlite:///{fleet.folder / 'coordinator' / 'registry.sqlite'}")
        registry.save_token(hashed, "test", time.time_ns())
        registry.close()
        start(fleet)
        yield Running(fleet, surging, flat, token, hypervisor)


def test_the_surge_is_met_before_it_comes(running: Running) -> None:
    surging, flat = running.surging, running.flat
    first = {guest.name: running.allocation(guest) for guest in (surging, flat)}
    assert first["surging"] == first["flat"]

    # 09:00, observe: the receipts show the steps, the host shows no change
    shadow = wait_for(lambda: [r for r in running.receipts(surging) if r["shadow"] and r["steps"]], "a shadow receipt with steps", 120)
    assert running.clock_s() < SURGE_S
    assert {guest.name: running.allocation(guest) for guest in (surging, flat)} == first
    assert {step["kind"] for step in shadow[0]["steps"]} >= {"cpu_quota", "memory"}
    assert shadow[0]["trail"]

    running.order(Mode.PREDICTIVE)
    wait_for(lambda: running.fleet.ask(HOST, "mode")["mode"] == "predictive", "the agent to take the order", 30)

    # predictive, planned at once: everything is in force before 09:05
    def grown() -> bool:
        running.fleet.check()
        now = running.allocation(surging)
        return bool(
            (now.cpu_quota_millicores or 0) > 1200
            and now.vcpus == 2
            and (now.memory_bytes or 0) > 120 * MIB
            and (now.net_rx_bits_per_s or 0) > 15 * MBIT
        )

    try:
        wait_for(grown, "quota, vCPU, memory and rate", 150)
    except AssertionError as error:
        story = running.fleet.ask(HOST, "why", surging.vm_id)["story"]
        log = "".join(Path(running.fleet.folder / f"{n}.log").read_text()[-1500:] for n in ("coordinator", HOST))
        raise AssertionError(f"{error}; in force {running.allocation(surging)}; story {story}; log {log}") from error
    assert wait_for(lambda: surging.sh("nproc") == "2", "the guest to see its second vCPU", 30)
    assert int(surging.sh("grep MemTotal /proc/meminfo").split()[1]) > int(flat.sh("grep MemTotal /proc/meminfo").split()[1]) + 16_384
    assert running.allocation(flat).vcpus == 1
    assert (running.allocation(flat).cpu_quota_millicores or 0) <= 300
    assert (running.allocation(flat).memory_bytes or 0) <= (first["flat"].memory_bytes or 0)

    # the receipt and the outcome say so
    ended = [row["outcome"] for row in outcomes(running, surging) if row["outcome"]["origin"] == "plan"]
    done = {outcome["step"]["kind"]: outcome for outcome in ended if outcome["state"] in ("verified", "partial")}
    assert set(done) >= {"cpu_quota", "vcpus", "memory", "net_rx"}
    at_s = {kind: outcome["finished_ns"] / NS_PER_S - DAY_S for kind, outcome in done.items()}
    assert all(second < SURGE_S for second in at_s.values()), f"{at_s}: the values came only with the surge at {SURGE_S}"
    assert {done[kind]["step"]["reason"] for kind in ("cpu_quota", "vcpus", "memory")} == {"forecast_peak"}, done

    # the surge itself: two busy threads are not held to the old quota
    before = surging.work()
    surging.cpu(1000, 2)
    wait_for(lambda: surging.work() > before, "the guest to work", 60)
    rows = {row["vm_id"]: row for row in running.fleet.ask(HOST, "vms")}
    assert rows[surging.vm_id]["in_force"]["cpu_quota"] > 1200
    surging.cpu(0, 0)


def outcomes(running: Running, guest: Guest) -> list[dict[str, Any]]:
    """Wait until the coordinator has heard of each lever, then all outcomes of the guest."""

    def heard() -> list[dict[str, Any]]:
        found = running.fleet.get(f"api/v1/outcomes?vm={guest.vm_id}&limit=200")
        rows = list(found["items"] if isinstance(found, dict) else found)
        kinds = {row["outcome"]["step"]["kind"] for row in rows if row["outcome"]["state"] == "verified"}
        return rows if kinds >= {"cpu_quota", "vcpus", "memory", "net_rx"} else []

    return wait_for(heard, "the outcomes at the coordinator", 60)  # type: ignore[no-any-return]
