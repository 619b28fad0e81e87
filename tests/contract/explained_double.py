"""An invented explanation of one resource's forecast, for doubles of the fleet."""

from __future__ import annotations

from coordinator.forecast.why import (
    BandWhy,
    CoverageWhy,
    LevelWhy,
    MemberWhy,
    NetworkWhy,
    PartWhy,
    ResourceWhy,
    StageWhy,
    TargetWhy,
)

PARTS = (("5-10", 10), ("15-30", 25), ("35-60", 50))


def resource_why(name: str, size: float, weight: float) -> ResourceWhy:
    """Three members in each part of the horizon, the second with `weight`."""

    def member(member: str, weight: float, error: float) -> MemberWhy:
        return MemberWhy(
            member=member,
            state="heard" if weight else "cut",
            weight=weight,
            forecast=(size, size),
            error=size * error,
            error_to_naive=error / 0.2,
            error_to_best=error / 0.1,
            evidence=48.0,
            error_at_this_hour=size * error,
            evidence_at_this_hour=3.0,
            fleet_expects=error / 0.15,
            score=error / 0.1,
        )

    parts = tuple(
        PartWhy(
            minutes=minutes,
            middle_minutes=middle,
            members=(member("naive", 0.0, 0.2), member("median_hour", weight, 0.1), member("boosting", 1.0 - weight, 0.11)),
            blended=(size, size),
            restart=None,
            leaves=NetworkWhy(weight=0.25, pool_loss=size * 0.1, network_loss=size * 0.11, evidence=96.0, fleet_expects=1.05),
            network=NetworkWhy(weight=0.6, pool_loss=size * 0.1, network_loss=size * 0.08, evidence=96.0, fleet_expects=0.9),
            bands=BandWhy(own_low=0.0, own_high=0.0, own_width=1.0, held_low=0.0, held_high=size * 0.01, held_width=1.02),
            stages=(StageWhy(stage="agreed", median=size, low=size * 0.8, high=size * 1.3),),
        )
        for minutes, middle in PARTS
    )
    return ResourceWhy(
        resource=name,
        reason=None,
        coverage=CoverageWhy(realised=0.79, evidence=60.0, meant=0.8),
        level=LevelWhy(since_s=None, level=size, before=None),
        newest_reading_age=0,
        gap_widening=1.0,
        capacity=None,
        targets=(TargetWhy(target="mean", parts=parts), TargetWhy(target="peak", parts=parts)),
    )
