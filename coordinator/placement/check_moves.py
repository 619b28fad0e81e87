"""An independent check of advised moves, from hosts and forecast alone. Shares no code with instance or solvers, on purpose.

Plain loops over plain numbers; the host's spread is the true root of summed variances, not the solvers' tangent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from coordinator.model import ForecastBlock, HostState, Move, VmState

STEPS = 12
CPU, MEMORY, RX, TX = 0, 1, 3, 4  # resource indices, restated here so that a mistake elsewhere cannot hide


def check_moves(hosts: Sequence[HostState], forecast: ForecastBlock, moves: Sequence[Move], *, z: float) -> tuple[str, ...]:
    """Everything wrong with these moves, one line each; empty = they may be shown.

    Checked: each VM exists, runs on `from_host`, may migrate and moves once; targets are known, alive and another host; promised CPU and
    memory fit the commit limits of every host that receives; the true overload (unweighted) does not grow.
    """
    problems: list[str] = []
    by_id = {host.host_id: host for host in hosts}
    residents: dict[str, dict[str, VmState]] = {h.host_id: {vm.domain.vm_id: vm for vm in h.vms if vm.domain.running} for h in hosts}
    before = sum(true_overload(host, list(residents[host.host_id].values()), forecast, z) for host in hosts)
    moved: set[str] = set()
    receiving: set[str] = set()
    for move in moves:
        vm = residents.get(move.from_host, {}).get(move.vm_id)
        target = by_id.get(move.to_host)
        if vm is None or move.vm_id in moved:
            problems.append(f"{move.vm_id}: not on {move.from_host}, or moved twice")
            continue
        if target is None or not target.alive or not by_id[move.from_host].alive or move.to_host == move.from_host:
            problems.append(f"{move.vm_id}: {move.to_host} cannot be a target")
            continue
        if vm.domain.capabilities.migrate is not None or vm.domain.policy.excluded:
            problems.append(f"{move.vm_id}: may not be moved")
        moved.add(move.vm_id)
        receiving.add(move.to_host)
        residents[move.to_host][move.vm_id] = residents[move.from_host].pop(move.vm_id)
    for host_id in sorted(receiving):
        capacity = by_id[host_id].capacity
        for name, limit, r in (("CPU", capacity.cpu_commit_millicores, CPU), ("memory", capacity.memory_commit_bytes, MEMORY)):
            after = sum(promise(vm, r) for vm in residents[host_id].values())
            now = sum(promise(vm, r) for vm in by_id[host_id].vms if vm.domain.running)
            if after > max(limit, now):
                problems.append(f"{host_id}: {name} promised {after:.0f} of {limit}")
    total = sum(true_overload(host, list(residents[host.host_id].values()), forecast, z) for host in hosts)
    if total > before + 1e-9:
        problems.append(f"overload grows from {before:.6f} to {total:.6f}")
    return tuple(problems)


def promise(vm: VmState, r: int) -> float:
    """What a VM takes of the host's CPU or memory promise; unknown = its maximum."""
    if r == MEMORY:
        memory = vm.allocation.memory_bytes
        return float(vm.domain.memory_max_bytes if memory is None else memory)
    quota = vm.allocation.cpu_quota_millicores
    if quota is None:
        own = vm.domain.policy.cpu_ceiling_millicores
        count = vm.domain.vcpus_max
        if vm.domain.capabilities.vcpu_hot_add is not None and vm.allocation.vcpus is not None:
            count = vm.allocation.vcpus
        return float(min(1000 * count, 1000 * count if own is None else own))
    count = vm.domain.vcpus_max if vm.allocation.vcpus is None else vm.allocation.vcpus
    return 1000.0 * count if quota == -1 else float(quota)


def true_overload(host: HostState, vms: Sequence[VmState], forecast: ForecastBlock, z: float) -> float:
    """Sum over buckets and resources of what the load passes the capacity by, as shares of the capacity. VMs without a forecast
    add nothing: they cannot be moved, so they do not change a comparison of before and after.
    """
    capacity = host.capacity
    limits = {
        CPU: max(0.0, capacity.cpu_millicores - host.cpu_overhead_millicores),
        MEMORY: float(capacity.memory_commit_bytes),
        RX: float(capacity.net_bits_per_s),
        TX: float(capacity.net_bits_per_s),
    }
    rows = {vm_id: i for i, vm_id in enumerate(forecast.vm_ids)}
    known = [rows[vm.domain.vm_id] for vm in vms if vm.domain.vm_id in rows]
    total = 0.0
    for r, limit in limits.items():
        for b in range(STEPS):
            cells = [(float(forecast.mean[i, r, b]), float(forecast.stddev[i, r, b])) for i in known]
            cells = [(m, s) for m, s in cells if math.isfinite(m) and math.isfinite(s)]
            load = sum(m for m, _ in cells) + z * math.sqrt(sum(s * s for _, s in cells))
            if load > limit:
                total += (load - limit) / max(limit, 1.0)
    return total
