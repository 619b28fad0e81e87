"""A shard of hosts and the forecast as arrays: what every solver works on.

Axes: v = VM, h = host, b = 12 buckets, d = dimension (CPU, memory, net rx, net tx). A host is overloaded in a bucket by what
mean + z * root(variance), summed over its VMs (variances add, as if independent), passes its capacity. That root is concave, so it is
replaced by its tangent at S, the shard's typical host: root(X) <= S / 2 + X / (2 S). The linear load so errs on the safe side only.

One unit for gains and costs: percent of the largest host, times minutes. Ten percent too little for one bucket = 50.
Solvers see integers: loads in 1/10,000 of the largest host, so one load unit for one bucket is 0.05 percent-minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64, ForecastBlock, HostState, VmState
from coordinator.sizing.levers import promised
from shared.model import Priority
from shared.units import BUCKET_S, CPU, HORIZON_STEPS, MEMORY, NET_RX, NET_TX

I64 = NDArray[np.int64]
DIMENSIONS: Final = (CPU, MEMORY, NET_RX, NET_TX)
GRANTED: Final = (CPU, MEMORY)  # promises that a target host must be able to keep
PARTS: Final = 10_000  # load units in the largest host
PERCENT_MINUTES: Final = 100.0 * BUCKET_S / 60 / PARTS  # of one load unit for one bucket


@dataclass(frozen=True, kw_only=True)
class PlacementPolicy:
    """What overload and moves weigh. Costs in percent-minutes."""

    z: float = 1.5  # stddevs of the host's sum kept free
    tiers: tuple[tuple[Priority, int], ...] = ((Priority.LOW, 1), (Priority.HIGH, 3))  # overload by VMs from this priority on
    move_base: float = 20.0  # of any move: risk, attention, cold caches
    move_minute: float = 30.0  # per minute of migration, times the priority's weight
    priority_weight: tuple[float, float, float, float] = (1.0, 1.5, 2.0, 4.0)
    migration_bytes_per_s: float = 125e6  # 1 Gbit/s
    dirty_bytes_per_core_s: float = 20e6  # assumed until the dirty rate is measured
    converges_below: float = 0.8  # dirty rate over bandwidth beyond which a live migration does not end
    cooling: frozenset[str] = field(default_factory=frozenset)  # VMs moved too recently


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One shard. `pinned` says why a VM stays where it is; empty = it may move."""

    host_ids: tuple[str, ...]
    vm_ids: tuple[str, ...]
    home: I64  # [v] index of the host now
    pinned: tuple[str, ...]  # [v]
    tier: NDArray[np.bool_]  # [t, v] member of the tier
    tier_weight: tuple[int, ...]
    load: I64  # [v, b, d] linear, with its share of the margin
    room: I64  # [h, b, d] capacity less the margin's constant part
    grant: I64  # [v, g] promises in force
    commit: I64  # [h, g] most that may be promised, at least what is promised now
    move_cost: I64  # [v] in load units
    seconds: F64  # [v] expected length of a migration

    @property
    def movable(self) -> list[int]:
        return [v for v, why in enumerate(self.pinned) if not why]


def build_instance(hosts: Sequence[HostState], forecast: ForecastBlock, policy: PlacementPolicy) -> Instance:
    """Arrays of these hosts (all alive). VMs without a usable forecast count with what they were promised, and stay."""
    rows = {vm_id: i for i, vm_id in enumerate(forecast.vm_ids)}
    placed = [(h, vm) for h, host in enumerate(hosts) for vm in host.vms if vm.domain.running]
    vms = [vm for _, vm in placed]
    mean = np.zeros((len(vms), HORIZON_STEPS, len(DIMENSIONS)))
    variance = np.zeros_like(mean)
    pinned, seconds = [], np.zeros(len(vms))
    for v, vm in enumerate(vms):
        known = fill(mean[v], variance[v], vm, rows.get(vm.domain.vm_id), forecast)
        seconds[v] = migration_s(vm, mean[v], policy)
        pinned.append(why_pinned(vm, known, seconds[v], policy))
    home = np.array([h for h, _ in placed], np.int64)
    capacity = np.array([host_capacity(host) for host in hosts]).reshape(len(hosts), len(DIMENSIONS))
    unit = np.maximum(capacity.max(axis=0), 1.0) / PARTS
    # S of the docstring: root of the mean over hosts of the summed variances, per bucket and dimension.
    typical = np.sqrt(variance.sum(axis=0) / len(hosts))
    slope = np.divide(policy.z, 2.0 * typical, out=np.zeros_like(typical), where=typical > 0.0)
    copied = np.where(np.isfinite(seconds), seconds, 0.0)
    weight = np.array([policy.priority_weight[vm.domain.policy.priority] for vm in vms])
    grant = np.ceil(np.array([[promised(vm, g) for g in GRANTED] for vm in vms]).reshape(len(vms), len(GRANTED))).astype(np.int64)
    limits = np.array([(host.capacity.cpu_commit_millicores, host.capacity.memory_commit_bytes) for host in hosts], np.int64)
    now = np.zeros_like(limits)
    np.add.at(now, home, grant)
    members = [np.array([vm.domain.policy.priority >= least for vm in vms], bool) for least, _ in policy.tiers]
    used = [t for t, member in enumerate(members) if member.any()] or [0]
    return Instance(
        host_ids=tuple(host.host_id for host in hosts),
        vm_ids=tuple(vm.domain.vm_id for vm in vms),
        home=home,
        pinned=tuple(pinned),
        tier=np.stack([members[t] for t in used]),
        tier_weight=tuple(policy.tiers[t][1] for t in used),
        load=np.ceil((mean + slope * variance) / unit).astype(np.int64),
        room=np.floor((capacity[:, None, :] - policy.z * typical / 2.0) / unit).astype(np.int64),
        grant=grant,
        commit=np.maximum(limits, now),
        move_cost=np.ceil((policy.move_base + policy.move_minute * weight * copied / 60.0) / PERCENT_MINUTES).astype(np.int64),
        seconds=seconds,
    )


def host_capacity(host: HostState) -> tuple[float, ...]:
    """Physical capacity by dimension, less the host's own CPU use; memory as far as it may be promised."""
    capacity = host.capacity
    cpu = max(0.0, capacity.cpu_millicores - host.cpu_overhead_millicores)
    return (cpu, float(capacity.memory_commit_bytes), float(capacity.net_bits_per_s), float(capacity.net_bits_per_s))


def fill(mean: F64, variance: F64, vm: VmState, row: int | None, forecast: ForecastBlock) -> bool:
    """Write one VM's demand [b, d]; False when any of it had to be taken from its promises."""
    known = True
    for d, r in enumerate(DIMENSIONS):
        if row is not None and np.isfinite(forecast.mean[row, r]).all() and np.isfinite(forecast.stddev[row, r]).all():
            mean[:, d] = forecast.mean[row, r]
            variance[:, d] = forecast.stddev[row, r].astype(np.float64) ** 2
        else:
            mean[:, d] = promised(vm, r)
            known = False
    return known


def migration_s(vm: VmState, mean: F64, policy: PlacementPolicy) -> float:
    """Time to copy the memory in the quietest bucket while the guest dirties it; inf when it would not converge."""
    dirty = policy.dirty_bytes_per_core_s * float(mean[:, 0].min()) / 1000.0
    if dirty >= policy.converges_below * policy.migration_bytes_per_s:
        return float("inf")
    return promised(vm, MEMORY) / (policy.migration_bytes_per_s - dirty)


def why_pinned(vm: VmState, known: bool, seconds: float, policy: PlacementPolicy) -> str:
    """Why this VM stays where it is, "" = it may move."""
    if vm.domain.capabilities.migrate is not None:
        return vm.domain.capabilities.migrate or "cannot migrate"
    if vm.domain.policy.excluded:
        return "excluded by policy"
    if vm.domain.vm_id in policy.cooling:
        return "moved recently"
    if not known:
        return "no forecast"
    return "" if np.isfinite(seconds) else "dirties memory faster than it can be copied"


def loads(instance: Instance, place: I64) -> I64:
    """Load per tier and host [t, h, b, d] of an assignment [v]."""
    total = np.zeros((len(instance.tier), len(instance.host_ids), *instance.load.shape[1:]), np.int64)
    for t, member in enumerate(instance.tier):
        np.add.at(total[t], place[member], instance.load[member])
    return total


def overload(instance: Instance, place: I64) -> int:
    """Weighted overload of an assignment in load units over all buckets."""
    over = np.maximum(loads(instance, place) - instance.room, 0)
    return int(np.tensordot(np.array(instance.tier_weight), over.sum(axis=(1, 2, 3)), axes=1))


def keeps_promises(instance: Instance, place: I64) -> bool:
    """True when no host would have to promise more than it may."""
    total = np.zeros_like(instance.commit)
    np.add.at(total, place, instance.grant)
    return bool((total <= instance.commit).all())


def cost_of(instance: Instance, place: I64) -> int:
    """Overload plus moves."""
    return overload(instance, place) + int(instance.move_cost[place != instance.home].sum())
