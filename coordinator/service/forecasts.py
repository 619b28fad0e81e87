"""From the forecast arrays of the decision cycle to the API's ForecastView. Pure.

NaN (unknown) becomes None; levels, order and units stay those of coordinator.model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np

from coordinator.forecast.aggregate import AggregateForecast
from coordinator.model import ForecastBlock, NoForecast
from shared.units import BUCKET_S, HORIZON_STEPS, RESOURCES

Resource = Literal["cpu_millicores", "memory_bytes", "disk_bytes_per_s", "net_rx_bits_per_s", "net_tx_bits_per_s"]


class ForecastRow(msgspec.Struct, frozen=True, kw_only=True):
    """One 5-minute step: bucket mean, and the largest 5-second demand from now to this step's end (`peak_quantiles`)."""

    start_s: int
    mean: float | None
    stddev: float | None
    quantiles: tuple[float | None, ...]  # in the order of ForecastView.levels
    peak_quantiles: tuple[float | None, ...]


class ResourceForecast(msgspec.Struct, frozen=True, kw_only=True):
    """The coming steps of one resource."""

    resource: Resource
    model: str | None
    reason: str | None
    coverage: float | None
    rows: tuple[ForecastRow, ...]


class ForecastView(msgspec.Struct, frozen=True, kw_only=True):
    """predict_load: what one VM will need. Rows are 300 s long and begin at `issued_s`."""

    vm_id: str
    issued_s: int | None  # None = no forecast was made yet; every `rows` is empty then
    horizon_minutes: int
    levels: tuple[float, ...]
    resources: tuple[ResourceForecast, ...]


def forecast_view(block: ForecastBlock, vm_id: str, horizon_minutes: int) -> ForecastView:
    """The first ceil(horizon_minutes / 5) steps of one VM; ValueError when the block does not hold it. O(VMs) for the search."""
    at = block.vm_ids.index(vm_id)
    steps = min(HORIZON_STEPS, math.ceil(horizon_minutes * 60 / BUCKET_S))
    return ForecastView(
        vm_id=vm_id,
        issued_s=block.issued_s,
        horizon_minutes=horizon_minutes,
        levels=block.levels,
        resources=tuple(_resource(block, at, r, steps) for r in range(len(RESOURCES))),
    )


def no_forecast_view(vm_id: str, horizon_minutes: int, levels: tuple[float, ...]) -> ForecastView:
    """For a VM that no forecast holds yet: every resource without rows, cold_start as the reason."""
    reason = reason_name(NoForecast.COLD_START)
    empty = tuple(ResourceForecast(resource=name, model=None, reason=reason, coverage=None, rows=()) for name in RESOURCES)
    return ForecastView(vm_id=vm_id, issued_s=None, horizon_minutes=horizon_minutes, levels=levels, resources=empty)


def reason_name(reason: int) -> str | None:
    """A NoForecast as the API spells it: None, cold_start, all_unknown, gap, out_of_calibration."""
    return None if reason == NoForecast.OK else NoForecast(reason).name.lower()


def model_name(block: ForecastBlock, at: int, resource: int) -> str | None:
    """The model with the largest weight for VM `at`; None where the series has none of its own (out of calibration it still has)."""
    modelled = block.reason[at, resource] in (NoForecast.OK, NoForecast.OUT_OF_CALIBRATION)
    index = int(block.model[at, resource])
    return block.models[index] if modelled and 0 <= index < len(block.models) else None


def known(value: float) -> float | None:
    """None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def forecast_rows(block: ForecastBlock | AggregateForecast, at: int, r: int, steps: int) -> tuple[ForecastRow, ...]:
    """The first `steps` of one resource of a VM or group."""
    return tuple(
        ForecastRow(
            start_s=block.issued_s + BUCKET_S * step,
            mean=known(block.mean[at, r, step]),
            stddev=known(block.stddev[at, r, step]),
            quantiles=all_known(block.quantiles[at, r, step]),
            peak_quantiles=all_known(block.peak_quantiles[at, r, step]),
        )
        for step in range(steps)
    )


def _resource(block: ForecastBlock, at: int, r: int, steps: int) -> ResourceForecast:
    return ResourceForecast(
        resource=RESOURCES[r],
        model=model_name(block, at, r),
        reason=reason_name(int(block.reason[at, r])),
        coverage=known(block.coverage[at, r]),
        rows=forecast_rows(block, at, r, steps),
    )


def all_known(values: Iterable[np.float32]) -> tuple[float | None, ...]:
    """As `known`, of each."""
    return tuple(known(float(value)) for value in values)
