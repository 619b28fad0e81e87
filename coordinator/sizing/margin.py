"""What each host must carry, as one sum: mean + z * root(variance) per resource and step, not a sum of peaks.

The variance of the sum holds the covariances of VMs that peak together: where sums are forecast as sums (coordinator/forecast/aggregate),
their mean and deviation are taken, which were learned from the sum's own errors; elsewhere variances add as those of independent VMs, and
each client's VMs add what `rho` says of them. Worked: ten VMs of 1000 ± 300 millicores: peaks at two deviations sum to 16,000; as
independent VMs they need 10,000 + 2 x 949 = 11,900; if they all peak together, 16,000 again.
A VM without a usable forecast counts with what it was promised, without spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.aggregate import AggregateForecast
from coordinator.forecast.aggregate.answer import sums_of
from coordinator.model import F64, N_RESOURCES, ForecastBlock, HostState, NoForecast, VmState
from coordinator.sizing.ahead import rows_of
from coordinator.sizing.levers import physical_limits, promised
from coordinator.sizing.target import UNUSABLE
from shared.units import HORIZON_STEPS


@dataclass(frozen=True, kw_only=True)
class HostLoads:
    """Hosts in the order given; arrays [h, r, 12] in the unit of the resource. Disk is NaN where nothing is known of a host's disks."""

    host_ids: tuple[str, ...]
    mean: F64
    stddev: F64
    capacity: F64  # [h, r] what the hardware has for VMs
    learned: F64  # [h, r] 1 where the deviation is that of the sum itself
    vms: tuple[VmState, ...]  # running, host by host
    owner: NDArray[np.int64]  # [v] index of the host
    vm_mean: F64  # [v, r, 12]
    vm_variance: F64

    def upper(self, z: float) -> F64:
        """The margin's upper end, [h, r, 12]."""
        return self.mean + z * self.stddev


def host_loads(hosts: Sequence[HostState], forecast: ForecastBlock, aggregates: AggregateForecast | None, rho: float = 0.0) -> HostLoads:
    """Of alive hosts' running VMs. `aggregates` of another moment than the forecast are left out.

    `rho`: correlation within a client's VMs on one host, 0..1, where the sums themselves are not forecast.
    """
    placed = [(h, vm) for h, host in enumerate(hosts) for vm in host.vms if vm.domain.running]
    vms, owner = tuple(vm for _, vm in placed), np.array([h for h, _ in placed], np.int64)
    mean, variance = vm_moments(vms, forecast)
    total, spread = np.zeros((len(hosts), N_RESOURCES, HORIZON_STEPS)), np.zeros((len(hosts), N_RESOURCES, HORIZON_STEPS))
    np.add.at(total, owner, mean)
    np.add.at(spread, owner, variance)
    if rho > 0.0:
        spread += rho * together(len(hosts), vms, owner, variance)
    stddev = np.sqrt(np.maximum(spread, 0.0))
    learned = np.zeros((len(hosts), N_RESOURCES))
    if aggregates is not None and aggregates.issued_s == forecast.issued_s:
        take_sums(hosts, aggregates, total, stddev, learned)
    capacity = np.array([physical_limits(host) for host in hosts]).reshape(len(hosts), N_RESOURCES)
    return HostLoads(
        host_ids=tuple(host.host_id for host in hosts),
        mean=total,
        stddev=stddev,
        capacity=capacity,
        learned=learned,
        vms=vms,
        owner=owner,
        vm_mean=mean,
        vm_variance=variance,
    )


def vm_moments(vms: Sequence[VmState], forecast: ForecastBlock) -> tuple[F64, F64]:
    """(mean, variance) [v, r, 12] of these VMs."""
    rows = rows_of(forecast.vm_ids)
    at = np.array([rows.get(vm.domain.vm_id, -1) for vm in vms], np.int64)
    if not len(vms):
        return np.zeros((0, N_RESOURCES, HORIZON_STEPS)), np.zeros((0, N_RESOURCES, HORIZON_STEPS))
    mean, variance = forecast.mean[at].astype(np.float64), forecast.stddev[at].astype(np.float64) ** 2
    reason = np.where((at < 0)[:, None], int(NoForecast.ALL_UNKNOWN), forecast.reason[at])
    blind = np.isin(reason, [int(code) for code in UNUSABLE - {NoForecast.OUT_OF_CALIBRATION}])
    blind |= ~np.isfinite(mean).all(axis=2) | ~np.isfinite(variance).all(axis=2)
    for v, r in zip(*np.nonzero(blind), strict=True):
        held = promised(vms[v], int(r))
        mean[v, r], variance[v, r] = (held if np.isfinite(held) else 0.0), 0.0
    return mean, variance


def together(hosts: int, vms: Sequence[VmState], owner: NDArray[np.int64], variance: F64) -> F64:
    """What correlation 1 within each client would add to the hosts' variances: (sum of deviations)^2 - sum of variances, per client."""
    keys: dict[tuple[int, str], int] = {}
    clients = [vm.domain.policy.client for vm in vms]
    group = np.array([keys.setdefault((int(h), name), len(keys)) if name else -1 for h, name in zip(owner, clients, strict=True)], np.int64)
    added = np.zeros((hosts, *variance.shape[1:]))
    named = np.flatnonzero(group >= 0)
    if not len(named):
        return added
    deviations, alone = np.zeros((len(keys), *variance.shape[1:])), np.zeros((len(keys), *variance.shape[1:]))
    np.add.at(deviations, group[named], np.sqrt(variance[named]))
    np.add.at(alone, group[named], variance[named])
    np.add.at(added, np.array([h for h, _ in keys], np.int64), deviations**2 - alone)
    return added


def take_sums(hosts: Sequence[HostState], aggregates: AggregateForecast, mean: F64, stddev: F64, learned: F64) -> None:
    """Put the forecasts of the hosts' sums in the place of the sums of forecasts, where they hold every VM of the host."""
    sums = sums_of(aggregates, "host")
    known = aggregates.known[[i for i, key in enumerate(aggregates.groups) if key.kind == "host"]]
    row_of = {name: i for i, name in enumerate(sums.names)}
    for h, host in enumerate(hosts):
        i = row_of.get(host.host_id)
        if i is None:
            continue
        whole = (known[i] >= 1.0 - 1e-6) & np.isfinite(sums.mean[i]).all(axis=1) & np.isfinite(sums.stddev[i]).all(axis=1)
        mean[h, whole], stddev[h, whole] = sums.mean[i, whole], sums.stddev[i, whole]
        learned[h, whole] = 1.0
