"""Which VMs fit into one NUMA node of which hosts. Pure.

A VM that no node of its host holds whole has part of its memory behind the interconnect: it runs, but slower. So this is a price of a
(kind of VM, host), not a capacity: how a host's VMs share its nodes is the kernel's affair (automatic balancing), anew every second.
A host that tells of no nodes, or of one, costs nobody anything. Source: Documentation/admin-guide/mm/numaperf.rst.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64, HostState
from coordinator.placement.problem import Bool
from shared.model import HostCapacity
from shared.units import CPU, MEMORY

Nodes = tuple[tuple[float, float], ...]  # (memory in bytes, millicores) of each


def node_classes(promise: F64, hosts: Sequence[HostState]) -> tuple[NDArray[np.int64], Bool]:
    """(class [v], spans [class, h]) of VMs that take promise [v, r]: whether a VM of that class fits no single node of the host."""
    layouts = [nodes_of(host.capacity) for host in hosts]
    known = sorted(set(layouts))
    fits = np.ones((len(promise), len(known)), bool)
    for i, nodes in enumerate(known):
        if len(nodes) > 1:
            held = [(promise[:, MEMORY] <= memory) & (promise[:, CPU] <= cpu) for memory, cpu in nodes]
            fits[:, i] = np.logical_or.reduce(held)
    classes, of_vm = np.unique(fits, axis=0, return_inverse=True)
    spans: Bool = ~classes[:, [known.index(nodes) for nodes in layouts]]
    return of_vm.ravel().astype(np.int64), spans


def nodes_of(capacity: HostCapacity) -> Nodes:
    """The nodes that have both memory and CPUs: a VM lives in no other."""
    pairs = zip(capacity.numa_memory_bytes, capacity.numa_cpus, strict=False)
    return tuple(sorted((float(memory), 1000.0 * cpus) for memory, cpus in pairs if memory and cpus))
