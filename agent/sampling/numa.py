"""NUMA nodes of the host from /sys/devices/system/node: how many CPUs, how much memory, how much of it free.

A node without memory or without CPUs is a node all the same. MemTotal of the nodes may add up to less than that of /proc/meminfo on
kernels that initialise memory lazily: these figures compare nodes, they are not the host's capacity.
Source: Documentation/admin-guide/mm/numaperf.rst, Documentation/ABI/stable/sysfs-devices-node.
"""

from __future__ import annotations

import re
from typing import Final

from agent.ports import NumaNode
from agent.sampling.files import KernelFiles
from shared.units import KIB

MOST_NODES: Final = 1024  # MAX_NUMNODES of the widest kernel
_NODE: Final = re.compile(r"^node(\d+)$")
_MEMORY: Final = re.compile(r"^Node \d+ (MemTotal|MemFree):\s+(\d+) kB$", re.MULTILINE)


def read_numa(files: KernelFiles) -> tuple[NumaNode, ...]:
    """The nodes by number; empty where the kernel has no such directory. Raises HostError when reading fails."""
    root = files.sys / "devices" / "system" / "node"
    numbers = sorted(int(match[1]) for match in map(_NODE.match, files.names(root)) if match)
    nodes = []
    for number in numbers[:MOST_NODES]:
        directory = root / f"node{number}"
        memory = {name: int(kib) * KIB for name, kib in _MEMORY.findall(files.read(directory / "meminfo") or "")}
        nodes.append(
            NumaNode(
                node=number,
                cpus=count_cpus(files.read(directory / "cpulist") or ""),
                memory_bytes=memory.get("MemTotal"),
                memory_free_bytes=memory.get("MemFree"),
            )
        )
    return tuple(nodes)


def count_cpus(text: str) -> int:
    """How many CPUs a list names: `0-3,8` are 5, an empty one (a node of memory alone) 0. Raises ValueError for another shape."""
    count = 0
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count
