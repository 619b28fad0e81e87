"""Real traffic through real shaping without guests: veth pairs whose host ends stand for taps, UDP flows, and what really arrives.

For the kernel's traffic control a veth end is a tap: what the other end sends comes in at its ingress, what it sends the other end gets.
Datagrams of one size are counted as on the wire (payload + 42 bytes of headers), one by one, because neither TCP's segments nor the
counters of offloading devices say what a limit sees.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from agent.adapters.shaping_netlink import enter_network_namespace

PAYLOAD = 1_200
HEADERS = 14 + 20 + 8  # Ethernet, IPv4, UDP
_T = TypeVar("_T")

_SEND = """
import socket, sys, time
rate = float(sys.argv[3]) / 8 / (int(sys.argv[4]) + 42)  # datagrams per second
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
data, begun, sent = bytes(int(sys.argv[4])), time.monotonic(), 0
while True:
    due = int((time.monotonic() - begun) * rate)
    for _ in range(due - sent):
        out.sendto(data, (sys.argv[1], int(sys.argv[2])))
    sent = max(sent, due)
    time.sleep(0.002)
"""


def run(command: str) -> str:
    """Output of a command; raises CalledProcessError."""
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def in_namespace(path: str, work: Callable[[], _T]) -> _T:
    """Result of `work` in a thread that has entered the namespace; a socket made there stays there."""

    def enter_and_work() -> _T:
        enter_network_namespace(path)
        return work()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(enter_and_work).result()


class Arrivals:
    """Counts what arrives at a UDP port. `longest_gap_s`: the longest silence since `count` was last called."""

    def __init__(self, namespace: str, address: str, port: int) -> None:
        def bound() -> socket.socket:
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            listener.bind((address, port))
            listener.settimeout(0.2)
            return listener

        self._socket = in_namespace(namespace, bound)
        self._bytes = 0
        self._gap = 0.0
        self._last = time.monotonic()
        self._ended = False
        self._thread = threading.Thread(target=self._receive, name="arrivals", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while not self._ended:
            try:
                size = len(self._socket.recv(2048))
            except TimeoutError:
                continue
            now = time.monotonic()
            self._gap, self._last = max(self._gap, now - self._last), now
            self._bytes += size + HEADERS

    def count(self) -> tuple[float, int]:
        """Now and the bytes on the wire so far."""
        return time.monotonic(), self._bytes

    def longest_gap_s(self) -> float:
        """Longest silence since this was last asked."""
        gap, self._gap = max(self._gap, time.monotonic() - self._last), 0.0
        self._last = time.monotonic()
        return gap

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        self._socket.close()


class ShapingLab:
    """One namespace for the host and one for each of `guests`; `tap(i)` is a guest's end in the host's. Use as a context manager."""

    def __init__(self, guests: int) -> None:
        self.host = f"tgl{os.getpid()}"
        self.guests = guests
        self._senders: dict[int, subprocess.Popen[bytes]] = {}
        self._arrivals: dict[tuple[str, str], Arrivals] = {}

    def __enter__(self) -> ShapingLab:
        try:
            run(f"ip netns add {self.host}")
            run(f"ip -n {self.host} link set lo up")
            for i in range(self.guests):
                run(f"ip netns add {self.host}g{i}")
                run(f"ip -n {self.host} link add {self.tap(i)} type veth peer name eth0 netns {self.host}g{i}")
                run(f"ip -n {self.host} addr add 10.66.{i}.1/24 dev {self.tap(i)}")
                run(f"ip -n {self.host} link set {self.tap(i)} up")
                run(f"ip -n {self.host}g{i} addr add 10.66.{i}.2/24 dev eth0")
                run(f"ip -n {self.host}g{i} link set eth0 up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def tap(self, i: int) -> str:
        """Name of the host's end."""
        return f"tap{i}"

    def namespace(self, i: int | None = None) -> str:
        """Path of a guest's namespace, or of the host's."""
        return f"/run/netns/{self.host}" + ("" if i is None else f"g{i}")

    def guest_sends(self, i: int, bits_per_s: float, payload: int = PAYLOAD) -> None:
        """Guest i sends to the host at this rate from now on, 0 = no more; counted by `from_guest(i)`."""
        self._stop(i)
        if bits_per_s:
            self._senders[i] = self._send(f"{self.host}g{i}", f"10.66.{i}.1", bits_per_s, payload)

    def host_sends(self, i: int, bits_per_s: float, payload: int = PAYLOAD) -> None:
        """The host sends to guest i; counted by `to_guest(i)`."""
        self._stop(i)
        if bits_per_s:
            self._senders[i] = self._send(self.host, f"10.66.{i}.2", bits_per_s, payload)

    def from_guest(self, i: int) -> Arrivals:
        """What guest i sends and the host gets; counts from the first call on."""
        return self._counting(self.namespace(), f"10.66.{i}.1")

    def to_guest(self, i: int) -> Arrivals:
        """What the host sends and guest i gets; counts from the first call on."""
        return self._counting(self.namespace(i), f"10.66.{i}.2")

    def _counting(self, namespace: str, address: str) -> Arrivals:
        if (namespace, address) not in self._arrivals:
            self._arrivals[namespace, address] = Arrivals(namespace, address, 9999)
        return self._arrivals[namespace, address]

    def _send(self, namespace: str, address: str, bits_per_s: float, payload: int) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", namespace, sys.executable, "-c", _SEND, address, "9999", str(bits_per_s), str(payload)]
        return subprocess.Popen(command)

    def _stop(self, i: int) -> None:
        sender = self._senders.pop(i, None)
        if sender is not None:
            sender.kill()
            sender.wait()

    def close(self) -> None:
        """End every flow and remove the namespaces."""
        for i in list(self._senders):
            self._stop(i)
        for arrivals in self._arrivals.values():
            arrivals.close()
        for name in [f"{self.host}g{i}" for i in range(self.guests)] + [self.host]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def rates(arrivals: list[Arrivals], settle_s: float = 1.0, seconds: float = 3.0) -> list[float]:
    """Bits/s that arrive at each, over `seconds`, after the bursts and queues of a change have passed.

    A rate needs real time to pass. The window is the longer the closer one looks: a queue of 50 frames is 0.8 % of 8 Mbit/s over 6 s.
    """
    time.sleep(settle_s)
    before = [each.count() for each in arrivals]
    time.sleep(seconds)
    after = [each.count() for each in arrivals]
    return [(to - since) * 8 / (end - begun) for (begun, since), (end, to) in zip(before, after, strict=True)]


def kept(arrivals: list[Arrivals], expected: list[float], share: float = 0.02, settle_s: float = 1.0, seconds: float = 3.0) -> list[float]:
    """Rates of the first of four windows in which each is within `share` of what is expected, else of the last.

    On a busy machine a sender or counter may get no CPU for longer than a queue lasts: less arrives, and no limit did that. More than a
    limit never arrives for such a reason, so a window with more is given back at once.
    """
    found: list[float] = []
    for _ in range(4):
        found = rates(arrivals, settle_s, seconds)
        pairs = list(zip(found, expected, strict=True))
        if any(rate > limit * (1 + share) for rate, limit in pairs) or all(rate >= limit * (1 - share) for rate, limit in pairs):
            break
    return found
