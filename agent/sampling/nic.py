"""Interface counters of a network namespace, all in one read of /proc/PID/net/dev (0.6 ms for 150 interfaces; sysfs needs 35 ms).

/proc/PID/net shows the namespace of that process, so QEMU's own pid leads to its taps wherever libvirt put them.
"""

from __future__ import annotations

import msgspec

from agent.sampling.files import KernelFiles


class InterfaceCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes as the host's end of the tap counts them: `rx` is what the guest sent."""

    rx_bytes_total: int
    tx_bytes_total: int


def parse_net_dev(text: str) -> dict[str, InterfaceCounters]:
    """/proc/net/dev: two header lines, then `name: rx_bytes packets errs drop fifo frame compressed multicast tx_bytes ...`."""
    interfaces = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.rpartition(":")
        fields = rest.split()
        if name and len(fields) >= 9:
            interfaces[name.strip()] = InterfaceCounters(rx_bytes_total=int(fields[0]), tx_bytes_total=int(fields[8]))
    return interfaces


def read_interfaces(files: KernelFiles, pid: int) -> dict[str, InterfaceCounters]:
    """The interfaces of the network namespace of `pid`; empty when it is gone."""
    return parse_net_dev(files.read(files.proc / str(pid) / "net" / "dev") or "")


def namespace_of(files: KernelFiles, pid: int) -> str | None:
    """Identity of the network namespace of `pid` (`net:[4026532245]`), so that each is read once."""
    return files.link(files.proc / str(pid) / "ns" / "net")
