"""From an explanation and the forecast that was issued to the API's ForecastWhyView: who counted, who did not, what was corrected. Pure.

`details` are the engine's own numbers; `summary` says the same in sentences, for people. Both are given only where they are of the very
forecast that the coordinator uses. Amounts in sentences are in cores, GiB, MB/s and Mbit/s; times are UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
import numpy as np

from coordinator.forecast.combine import GROUP_MIDDLES
from coordinator.forecast.explain import MINUTES, TARGETS, reason_why
from coordinator.forecast.why import ColdStartWhy, EventWhy, ForecastWhy, LevelWhy, PartWhy, ReasonWhy, ResourceWhy
from coordinator.model import LEVELS, ForecastBlock, NoForecast
from coordinator.service.explained import ForecastWhyView, IssuedPart, ResourceForecastWhy
from coordinator.service.forecasts import known, model_name
from shared.units import BUCKET_S, GIB, RESOURCES

_UNITS: Final = {
    "cpu_millicores": (1000.0, "cores"),
    "memory_bytes": (float(GIB), "GiB"),
    "disk_bytes_per_s": (1e6, "MB/s"),
    "net_rx_bits_per_s": (1e6, "Mbit/s"),
    "net_tx_bits_per_s": (1e6, "Mbit/s"),
}
_MEDIAN, _LOW, _HIGH = (LEVELS.index(level) for level in (0.5, 0.1, 0.9))
_NOTEWORTHY: Final = 0.05  # corrections that change the width by less are not told in words
_RECENT_S: Final = 6 * 3600  # older changes of level explain nothing of today's forecast
_NO_FORECAST: Final = ReasonWhy(
    code="cold_start",
    meaning="no forecast holds this VM yet",
    since_s=None,
    readings=None,
    ends="the next forecast after its first full bucket",
    readings_needed=None,
)


def forecast_why_view(vm_id: str, block: ForecastBlock | None, why: ForecastWhy | None, not_now: str | None) -> ForecastWhyView:
    """`why` None or of another forecast than `block`: what the block alone tells, and `not_now` says why it is no more."""
    at = block.vm_ids.index(vm_id) if block is not None and vm_id in block.vm_ids else None
    if block is None or at is None:
        nothing = tuple(
            ResourceForecastWhy(resource=name, model=None, reason=_NO_FORECAST, summary=(_sentence(_NO_FORECAST),), issued=(), details=None)
            for name in RESOURCES
        )
        return ForecastWhyView(vm_id=vm_id, issued_s=None, not_now=not_now, resources=nothing)
    if why is not None and why.issued_s != block.issued_s:
        why, not_now = None, "the forecast's worker is at another forecast than the coordinator: ask again in a moment"
    if why is None and not_now is None:
        not_now = "the forecast's worker does not hold this VM: it was rebuilt and comes back with the next forecast"
    details: Sequence[ResourceWhy | None] = (None,) * len(RESOURCES) if why is None else why.resources
    resources = tuple(_resource(block, at, r, detail) for r, detail in enumerate(details))
    return ForecastWhyView(vm_id=vm_id, issued_s=block.issued_s, not_now=not_now, resources=resources)


def with_since(view: ForecastWhyView, issued: Sequence[ForecastBlock]) -> ForecastWhyView:
    """Where the engine does not know since when a reason holds, the issued forecasts do, oldest first: since the last one without it."""
    resources = []
    for r, part in enumerate(view.resources):
        since = None if part.reason is None or part.reason.since_s is not None else _since(issued, r, part.reason.code)
        if since is None or part.reason is None:
            resources.append(part)
            continue
        reason = msgspec.structs.replace(part.reason, since_s=since)
        resources.append(msgspec.structs.replace(part, reason=reason, summary=(_sentence(reason), *part.summary[1:])))
    return msgspec.structs.replace(view, resources=tuple(resources))


def _since(issued: Sequence[ForecastBlock], r: int, code: str) -> int | None:
    others = [i for i, block in enumerate(issued) if NoForecast(int(block.reason[0, r])).name.lower() != code]
    if not others or others[-1] + 1 >= len(issued):
        return None
    return issued[others[-1] + 1].issued_s


def _resource(block: ForecastBlock, at: int, r: int, why: ResourceWhy | None) -> ResourceForecastWhy:
    code = int(block.reason[at, r])
    reason = why.reason if why is not None else _bare_reason(code)
    capacity = np.nan if why is None or why.capacity is None else why.capacity
    issued = tuple(
        IssuedPart(
            target=target,
            minutes=MINUTES[g],
            middle_minutes=(step + 1) * BUCKET_S // 60,
            median=known(levels[at, r, step, _MEDIAN]),
            low=known(levels[at, r, step, _LOW]),
            high=known(levels[at, r, step, _HIGH]),
            at_capacity_from=_capped_from(levels[at, r, step], capacity),
        )
        for target, levels in zip(TARGETS, (block.quantiles, block.peak_quantiles), strict=True)
        for g, step in enumerate(GROUP_MIDDLES)
    )
    summary = tuple(_summary(block.issued_s, reason, why, issued))
    return ResourceForecastWhy(
        resource=RESOURCES[r], model=model_name(block, at, r), reason=reason, summary=summary, issued=issued, details=why
    )


def _bare_reason(code: int) -> ReasonWhy | None:
    """What a code alone tells."""
    words = {
        NoForecast.COLD_START: ("too few readings for a model of its own: the forecast is wide", "more readings"),
        NoForecast.GAP: ("the newest buckets brought no reading", "one reading"),
    }
    found = words.get(NoForecast(code))
    if found is None:
        return reason_why(code, 0, 0, None, None)
    return ReasonWhy(code=NoForecast(code).name.lower(), meaning=found[0], since_s=None, readings=None, ends=found[1], readings_needed=None)


def _capped_from(levels: np.ndarray, capacity: float) -> float | None:
    """The lowest level that the capacity holds down; None = none."""
    held = np.flatnonzero(levels >= np.float32(capacity))
    return LEVELS[held[0]] if len(held) else None


# -- sentences --------------------------------------------------------------------------------------------------------------


def _summary(issued_s: int, reason: ReasonWhy | None, why: ResourceWhy | None, issued: Sequence[IssuedPart]) -> Iterator[str]:
    if reason is not None:
        yield _sentence(reason)
    if why is None:
        return
    if why.cold_start is not None:
        yield _cold_start(why.cold_start)
    elif reason is None or reason.code != "all_unknown":
        yield from _engine(issued_s, why)
    for event in why.events:
        yield _event(event, why.resource)
    capped = [part for part in issued if part.target == "mean" and part.at_capacity_from is not None]
    if capped and why.capacity is not None:
        lowest = min(part.at_capacity_from or 1.0 for part in capped)
        yield f"Its quantiles from {lowest:.1%} on are held at the most that it may ever have, {_amount(why.resource, why.capacity)}."


def _engine(issued_s: int, why: ResourceWhy) -> Iterator[str]:
    """What the engine did; a borrowed forecast knows nothing of it."""
    parts = why.targets[0].parts
    for part in parts:
        yield from _part(part, why.resource)
    if why.level.since_s is not None and why.level.before is not None and issued_s - why.level.since_s <= _RECENT_S:
        yield _level(why.level, why)
    if why.coverage.realised is not None:
        widths = (("its own correction", parts[1].bands.own_width), ("the last correction", parts[1].bands.held_width))
        told = [f"{name} makes it {width:.2f} times as wide" for name, width in widths if width and abs(width - 1.0) > _NOTEWORTHY]
        held = f"The 80 % band held {why.coverage.realised:.0%} of what came in the last {why.coverage.evidence:.0f} buckets or so"
        yield _joined(held, *told)
    if why.gap_widening > 1.0:
        yield f"The bands are {why.gap_widening:.2f} times as wide, because the newest reading is old."


def _sentence(reason: ReasonWhy) -> str:
    since = "" if reason.since_s is None else f", since {_clock(reason.since_s)}"
    return f"{reason.code}: {reason.meaning}{since}. What would end it: {reason.ends}."


def _part(part: PartWhy, resource: str) -> Iterator[str]:
    leader = max(part.members, key=lambda member: member.weight)
    if leader.weight <= 0:
        return
    words = [f"{part.minutes} minutes ahead: {leader.member} counts most ({leader.weight:.0%})"]
    if leader.error is not None:
        against = "" if leader.error_to_naive is None else f", {leader.error_to_naive:.2f} times as much as {part.members[0].member}"
        words.append(f"it erred by {_amount(resource, leader.error)} of late{against}")
    else:
        words.append("it was never scored on this VM, the fleet's experience speaks for it")
    for state, meaning in (("cut", "left out as too bad"), ("silent", "nothing to say yet"), ("unscored", "not scored anywhere yet")):
        names = [member.member for member in part.members if member.state == state]
        if names:
            words.append(f"{meaning}: {', '.join(names)}")
    if part.network is not None:
        ratio = (
            "" if not part.network.pool_loss else f" (its loss is {(part.network.network_loss or 0.0) / part.network.pool_loss:.2f} of it)"
        )
        words.append(f"the network has {part.network.weight:.0%} of the word, the pool the rest{ratio}")
    yield _joined(*words)


def _cold_start(cold: ColdStartWhy) -> str:
    def name(client: str, app: str, flavour: str) -> str:
        known_parts = (("client", client), ("application", app), ("size", flavour))
        return " ".join(f"{what} {value}" for what, value in known_parts if value) or "the whole fleet"

    donors = sorted(cold.classes, key=lambda donor: -donor.share)
    told = ", ".join(
        f"{name(donor.client, donor.app, donor.flavour)} ({donor.vms} VMs, {donor.share:.0%})" for donor in donors if donor.share > 0
    )
    own = "" if cold.readings == 0 else f", around its own level after {cold.readings} reading{'s' * (cold.readings > 1)}"
    return f"Borrowed from VMs of its kind{own}: {told}."


def _level(level: LevelWhy, why: ResourceWhy) -> str:
    assert level.since_s is not None and level.before is not None and level.level is not None, "checked by the caller"
    went = f"The level went from {_amount(why.resource, level.before)} to {_amount(why.resource, level.level)} at {_clock(level.since_s)}"
    restart = why.targets[0].parts[1].restart
    if restart is None or restart.moved is None:
        return f"{went}."
    sure = "" if restart.holds is None else f", as it lasts with a probability of {restart.holds:.0%}"
    return f"{went}; the pool's answer was moved by {_amount(why.resource, restart.moved)}{sure}."


def _event(event: EventWhy, resource: str) -> str:
    most = max((value for value in event.mean_added if value is not None), key=abs, default=0.0)
    return f"{event.name} ({_clock(event.start_s)} to {_clock(event.end_s)}) adds up to {_amount(resource, most)}."


def _joined(*words: str) -> str:
    return "; ".join(words) + "."


def _amount(resource: str, value: float) -> str:
    size, unit = _UNITS[resource]
    return f"{value / size:,.3g} {unit}"


def _clock(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
