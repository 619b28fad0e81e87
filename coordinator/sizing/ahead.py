"""What the forecast says of one host, read once for all its VMs: mean and stddev at the trigger's bucket, peaks at the horizon's end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from coordinator.model import F64, N_RESOURCES, ForecastBlock, VmState
from coordinator.sizing.levers import KIND, NAN, lead_time_s
from coordinator.sizing.target import interpolate, last_step, raised
from coordinator.sizing.trigger import bucket_that_matters
from coordinator.sizing.weigh import Terms


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The figures of the forecast that matter for one host. Arrays [v, r] in the order of the host's VMs; NaN where there is none."""

    mean: F64
    stddev: F64
    lower: F64
    size: F64
    quantile: F64  # level of `size`
    steps: tuple[int, ...]  # [r] how many steps the peak covers
    reason: F64  # NoForecast, as float so that a missing VM is NaN
    peaks: F64  # [v, r, q] all quantiles of the same peaks
    levels: tuple[float, ...]  # [q]
    hour: F64  # what a turning shrink must leave for the next hour
    price: tuple[float, ...] = (NAN,) * N_RESOURCES  # [r] at which the sizes were bought; NaN = fixed quantiles
    short: tuple[bool, ...] = (False,) * N_RESOURCES  # [r] the host cannot hold them
    worth: tuple[float, ...] = (0.0,) * N_RESOURCES  # [r] then: money an hour that one grain more of the host would save


@lru_cache(maxsize=4)  # all hosts of a cycle are sized from one block
def rows_of(vm_ids: tuple[str, ...]) -> Mapping[str, int]:
    """vm_id -> row of a forecast block."""
    return {vm_id: i for i, vm_id in enumerate(vm_ids)}


def look_ahead(vms: list[VmState], forecast: ForecastBlock, terms: Terms) -> Outlook:
    """Read the block once for all VMs of the host: mean and stddev at the trigger's bucket, peak quantiles at the horizon's end."""
    policy = terms.policy
    rows = rows_of(forecast.vm_ids)
    found = np.array([rows.get(vm.domain.vm_id, -1) for vm in vms], np.int64)
    missing = found < 0
    shape = (len(vms), N_RESOURCES)
    if missing.all():
        blank = np.full(shape, np.nan)
        none = np.full((*shape, len(forecast.levels)), np.nan)
        return Outlook(
            mean=blank,
            stddev=blank,
            lower=blank,
            size=blank,
            quantile=blank,
            reason=blank,
            peaks=none,
            steps=(0,) * N_RESOURCES,
            levels=forecast.levels,
            hour=blank,
        )
    leads = [lead_time_s(KIND[r], policy, terms.measured_lead_s) if r in KIND else 0.0 for r in range(N_RESOURCES)]
    axis = np.arange(N_RESOURCES)
    near = np.array([bucket_that_matters(lead) for lead in leads])
    far = np.array([last_step(policy, r, leads[r]) for r in range(N_RESOURCES)])
    top = forecast.levels[-1]
    size_level = np.empty(shape)
    lower_level = np.empty(shape)
    for i, vm in enumerate(vms):
        p, burn = int(vm.domain.policy.priority), terms.burn_rate.get(vm.domain.vm_id, NAN)
        own = vm.domain.policy.size_quantile_permille
        for r in range(N_RESOURCES):
            wanted = policy.size_quantile[p] + policy.quantile_offset[r] if own is None else own / 1000
            size_level[i, r] = raised(min(top, wanted), burn, policy, top)
            lower_level[i, r] = min(size_level[i, r], raised(policy.lower_quantile[p] + policy.quantile_offset[r], burn, policy, top))
    index = found[:, None]
    peaks = forecast.peak_quantiles[index, axis, far].astype(np.float64)
    size, lower = interpolate(peaks, forecast.levels, size_level), interpolate(peaks, forecast.levels, lower_level)
    mean = forecast.mean[index, axis, near].astype(np.float64)
    stddev = forecast.stddev[index, axis, near].astype(np.float64)
    reason = forecast.reason[index, axis].astype(np.float64)
    farthest = forecast.peak_quantiles[index, axis, -1].astype(np.float64)
    hour = interpolate(farthest, forecast.levels, np.full(shape, policy.turn_quantile))
    for array in (mean, stddev, lower, size, reason, peaks, hour):
        array[missing] = np.nan
    steps = tuple(int(step) + 1 for step in far)
    return Outlook(
        mean=mean,
        stddev=stddev,
        lower=lower,
        size=size,
        quantile=size_level,
        reason=reason,
        peaks=peaks,
        steps=steps,
        levels=forecast.levels,
        hour=hour,
    )
