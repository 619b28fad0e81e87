"""Metrics of what changes once a decision cycle, and costs more than a look."""

from __future__ import annotations

from coordinator.cycle import DecisionCycle
from coordinator.model import NoForecast
from shared.metrics import Metrics
from shared.units import RESOURCES


def publish_cycle(cycle: DecisionCycle, metrics: Metrics) -> None:
    """Forecast quality, calibration, shortages ahead and budgets, as of the newest cycle."""
    accuracy = cycle.ledger.errors.accuracy
    fleet, one_step = accuracy.fleet("day"), accuracy.by_horizon("day").coverage_80[0]
    forecast = cycle.forecast
    for r, resource in enumerate(RESOURCES):
        metrics.set("tidegate_forecast_pinball_ratio", float(fleet.to_naive[r]), resource=resource)
        metrics.set("tidegate_forecast_coverage_ratio", float(one_step[r]), resource=resource)
        for band, share in (("80", fleet.coverage_80), ("95", fleet.coverage_95)):
            metrics.set("tidegate_forecast_band_coverage_ratio", float(share[r]), resource=resource, band=band)
        metrics.set("tidegate_forecast_above_upper_ratio", float(fleet.above[r]), resource=resource)
        if forecast is not None:
            off = int((forecast.reason[:, r] == NoForecast.OUT_OF_CALIBRATION).sum())
            metrics.set("tidegate_vms_out_of_calibration", off, resource=resource)

    foresight = cycle.foresight
    if foresight is None:
        return
    for r, resource in enumerate(RESOURCES):
        short = sum(any(part.resource == r for part in parts) for parts in foresight.scarce.values())
        metrics.set("tidegate_hosts_short", short, resource=resource)
    for cause in ("ceiling", "host", "fleet"):
        hurt = {each.client for each in foresight.infeasible if each.cause == cause}
        metrics.set("tidegate_objectives_infeasible", len(hurt), cause=cause)
    burning = sum(each.burn > 1.0 for each in cycle.ledger.budgets.standings())
    metrics.set("tidegate_clients_burning", burning)
