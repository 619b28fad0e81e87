"""The agents' door under a whole fleet's load, by real sockets with TLS on both sides, beside the forecasts of the same process.

1,000 agents with 10 VMs each sample every 5 s, on a clock that runs 10 times as fast: 20,000 VM samples and 667 frames a second, a bucket
and its forecast every 30 s instead of 300. Agents are the product's own link in processes of their own, whose processor time is told apart.
One agent never reads what it is sent and one sends its frame byte by byte, all the time. Then the coordinator is killed and started again.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Final

import numpy as np

from bench.report import Figure, finish, options
from bench.service_agents import CAPACITY
from bench.service_fleet import ServiceFleet
from shared.frame import encode, encode_block
from shared.messages import Hello, Samples
from shared.model import HostSample, Mode, VmSample
from shared.tls import client_context

SPEED: Final = 10.0
VMS: Final = 10
WARM_S: Final = 6.0


class Sloths:
    """Two agents that behave badly until closed: one never reads, one sends a byte at a time. Raw sockets: no library helps them."""

    def __init__(self, fleet: ServiceFleet, host_ids: tuple[str, str]) -> None:
        self._fleet, self._stop = fleet, threading.Event()
        self.sent = 0
        pairs = ((self._deaf, host_ids[0]), (self._slow, host_ids[1]))
        self._threads = [threading.Thread(target=target, args=(host,), daemon=True) for target, host in pairs]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _open(self, host_id: str) -> ssl.SSLSocket:
        pki = self._fleet.folder / "pki"
        context = client_context(pki / "ca.pem", pki / f"host-{host_id}.pem", pki / f"host-{host_id}.key")
        raw = socket.create_connection(("127.0.0.1", self._fleet.ports[0]), 10)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wrapped = context.wrap_socket(raw, server_hostname="127.0.0.1")
        wrapped.sendall(
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        wrapped.settimeout(10)
        while b"\r\n\r\n" not in wrapped.recv(4096):
            continue
        hello = Hello(
            host_id=host_id,
            boot_id="b",
            agent_version="sloth",
            wall_ns=self._now_ns(),
            capacity=CAPACITY,
            mode=Mode.OBSERVE,
            mode_pinned=False,
        )
        wrapped.sendall(_masked(encode(hello)))
        return wrapped

    def _now_ns(self) -> int:
        clock = self._fleet.clock
        return clock.simulated_start_ns + int(max(0, time.time_ns() - clock.real_start_ns) * clock.speed)

    def _frame(self, sequence: int) -> bytes:
        sample = HostSample(wall_ns=self._now_ns(), monotonic_ns=1, period_ns=5 * 10**9, vms={"sloth": VmSample(cpu_used_millicores=1)})
        return _masked(encode(Samples(boot_id="b", sequence=sequence, block=encode_block([sample]))))

    def _deaf(self, host_id: str) -> None:
        """Frames as fast as the door lets them in, and not one answer read."""
        while not self._stop.is_set():
            try:
                with self._open(host_id) as wrapped:
                    while not self._stop.is_set():
                        wrapped.sendall(self._frame(self.sent))
                        self.sent += 1
            except OSError:
                self._stop.wait(0.5)

    def _slow(self, host_id: str) -> None:
        while not self._stop.is_set():
            try:
                with self._open(host_id) as wrapped:
                    for byte in self._frame(0):
                        wrapped.sendall(bytes([byte]))
                        if self._stop.wait(0.05):
                            return
            except OSError:
                self._stop.wait(0.5)


def _masked(payload: bytes) -> bytes:
    """A WebSocket frame of a client, with the mask 0."""
    length = len(payload)
    head = bytes([0x82, 0x80 | length]) if length < 126 else bytes([0x82, 0xFE]) + length.to_bytes(2, "big")
    return head + bytes(4) + payload


def run(hosts: int, seconds: float, *, ray: bool, processes: int, restart: bool, speed: float = SPEED) -> list[Figure]:
    """One run; the bars hold for 1,000 hosts at ten times the pace."""
    whole = hosts >= 1000
    with ServiceFleet(hosts=hosts + 2, vms=VMS, speed=speed, ready_s=20.0 if whole else 6.0, ray=ray, agent_processes=processes) as fleet:
        sloth_ids = fleet.host_ids[-2], fleet.host_ids[-1]
        del fleet.host_ids[-2:]
        fleet.start()
        fleet.until("ready", fleet.ready, 120)
        began = time.monotonic()
        fleet.start_agents()
        fleet.until(f"{hosts} agents connected", lambda: fleet.up() == hosts, 120)
        connected_s = time.monotonic() - began
        fleet.until("the clock runs", lambda: time.time_ns() > fleet.clock.real_start_ns, 60)
        time.sleep(WARM_S)
        sloths = Sloths(fleet, sloth_ids)
        for agents in fleet.agents:
            agents.ask("mark")
        cpu_s, started, memory = fleet.cpu_s(), time.monotonic(), []
        answers: list[float] = []
        while time.monotonic() - started < seconds:
            time.sleep(1.0)
            memory.append((time.monotonic() - started, fleet.rss_bytes()))
            asked = time.monotonic()
            fleet.get("/api/v1/fleet")
            answers.append(time.monotonic() - asked)
        told = [agents.ask("told") for agents in fleet.agents]
        spent_s, took_s = fleet.cpu_s() - cpu_s, time.monotonic() - started
        sloths.close()
        acked = sum(each.acked for each in told)
        latencies = np.concatenate([each.latencies for each in told])
        p50, p99 = (float(value) for value in np.quantile(latencies, (0.5, 0.99)))
        half = [(at, size) for at, size in memory if at >= took_s / 2]
        slope = float(np.polyfit(*np.array(half, float).T, 1)[0])
        cycles = fleet.get("/api/v1/fleet")["cycle"]
        wanted = hosts * VMS / 5 * speed * 0.97
        rate, generator = acked / took_s, sum(each.cpu_s for each in told) / took_s
        figures = [
            Figure(name="VM samples acknowledged", value=rate, unit="1/s", bar=f">= {wanted:.0f}", holds=rate >= wanted),
            Figure(name="  per processor second of the coordinator, forecasts included", value=acked / spent_s, unit="1/s"),
            Figure(name="  processor seconds a second: coordinator", value=spent_s / took_s, unit="CPUs"),
            Figure(name="  processor seconds a second: load generator (not counted)", value=generator, unit="CPUs"),
            Figure(name="send to durable acknowledgement, p50", value=p50, unit="s"),
            Figure(name="send to durable acknowledgement, p99", value=p99, unit="s", bar="<= 2 s", holds=p99 <= 2.0),
            Figure(name="  slowest", value=float(latencies.max()), unit="s"),
            Figure(name="  latest that the generator made a frame too late", value=max(t.lag_s for t in told), unit="s"),
            Figure(name="answer of /api/v1/fleet meanwhile, median", value=float(np.median(answers)), unit="s"),
            Figure(name="  slowest", value=max(answers), unit="s"),
            Figure(name="forecast cycles in the run", value=cycles, unit=""),
            Figure(name="resident memory at the end", value=memory[-1][1] / 2**20, unit="MiB"),
            Figure(name="  slope over the second half", value=slope * 3600 / 2**20, unit="MiB/h"),
            Figure(name="frames of the agent that never reads", value=sloths.sent, unit=""),
            Figure(name=f"{hosts} agents connect to an idle coordinator", value=connected_s, unit="s"),
        ]
        if restart:
            fleet.kill()
            fleet.until("agents see that it is gone", lambda: fleet.up() == 0, 30)
            fleet.start()
            ready_s = fleet.until("ready", fleet.ready, 120)
            back_s = ready_s + fleet.until("all agents are back", lambda: fleet.up() == hosts, 180)
            caught_s = back_s + fleet.until(
                "spools are empty", lambda: sum(agents.ask("told").waiting for agents in fleet.agents) < 2 * hosts, 180
            )
            figures += [
                Figure(name="killed and started: ready", value=ready_s, unit="s", bar="<= 10 s", holds=ready_s <= 10),
                Figure(name=f"  {hosts} agents back", value=back_s, unit="s", bar="<= 60 s", holds=back_s <= 60),
                Figure(name="  what they spooled meanwhile is acknowledged", value=caught_s, unit="s"),
            ]
        return figures


def main() -> None:
    """python -m bench.gateway [--quick] [--json FILE] [--local] [--hosts N] [--seconds S] [--speed X] [--no-restart]"""
    parser = options(__doc__ or "")
    parser.add_argument("--local", action="store_true", help="forecasts in the coordinator's process; else in Ray workers, as by default")
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long is measured")
    parser.add_argument("--no-restart", action="store_true", help="leave out the kill and the start at the end")
    parser.add_argument("--speed", type=float, default=SPEED, help="simulated seconds per second; 1 = 2,000 VM samples a second")
    arguments = parser.parse_args()
    if arguments.quick:
        finish(run(20, 5.0, ray=False, processes=1, restart=False), arguments.json, strict=False)
    else:
        restart = not arguments.no_restart
        figures = run(arguments.hosts, arguments.seconds, ray=not arguments.local, processes=1, restart=restart, speed=arguments.speed)
        finish(figures, arguments.json, strict=False)


if __name__ == "__main__":
    main()
