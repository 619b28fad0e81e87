"""Who goes first while a host is contended: CPU shares, disk weights and network guarantees by priority. They take from nobody before.

CPU: from the host's margin on (sum of means and deviations of the sum, covariances included), not from a sum of peaks.
Disk: from the time on that tasks of the host spend waiting for disks. Nobody forecasts a disk's capacity, so this one looks at now.
Network: the floor that an owner set is guaranteed, and for high and critical VMs the forecast mean, as far as the uplink goes, higher
priorities first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.model import ForecastBlock, HostState, VmState
from coordinator.sizing.ahead import rows_of
from coordinator.sizing.levers import commit_limits, round_up
from coordinator.sizing.margin import HostLoads
from coordinator.sizing.policy import SizingPolicy
from shared.model import Priority
from shared.units import CPU, NET_TX


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What one VM should have; None = leave alone."""

    shares: int | None = None
    disk_weight: int | None = None
    tx_rate: int | None = None


NO_WEIGHTS = Weights()


def weights_of(
    host: HostState, vms: Sequence[VmState], forecast: ForecastBlock, loads: HostLoads, policy: SizingPolicy
) -> dict[str, Weights]:
    """vm_id -> weights. `loads`: of this host, among others."""
    cpu = contended(host, loads, policy)
    disk = host.io_pressure >= policy.disk_contended_at  # NaN compares false
    rates = guarantees(host, vms, forecast, policy) if contended(host, loads, policy, NET_TX) else {}
    found = {}
    for vm in vms:
        priority, can = int(vm.domain.policy.priority), vm.domain.capabilities
        found[vm.domain.vm_id] = Weights(
            shares=policy.shares[priority] if cpu and can.cpu_quota is None else None,
            disk_weight=policy.disk_weights[priority] if disk and can.disk_weight is None else None,
            tx_rate=rates.get(vm.domain.vm_id),
        )
    return found


def contended(host: HostState, loads: HostLoads, policy: SizingPolicy, r: int = CPU) -> bool:
    """True when the margin of the host's sum, within two steps, comes near what its hardware has. False where nothing is known."""
    if host.host_id not in loads.host_ids:
        return False
    h = loads.host_ids.index(host.host_id)
    load = float((loads.mean[h, r, :2] + policy.margin_z * loads.stddev[h, r, :2]).max())
    return load > policy.contended_at * float(loads.capacity[h, r])


def guarantees(host: HostState, vms: Sequence[VmState], forecast: ForecastBlock, policy: SizingPolicy) -> dict[str, int]:
    """vm_id -> bits/s guaranteed from the guest, in sum at most what the host may promise. VMs that cannot have one are left out."""
    rows = rows_of(forecast.vm_ids)
    left = commit_limits(host)[NET_TX]
    found = {}
    for vm in sorted(vms, key=lambda each: (-int(each.domain.policy.priority), each.domain.vm_id)):
        if vm.domain.capabilities.net_rate is not None:
            continue
        own, row = vm.domain.policy, rows.get(vm.domain.vm_id)
        expected = math.nan if row is None else float(np.max(forecast.mean[row, NET_TX, :2]))
        wanted = float(own.net_floor_bits_per_s or 0)
        if own.priority >= Priority.HIGH and math.isfinite(expected):
            wanted = max(wanted, expected)
        top = float(vm.domain.net_max_bits_per_s if own.net_ceiling_bits_per_s is None else own.net_ceiling_bits_per_s)
        rate = min(round_up(wanted, policy.granule[NET_TX]), top, left)
        found[vm.domain.vm_id] = int(rate)
        left -= rate
    return found
