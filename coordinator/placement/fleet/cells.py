"""What hosts can run short of, as the columns of a placement problem. Pure.

CPU, disk and the two directions of the network in 12 buckets each (one cell where no VM's forecast changes within the hour); memory in one
cell at each VM's highest bucket, for what a guest took it does not give back within minutes; and the promises in force (CPU quotas,
balloons), which a host's commit limits bound. Memory and promises are hard. Left out are cells that no host can run short of: even the
hungriest VMs that memory lets stand together would fit. CPU stays, the power curve reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from coordinator.model import F64, HostState
from coordinator.placement.fleet.fleet_problem import Cell
from coordinator.placement.fleet.guests import Guests
from coordinator.placement.fleet.site import HostTraits
from coordinator.placement.problem import I32, Bool
from shared.units import BUCKET_S, CPU, DISK, HORIZON_STEPS, MEMORY, NET_RX, NET_TX, RESOURCES

FLOWS: Final = (CPU, DISK, NET_RX, NET_TX)
BUCKET_MINUTES: Final = BUCKET_S / 60
HOUR_MINUTES: Final = BUCKET_MINUTES * HORIZON_STEPS


def host_room(hosts: Sequence[HostState], traits: Sequence[HostTraits]) -> F64:
    """What each host has [h, r] for demand; inf where nobody knows (disks that the site does not state, an uplink of 0)."""
    room = np.full((len(hosts), len(RESOURCES)), np.inf)
    for h, (host, trait) in enumerate(zip(hosts, traits, strict=False)):
        capacity = host.capacity
        room[h, CPU] = max(0.0, capacity.cpu_millicores - host.cpu_overhead_millicores)
        room[h, MEMORY] = capacity.memory_commit_bytes
        if capacity.net_bits_per_s:
            room[h, NET_RX] = room[h, NET_TX] = capacity.net_bits_per_s
        if trait.disk_bytes_per_s is not None:
            room[h, DISK] = trait.disk_bytes_per_s
    return room


def make_cells(
    guests: Guests, room: F64, hosts: Sequence[HostState], *, reserve: F64, home: I32, z: float
) -> tuple[tuple[Cell, ...], dict[str, Any]]:
    """(cells, the problem's arrays over them). reserve [h]: share of each host that demand is kept off."""
    cells: list[Cell] = []
    means: list[F64] = []
    variances: list[F64] = []
    limits: list[F64] = []

    def add(cell: Cell, mean: F64, variance: F64, limit: F64) -> None:
        cells.append(cell)
        means.append(mean)
        variances.append(variance)
        # an unknown capacity never binds: no assignment loads a host with more than everything
        limits.append(np.where(np.isfinite(limit), limit, 1.0 + mean.sum() + z * np.sqrt(variance).sum()))

    usable = room * (1.0 - reserve)[:, None]
    for r in FLOWS:
        mean, variance = guests.mean[:, r], guests.stddev[:, r] ** 2
        flat = (
            bool((np.ptp(mean, axis=1) <= 1e-9 * mean.max(axis=1)).all() and (np.ptp(variance, axis=1) <= 1e-9).all())
            if len(mean)
            else True
        )
        for b in range(1 if flat else HORIZON_STEPS):
            add(Cell(r, -1 if flat else b), mean[:, b], variance[:, b], usable[:, r])
    add(Cell(MEMORY), guests.mean[:, MEMORY].max(axis=1), guests.stddev[:, MEMORY].max(axis=1) ** 2, usable[:, MEMORY])
    nothing = np.zeros(guests.inside)
    commit = np.array([(host.capacity.cpu_commit_millicores, host.capacity.memory_commit_bytes) for host in hosts], np.float64)
    for i, r in enumerate((CPU, MEMORY)):
        add(Cell(r, promise=True), np.ceil(guests.promise[:, r]), nothing, commit[:, i])
    arrays = {"mean": np.stack(means, axis=1), "variance": np.stack(variances, axis=1), "capacity": np.stack(limits, axis=1)}
    kept = np.array([cell.resource == CPU and not cell.promise for cell in cells]) | can_bind(arrays, home, z)
    table = [cell for cell, keep in zip(cells, kept, strict=True) if keep]
    hard = np.array([cell.promise or cell.resource == MEMORY for cell in table], bool)
    return tuple(table), {
        **{name: np.ascontiguousarray(values[:, kept]) for name, values in arrays.items()},
        "hard": hard,
        "z": np.array([0.0 if cell.promise else z for cell in table]),
        "minutes": np.array([HOUR_MINUTES if cell.bucket < 0 else BUCKET_MINUTES for cell in table]),
        "step": np.array([cell.bucket for cell in table], np.int32),
        "cpu": np.array([cell.resource == CPU and not cell.promise for cell in table], bool),
    }


def can_bind(arrays: dict[str, F64], home: I32, z: float) -> Bool:
    """Cells [c] that some host could run short of, as far as promised memory (the last column) bounds who stands together.

    The most that any host can hold of a cell is a fractional knapsack: VMs by their need for each promised byte, until the bytes of the
    largest host are gone. Needs are taken with their whole margin, as if all deviations added up; hosts over their memory count as is.
    """
    need = arrays["mean"] + z * np.sqrt(arrays["variance"])
    capacity = arrays["capacity"]
    if not len(need):
        return np.ones(capacity.shape[1], bool)
    now = np.zeros_like(capacity)
    np.add.at(now, home, need)
    memory = np.maximum(need[:, -1], 1.0)
    largest = max(float(capacity[:, -1].max()), float(now[:, -1].max()))
    order = np.argsort(-(need / memory[:, None]), axis=0)
    taken = np.cumsum(memory[order], axis=0)
    share = np.clip((largest - (taken - memory[order])) / memory[order], 0.0, 1.0)
    most = (np.take_along_axis(need, order, axis=0) * share).sum(axis=0)
    found: Bool = most > capacity.min(axis=0)
    found[-1] = True
    return found
