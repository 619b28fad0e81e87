"""The answer of /api/v1/vms/{vm_id}/forecast/why: the engine's own records (coordinator/forecast/why.py) with words and issued numbers.

As view.py, of which it is a part: units are in the names, unknown is None.
"""

from __future__ import annotations

import msgspec

from coordinator.forecast.why import ReasonWhy, ResourceWhy, Target


class IssuedPart(msgspec.Struct, frozen=True, kw_only=True):
    """What was issued for the step that stands for a part of the horizon, after everything: median and the 80 % band."""

    target: Target  # mean: of the bucket mean; peak: of the largest 5-second demand until then
    minutes: str  # "5-10", "15-30", "35-60"
    middle_minutes: int
    median: float | None
    low: float | None
    high: float | None
    at_capacity_from: float | None  # the lowest level whose quantile the VM's maximum holds down; None = none, or not known


class ResourceForecastWhy(msgspec.Struct, frozen=True, kw_only=True):
    """Why the newest forecast of one resource is what it is."""

    resource: str
    model: str | None
    reason: ReasonWhy | None  # why there is no model of its own, since when, and what would end it
    summary: tuple[str, ...]  # the same in sentences
    issued: tuple[IssuedPart, ...]
    details: ResourceWhy | None  # None: see `not_now`


class ForecastWhyView(msgspec.Struct, frozen=True, kw_only=True):
    """Why the newest forecast of one VM is what it is."""

    vm_id: str
    issued_s: int | None  # None = no forecast was made yet
    not_now: str | None  # why there are no details: the worker is busy or dead; None = there are, or there is no forecast
    resources: tuple[ResourceForecastWhy, ...]
