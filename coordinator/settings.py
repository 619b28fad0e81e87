"""Configuration to the parameters of the stages. Pure."""

from __future__ import annotations

import dataclasses

from coordinator.forecast.engine import ForecastOptions
from coordinator.sizing.policy import SizingPolicy
from shared.config import CoordinatorConfig, PriorityTable, SizingConfig


def sizing_policy(config: SizingConfig) -> SizingPolicy:
    """The sizing stack's policy. Raises ConfigError where a higher priority would get less than a lower one."""
    default = SizingPolicy()
    cpu, memory, disk, rx, tx = (config.price * each for each in default.price)
    size = _by_priority(config.size_quantile)
    low, normal, high, critical = (min(lower, top) for lower, top in zip(default.lower_quantile, size, strict=True))
    return dataclasses.replace(
        default,
        confidence_multiplier=_by_priority(config.confidence_multiplier),
        price=(cpu, memory, disk, rx, tx),
        reserve_share=config.reserve_permille / 1000,
        size_quantile=size,
        lower_quantile=(low, normal, high, critical),
        shrink_evidence=(config.shrink_evidence_buckets,) * 5,
        dead_band=(config.dead_band_permille / 1000,) * 5,
        turns=config.flap_reversals,
        turn_window_s=float(config.flap_window_s),
    )


def forecast_options(config: CoordinatorConfig) -> ForecastOptions:
    """The forecast engine's options."""
    return ForecastOptions(ring=max(48, config.cycle.history_buckets))


def _by_priority(table: PriorityTable) -> tuple[float, float, float, float]:
    return (table.low, table.normal, table.high, table.critical)
