"""Placement as the pools run it. Apart from the forecasts, whose workers need neither OR-tools nor what it imports (150 MiB)."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.model import ForecastBlock, HostState, Placement
from coordinator.placement.shards import solve_shard, split

__all__ = ["solve_shard", "solve_sharded", "split"]


def solve_sharded(hosts: Sequence[HostState], forecast: ForecastBlock, seed: int, deadline_s: float) -> tuple[Placement, ...]:
    """Every shard one after another, the deadline shared evenly."""
    shards = split(hosts, seed)
    each = deadline_s / max(1, len(shards))
    return tuple(solve_shard(part, forecast, seed, each, i) for i, part in enumerate(shards))
