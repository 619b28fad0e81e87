"""What the forecast engine is to run: part of every worker's start, and of a bench's settings. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.forecast.challenged import Challenge
from coordinator.forecast.covariates import UTC_DAYS, LocalDays
from coordinator.forecast.network import MAX_EXAMPLES


@dataclass(frozen=True, kw_only=True)
class ForecastOptions:
    """What to run. `ring`: buckets of history kept (2,322 lets the weekly profile speak); `replay`: origins scored again on load.

    `examples`: what the network learns from in one training; the default takes about ten seconds of one core.
    `days`: the operator's zone and holidays, a covariate of the trees.
    `challengers`: those listened to (see challengers/registry.py); they speak where they have shown to be better than the pool.
    `outlook`: also look six hours ahead, each half hour.
    `only`: listen to one member alone (the last value where it is silent), for comparisons.
    """

    boosting: bool = True
    network: bool = True
    outlook: bool = True
    ring: int = 2322
    replay: int = 324  # one day and three hours: yesterday at this time is among them
    outlook_replay: int = 60  # half hours: a day and a quarter, as an outlook learns its last block six hours late
    examples: int = MAX_EXAMPLES
    challengers: tuple[str, ...] = ()
    only: str | None = None
    days: LocalDays = UTC_DAYS

    def __post_init__(self) -> None:
        Challenge(self.challengers)  # raises for a name that is not registered
        for name, value, low, high in (
            ("ring", self.ring, 48, 20_000),
            ("replay", self.replay, 0, 5_000),
            ("outlook_replay", self.outlook_replay, 0, 1000),
            ("examples", self.examples, 1000, 5_000_000),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} {value}: allowed {low} to {high}")
