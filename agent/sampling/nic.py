"""Interface counters of a network namespace, all in one read of /proc/PID/net/dev (0.6 ms for 150 interfaces; sysfs needs 35 ms).

/proc/PID/net shows the namespace of that process, so QEMU's own pid leads to its taps wherever libvirt put them.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from agent.sampling.files import KernelFiles

_REJECT = 0x0200  # RTF_REJECT: a route that refuses


class InterfaceCounters(msgspec.Struct, frozen=True, kw_only=True):
    """As the host's end of the tap counts: `rx` is what the guest sent."""

    rx_bytes_total: int
    tx_bytes_total: int
    rx_packets_total: int = 0
    tx_packets_total: int = 0
    rx_dropped_total: int = 0
    tx_dropped_total: int = 0


def parse_net_dev(text: bytes, wanted: Container[str] | None = None) -> dict[str, InterfaceCounters]:
    """/proc/net/dev: two header lines, then `name: bytes packets errs drop fifo frame compressed multicast`, and the same of the sent.

    `wanted`: names to keep; None = all.
    """
    interfaces = {}
    for line in text.splitlines()[2:]:
        before, _, rest = line.rpartition(b":")
        name = before.strip().decode("utf-8", "replace")
        if not name or (wanted is not None and name not in wanted):
            continue
        fields = rest.split()
        if len(fields) >= 12:
            interfaces[name] = InterfaceCounters(
                rx_bytes_total=int(fields[0]),
                tx_bytes_total=int(fields[8]),
                rx_packets_total=int(fields[1]),
                tx_packets_total=int(fields[9]),
                rx_dropped_total=int(fields[3]),
                tx_dropped_total=int(fields[11]),
            )
    return interfaces


def parse_default_route(ipv4: str, ipv6: str = "") -> str | None:
    """The interface of the best default route in /proc/net/route, else in /proc/net/ipv6_route; None without one."""
    routes = []
    for line in ipv4.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == fields[7] == "00000000" and not int(fields[3], 16) & _REJECT:
            routes.append((int(fields[6]), fields[0]))
    if not routes:
        for line in ipv6.splitlines():
            fields = line.split()
            # destination, its prefix length, source, its prefix length, next hop, metric, references, uses, flags, interface
            if len(fields) >= 10 and fields[0].strip("0") == "" and fields[1] == "00" and not int(fields[8], 16) & _REJECT:
                routes.append((int(fields[5], 16), fields[9]))
    return min(routes)[1] if routes else None


def read_default_interface(files: KernelFiles) -> str | None:
    """The interface that leads out of this host; None without a default route."""
    net = files.proc / "self" / "net"
    return parse_default_route(files.read(net / "route") or "", files.read(net / "ipv6_route") or "")


def namespace_of(files: KernelFiles, pid: int | str) -> str | None:
    """Identity of the network namespace of a process (`net:[4026532245]`), so that each is read once."""
    return files.link(files.proc / str(pid) / "ns" / "net")
