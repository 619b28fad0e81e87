"""What an explanation of one VM's newest forecast holds: records alone, as plain as the API shows them.

Numbers are in the unit that the resource's name ends with unless said otherwise; times are Unix seconds. Invariant: unknown is None, so
that every record survives JSON. Who fills them: explain.py (the engine's part), cold_start.py (borrowed forecasts), events/shard.py.
"""

from __future__ import annotations

from typing import Literal

import msgspec

MemberState = Literal["heard", "cut", "silent", "unscored"]
Target = Literal["mean", "peak"]
StageName = Literal["blended", "calibrated", "moved", "leaves", "mixed", "hour", "held", "agreed"]


class MemberWhy(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the pool in one part of the horizon.

    heard: it has a weight. cut: its `score` is worse than 1.5 times the best one's. silent: it can't speak of this series yet (no earlier
    season, no model trained). unscored: no forecast of it was ever scored in this fleet, while others' were.
    """

    member: str
    state: MemberState
    weight: float  # 0..1; those of one part sum to 1
    forecast: tuple[float | None, ...]  # of each step of the part
    error: float | None  # mean absolute error of its own forecasts of this series of late (half-life four hours)
    error_to_naive: float | None  # over that of the pool's first member: the last value, of peaks the usual peak over the mean
    error_to_best: float | None  # over the smallest among the members
    evidence: float  # buckets that it was scored on, older ones faded
    error_at_this_hour: float | None  # the same at this half hour and the next of earlier days
    evidence_at_this_hour: float
    fleet_expects: float | None  # its error over the members' mean, as the fleet of VMs has it: what a newcomer is judged by
    score: float | None  # error that its weight follows, over the best one's: own evidence drawn towards the fleet's


class NetworkWhy(msgspec.Struct, frozen=True, kw_only=True):
    """The pool's answer against the global network's in one part of the horizon."""

    weight: float  # of the network, mean over the levels where each has its own; the pool has the rest
    pool_loss: float | None  # mean pinball loss of late (half-life a day); None = not scored, or a new network came since
    network_loss: float | None
    evidence: float  # buckets that both were scored on
    fleet_expects: float  # the network's loss over the pool's in the fleet


class RestartWhy(msgspec.Struct, frozen=True, kw_only=True):
    """The pool's answer was moved towards a new level."""

    moved: float | None  # by so much, at the part's middle step
    holds: float | None  # probability that the level holds until then, 0..1
    paid: float  # share of the move that has paid on this fleet, 0..1


class StageWhy(msgspec.Struct, frozen=True, kw_only=True):
    """What stood after one stage at the part's middle step: median and the 80 % band (none of a point)."""

    stage: StageName
    median: float | None
    low: float | None
    high: float | None


class BandWhy(msgspec.Struct, frozen=True, kw_only=True):
    """How the 80 % band was corrected at the part's middle step, because of how it held of late."""

    own_low: float | None  # what the VM's own correction adds to the 10 % quantile
    own_high: float | None  # ... to the 90 % quantile
    own_width: float | None  # width with it over width without it
    held_low: float | None  # the same of the last correction, the VM's and the fleet's together
    held_high: float | None
    held_width: float | None


class PartWhy(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the horizon."""

    minutes: str  # "5-10", "15-30", "35-60"
    middle_minutes: int  # end of the step that stands for the part
    members: tuple[MemberWhy, ...]
    blended: tuple[float | None, ...]  # the pool's point forecast of each step: weights times forecasts
    restart: RestartWhy | None
    leaves: NetworkWhy | None  # LightGBM's own quantiles beside the pool's, in the network's place; None = it does not speak
    network: NetworkWhy | None  # beside both; None = no network speaks
    bands: BandWhy
    stages: tuple[StageWhy, ...]


class HourSourceWhy(msgspec.Struct, frozen=True, kw_only=True):
    """One of those who answer what the peak of the whole hour will be. Its weight is the fleet's, for each level apart."""

    source: str
    median: float | None  # None = it has no answer for this VM
    high: float | None  # the 95 % quantile
    median_weight: float
    high_weight: float


class TargetWhy(msgspec.Struct, frozen=True, kw_only=True):
    """Of the bucket mean, or of the largest 5-second demand so far."""

    target: Target
    parts: tuple[PartWhy, ...]
    hour: tuple[HourSourceWhy, ...] = ()  # of the peak alone; empty while the mixture stands alone


class ReasonWhy(msgspec.Struct, frozen=True, kw_only=True):
    """Why a series has no model of its own, in words."""

    code: str  # as in `reason` everywhere
    meaning: str
    since_s: int | None  # None = not known
    readings: int | None  # in the newest day
    ends: str  # what would end it
    readings_needed: int | None  # more readings until then, at least


class LevelWhy(msgspec.Struct, frozen=True, kw_only=True):
    """The level that demand has now, and the change that led to it."""

    since_s: int | None  # first bucket of it; None = no change of level was ever seen
    level: float | None
    before: float | None  # None = not known any more


class CoverageWhy(msgspec.Struct, frozen=True, kw_only=True):
    """How often the central 80 % band held of late."""

    realised: float | None
    evidence: float  # buckets, older ones faded
    meant: float


class ClassWhy(msgspec.Struct, frozen=True, kw_only=True):
    """One class that a cold start borrows from; empty = whatever that is."""

    client: str
    app: str
    flavour: str  # vCPUs x GiB
    vms: int  # that taught it
    share: float  # of what is borrowed, 0..1


class ColdStartWhy(msgspec.Struct, frozen=True, kw_only=True):
    """The forecast is borrowed from VMs of a kind."""

    readings: int
    own_level: float  # weight of the VM's own level, 0..1; the rest is what the class uses
    classes: tuple[ClassWhy, ...]  # widest first


class EventWhy(msgspec.Struct, frozen=True, kw_only=True):
    """What one scheduled event adds."""

    name: str
    category: str
    start_s: int
    end_s: int
    mean_added: tuple[float | None, ...]  # to the mean of each step
    peak_added: tuple[float | None, ...]  # to the largest demand in each step


class ResourceWhy(msgspec.Struct, frozen=True, kw_only=True):
    """One resource."""

    resource: str
    reason: ReasonWhy | None
    coverage: CoverageWhy
    level: LevelWhy
    newest_reading_age: int | None  # buckets; 0 = the newest bucket has one; None = no reading in the newest day
    gap_widening: float  # the bands' width is multiplied by it, because the newest reading is old; 1 = not
    capacity: float | None  # the most the VM may ever have: bounds the forecast; None = unlimited or unknown
    targets: tuple[TargetWhy, ...]
    cold_start: ColdStartWhy | None = None
    events: tuple[EventWhy, ...] = ()
    events_added: tuple[float | None, ...] = ()  # to the mean of each step, all events together; () = none


class ForecastWhy(msgspec.Struct, frozen=True, kw_only=True):
    """All resources of one VM, in the order of RESOURCES."""

    vm_id: str
    issued_s: int
    resources: tuple[ResourceWhy, ...]
