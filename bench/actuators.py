"""What the levers cost and how exact they are: shaping on real paths, 100 taps, and every lever of a real guest from submit to read-back.

    python -m bench.actuators [--quick] [--json FILE]

Needs root. Accuracy and cost are measured in network namespaces of its own (bench/shaping_lab.py), the levers on one guest of a private
libvirtd (tests/realhost/real_host.py); without QEMU and libvirt they are left out and the reason is printed. Ratios are against the same
work through pyroute2's classes in the same run.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from pyroute2 import NetNS

from agent.acting.levers import FIELDS, shows
from agent.adapters import shaping_netlink
from agent.adapters.netlink_shaper import NetlinkShaper
from agent.adapters.shaping_rates import CLASS_HANDLE, ROOT_HANDLE
from agent.ports import Hypervisor
from bench.report import Figure, options, publish
from bench.shaping_lab import ShapingLab, in_namespace, kept, run
from shared.errors import Refusal
from shared.model import Priority
from shared.plan import StepKind
from shared.units import MBIT, MIB, UNLIMITED

TAPS = 100
RX, TX = StepKind.NET_RX, StepKind.NET_TX
# Each lever goes back and forth between two values.
VALUES = {
    StepKind.CPU_QUOTA: (500, 800),
    StepKind.CPU_SHARES: (512, 2048),
    StepKind.CPU_PERIOD: (50_000, 100_000),
    StepKind.MEMORY: (184 * MIB, 192 * MIB),
    StepKind.VIRTIO_MEM: (16 * MIB, 64 * MIB),
    StepKind.DIMM: (128 * MIB, 0),
    StepKind.MEMORY_HIGH: (512 * MIB, UNLIMITED),
    StepKind.DISK_BYTES: (5 * MIB, 3 * MIB),
    StepKind.DISK_OPS: (500, 300),
    StepKind.DISK_WEIGHT: (300, 100),
    StepKind.NET_RX: (3 * MBIT, 4 * MBIT),
    StepKind.NET_TX: (3 * MBIT, 4 * MBIT),
    StepKind.NET_TX_RATE: (MBIT, 2 * MBIT),
    StepKind.VCPUS_ONLINE: (1, 2),
    StepKind.VCPUS: (3, 4),  # up only, last: under TCG no vCPU can be unplugged
}
_FLOOD = """
import socket
out = socket.create_connection(("10.66.0.1", 9998))
data = bytes(1 << 18)
try:
    while True:
        out.sendall(data)
except OSError:
    pass
"""
READ_BACK_S = 30.0  # guard.step_timeout_s' default: later is a failed step


def accuracy(quick: bool) -> Iterator[Figure]:
    """Errors of ceilings and guarantees in per cent, from what arrives."""
    seconds = 3.0 if quick else 8.0
    with ShapingLab(2) as lab:
        shaper = NetlinkShaper(lab.namespace(), 20 * MBIT)
        for kind in (TX, RX):
            arrivals = lab.from_guest(0) if kind is TX else lab.to_guest(0)
            for mbit in (4, 15) if quick else (2, 4, 8, 15):
                shaper.set_ceiling(lab.tap(0), kind, mbit * MBIT)
                (lab.guest_sends if kind is TX else lab.host_sends)(0, 2.5 * mbit * MBIT)
                error = abs(kept([arrivals], [mbit * MBIT], seconds=seconds)[0] / (mbit * MBIT) - 1) * 100
                yield Figure(name=f"{kind} ceiling of {mbit} Mbit/s: error", value=error, unit="%", bar="<= 2", holds=error <= 2)
            lab.guest_sends(0, 0)
            shaper.release(lab.tap(0))
        arrived = [lab.from_guest(i) for i in range(2)]
        shaper.assign(lab.tap(0), "a", Priority.LOW)
        shaper.assign(lab.tap(1), "b", Priority.HIGH)
        shaper.set_ceiling(lab.tap(1), TX, 30 * MBIT)
        for i in range(2):
            lab.guest_sends(i, 25 * MBIT)
        for mbit in (14,) if quick else (3, 14):
            shaper.set_rate(lab.tap(0), mbit * MBIT)
            got, other = kept(arrived, [mbit * MBIT, (20 - mbit) * MBIT], seconds=seconds)
            error = abs(got / (mbit * MBIT) - 1) * 100
            yield Figure(name=f"guarantee of {mbit} of 20 Mbit/s: error", value=error, unit="%", bar="<= 2", holds=error <= 2)
            error = abs((got + other) / (20 * MBIT) - 1) * 100
            yield Figure(name="full uplink of 20 Mbit/s: error", value=error, unit="%", bar="<= 2", holds=error <= 2)
        shaper.close()


@contextmanager
def many_taps(lab: ShapingLab) -> Iterator[list[str]]:
    """TAPS more interfaces in the lab's host."""
    names = [f"many{i}" for i in range(TAPS)]
    for name in names:
        run(f"ip -n {lab.host} tuntap add mode tap {name}")
        run(f"ip -n {lab.host} link set {name} up")
    yield names


def cost() -> Iterator[Figure]:
    """CPU of reading and changing 100 taps, and what their entries cost the packets of one that comes after them."""
    with ShapingLab(1) as lab, many_taps(lab) as taps:
        shaper = NetlinkShaper(lab.namespace(), 100_000 * MBIT)
        run(f"ip -n {lab.host}g0 link set eth0 gso_max_segs 1")  # every frame by itself: what a packet costs shows
        speeds = {"unshaped": tcp_kframes(lab)}
        shaper.set_ceiling(lab.tap(0), TX, 90_000 * MBIT)
        speeds["through the tree, alone in it"] = tcp_kframes(lab)
        shaper.release(lab.tap(0))
        made = {kind: cpu_ms(lambda kind=kind: [shaper.set_ceiling(tap, kind, 10 * MBIT) for tap in taps]) for kind in (RX, TX)}  # type: ignore[misc]
        changed = {kind: cpu_ms(lambda kind=kind: [shaper.set_ceiling(tap, kind, 20 * MBIT) for tap in taps]) for kind in (RX, TX)}  # type: ignore[misc]
        shaper.set_ceiling(lab.tap(0), TX, 90_000 * MBIT)
        speeds[f"through the tree, behind {TAPS} entries"] = tcp_kframes(lab)
        with mock.patch.object(shaping_netlink, "load_marking_program", lambda target: None):
            shaper.release(lab.tap(0))
            shaper.set_ceiling(lab.tap(0), TX, 90_000 * MBIT)
        speeds["  the same where bpf is not allowed"] = tcp_kframes(lab)
        reading = min(cpu_ms(shaper.readings) for _ in range(5))
        sweep = min(cpu_ms(shaper.sweep) for _ in range(3))
        with NetNS(lab.namespace()) as netlink:
            indexes = [netlink.link_lookup(ifname=tap)[0] for tap in taps]
            old_reading = wall_ms(lambda: [list(netlink.get_classes(index=index)) for index in indexes])
            old_change = wall_ms(
                lambda: [
                    netlink.tc(
                        "change-class", "htb", i, handle=CLASS_HANDLE, parent=ROOT_HANDLE, rate="10mbit", ceil="10mbit", quantum=1514
                    )
                    for i in indexes
                ]
            )
        shaper.close()
    yield Figure(name=f"readings of {TAPS} taps, both directions", value=reading, unit="ms CPU", bar="<= 10", holds=reading <= 10)
    yield Figure(name=f"  pyroute2, classes of {TAPS} taps, one direction", value=old_reading, unit="ms")
    yield Figure(name="  ratio", value=reading / old_reading, unit="x")
    for kind in (RX, TX):
        yield Figure(name=f"first {kind} ceiling, each of {TAPS} taps", value=made[kind] / TAPS, unit="ms CPU")
        yield Figure(name=f"changed {kind} ceiling, each of {TAPS} taps", value=changed[kind] / TAPS, unit="ms CPU")
    yield Figure(name="  pyroute2, change-class", value=old_change / TAPS, unit="ms")
    yield Figure(name=f"sweep with {TAPS} taps", value=sweep, unit="ms CPU")
    for name, speed in speeds.items():
        yield Figure(name=f"full frames from a guest, {name}", value=speed, unit="1000/s")


def cpu_ms(work: Callable[[], Any]) -> float:
    """CPU time of this process for `work`."""
    before = time.process_time()
    work()
    return (time.process_time() - before) * 1000


def wall_ms(work: Callable[[], Any]) -> float:
    """pyroute2 works partly in other processes, so its CPU time is not all ours."""
    before = time.perf_counter()
    work()
    return (time.perf_counter() - before) * 1000


def tcp_kframes(lab: ShapingLab) -> float:
    """Thousands of full frames per second that guest 0 gets through to the host: the best of three seconds, for others use this machine."""
    return max(tcp_bytes_per_s(lab) for _ in range(3)) / 1_448 / 1_000


def tcp_bytes_per_s(lab: ShapingLab, seconds: float = 1.0) -> float:
    """Payload that guest 0 gets through to the host."""

    def bound() -> socket.socket:
        return socket.create_server(("10.66.0.1", 9998))

    listener = in_namespace(lab.namespace(), bound)
    sender = subprocess.Popen(["ip", "netns", "exec", f"{lab.host}g0", sys.executable, "-c", _FLOOD])
    try:
        connection, _ = listener.accept()
        buffer = bytearray(1 << 20)
        with connection:
            end = time.monotonic() + 0.5  # TCP's start
            while time.monotonic() < end:
                connection.recv_into(buffer)
            got, begun = 0, time.monotonic()
            while time.monotonic() < begun + seconds:
                got += connection.recv_into(buffer)
            return got / (time.monotonic() - begun)
    finally:
        sender.kill()
        sender.wait()
        listener.close()


def levers(quick: bool) -> Iterator[Figure]:
    """Submit to read-back of each lever on one guest; p50 and the slowest of all rounds."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "realhost"))
    from real_host import RealHost, reason_to_skip  # noqa: PLC0415  # tests are not installed; the bench runs from a checkout

    reason = reason_to_skip()
    if reason is not None:
        print(f"levers on a real guest left out: {reason}")
        return
    from agent.adapters.libvirt_host import open_libvirt_host  # noqa: PLC0415

    with RealHost() as host:
        guest = host.define_guest(
            "bench", vcpus=2, vcpus_max=4, memory_mib=192, ip="10.77.9.2/24", agent=True, disks=1, virtio_mem_mib=128, slots=2
        )
        hypervisor, _ = open_libvirt_host(libvirt_uri=host.uri, network_namespace=host.netns)
        end = time.monotonic() + 60
        while hypervisor.allocation(guest.vm_id).vcpus_online is None and time.monotonic() < end:
            time.sleep(0.5)  # the guest agent starts last
        try:
            for kind, values in VALUES.items():
                yield from lever(hypervisor, guest.vm_id, kind, values, 3 if quick else 10)
        finally:
            hypervisor.close()


def lever(hypervisor: Hypervisor, vm_id: str, kind: StepKind, values: tuple[int, int], rounds: int) -> Iterator[Figure]:
    """One lever's figures; what the guest cannot do is printed and left out."""
    times = []
    submits = []
    try:
        for value in values * (1 if kind is StepKind.VCPUS else rounds):
            begun = time.perf_counter()
            hypervisor.submit(vm_id, kind, value)
            submits.append((time.perf_counter() - begun) * 1000)
            while not shows(kind, value, getattr(hypervisor.allocation(vm_id), FIELDS[kind][0])):
                if time.perf_counter() > begun + READ_BACK_S:
                    raise TimeoutError(f"{kind} {value} was not in force within {READ_BACK_S} s")
                time.sleep(0.002)
            times.append((time.perf_counter() - begun) * 1000)
    except (Refusal, TimeoutError) as error:
        print(f"{kind} left out: {error}")
        return
    times.sort()
    yield Figure(name=f"{kind}: submit, p50", value=sorted(submits)[len(submits) // 2], unit="ms")
    yield Figure(name=f"{kind}: submit to read-back, p50", value=times[len(times) // 2], unit="ms")
    slowest = times[-1]
    limit = READ_BACK_S * 1000
    yield Figure(
        name=f"{kind}: submit to read-back, slowest of {len(times)}",
        value=slowest,
        unit="ms",
        bar=f"<= {limit:.0f}",
        holds=slowest <= limit,
    )


def main() -> None:
    """Run all parts; exits 0 when it ran."""
    arguments = options(__doc__ or "").parse_args()
    if os.geteuid() != 0:
        print("bench.actuators needs root: nothing measured")
        return
    figures = [*cost(), *accuracy(arguments.quick), *levers(arguments.quick)]
    publish(figures, arguments.json)
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    if left:
        print("threads left:", ", ".join(left))


if __name__ == "__main__":
    main()
