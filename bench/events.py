"""Known events: the error of the forecast peak of the next hour with the calendar against the same engine without it (bar 11).

Real traces, into whose scored part events are laid that only the calendar knows of:
- a backup every night at 02:00 (iCalendar rule, no declared effect): disk, network out, CPU and memory rise by amounts drawn per VM (3 to
  1), with a ramp and noise; half of the VMs have it from the first night on, the other half from the second, so that a first occurrence
  can be foretold only from other VMs (the very first night is nobody's to foretell and reported apart); late in the trace one night is
  moved by an hour;
- a campaign (iCalendar, declared effect on CPU and network): once a day for two and a half hours, another hour each day, on a third of
  the VMs; it swells and ebbs, to a height of each VM's own around what is declared; its first occurrence can be foretold only from that.
Error: |median of the forecast peak within the next hour - the peak that came|, in units of what the event adds to that VM and resource,
mean over a VM's resources and origins. The figure is the median over VMs of the error with over that without the calendar, the bar stands
on origins whose next hour the event raises by at least half of what it adds at most; `before`: of these, origins before the event begins.
What no forecaster could know is left out: events that add less than twice what the VM's hourly peak changes by from one hour to the next
anyway (median); of a first backup, resources that no VM of the first night has; and a median VM is asked, because a declared effect is off
by half on some VM (its height there is drawn), so that the mean tells the draw. Small sets get several draws, for the same reason.
Means over all origins are printed beside it, and (not in --quick) what bounds a missed bar: the same figure of an engine that never saw an
event and is told to the digit what each adds. What is left then is the error of the load without events.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from bench.forecast_protocol import bucket_of
from bench.report import Figure, options, publish
from bench.traces import Size, Trace, block, load
from coordinator.forecast.calendar import DAY_S
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.events import ical
from coordinator.forecast.events.apply import with_events
from coordinator.forecast.events.effects import Lift
from coordinator.forecast.events.model import Event, occurrences
from coordinator.forecast.events.shard import EventShard
from coordinator.model import F32, F64, LEVELS
from coordinator.ports import ForecastShard
from shared.units import BUCKET_S, CPU, DISK, HORIZON_STEPS, MEMORY, MIB, NET_RX, NET_TX, RESOURCES

BAR: Final = 0.5
MEDIAN: Final = LEVELS.index(0.5)
BACKUP, CAMPAIGN = 9, 30  # buckets
HOUR_S: Final = 3600
QUICK_SETS: Final = 2
FEW: Final = 40  # VMs: smaller sets are drawn repeatedly, until there are so many
MATTERS: Final = 0.5
MATERIAL: Final = 2.0  # an event that adds less than this times what changes anyway cannot be told from the rest
LEAN: Final = ForecastOptions(boosting=False)
Span = tuple[str, int, NDArray[np.int64], NDArray[np.int64], int]  # label, occurrence, rows, resources, first bucket


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A trace with its events: `added` float32[v, r, b] is what they add."""

    trace: Trace
    bare: Trace  # without events
    events: tuple[Event, ...]
    added: F32
    spans: tuple[tuple[Span, int], ...]  # and how many buckets each takes


def stamp(at_s: int) -> str:
    """Unix seconds as iCalendar writes UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y%m%dT%H%M%SZ")


def entry(uid: str, start_s: int, buckets: int, *lines: str) -> str:
    """One VEVENT."""
    head = ("BEGIN:VEVENT", f"UID:{uid}", f"DTSTART:{stamp(start_s)}", f"DURATION:PT{buckets * 5}M")
    return "\r\n".join((*head, *lines, "END:VEVENT", ""))


def nights_of(trace: Trace) -> list[int]:
    """02:00 of every scored night that has a whole day after it."""
    first_s = trace.start_s + trace.loaded * BUCKET_S
    last_s = trace.start_s + trace.mean.shape[2] * BUCKET_S
    nights = [day + 2 * HOUR_S for day in range(first_s // DAY_S * DAY_S, last_s, DAY_S)]
    return [night for night in nights if night >= first_s + HOUR_S and night + 20 * HOUR_S < last_s]


def least_of(trace: Trace) -> F64:
    """[r]: what the smallest backup adds, on machines of any size: well above what the median VM's hourly peak changes by anyway."""
    return np.maximum(np.array([400.0, 256.0 * MIB, 20e6, 20e6, 40e6]), 4.0 * np.median(variation(trace), axis=0))


def backups(trace: Trace, rng: np.random.Generator, added: F32) -> Iterator[tuple[str, Span]]:
    """Lay the backups into `added`; yields calendar entries and spans."""
    v = len(trace.mean)
    nights = nights_of(trace)
    moved = nights[-2] if len(nights) > 3 else -1
    least = least_of(trace) * (np.arange(len(RESOURCES)) != NET_RX)
    size = rng.uniform(least, 3.0 * least, (v, len(RESOURCES)))
    ramp = np.minimum(np.arange(1, BACKUP + 1) / 2.0, 1.0)
    for group in range(2):
        rows = np.flatnonzero(np.arange(v) % 2 == group)
        mine = nights[group:]
        scope = ",".join(f"vm{i}" for i in rows)
        lines = ["RRULE:FREQ=DAILY", "CATEGORIES:backup", f"X-TIDEGATE-SCOPE:vm={scope}"]
        text = entry(f"backup{group}", mine[0], BACKUP, *lines)
        if moved in mine:
            text += entry(f"backup{group}", moved + HOUR_S, BACKUP, f"RECURRENCE-ID:{stamp(moved)}")
        for night, at_s in enumerate(mine):
            at = (at_s + HOUR_S * (at_s == moved) - trace.start_s) // BUCKET_S
            noise = rng.lognormal(0.0, 0.15, (len(rows), 5, 1)) * rng.lognormal(0.0, 0.1, (len(rows), 5, BACKUP))
            added[rows, :, at : at + BACKUP] += (size[rows][:, :, None] * ramp * noise).astype(np.float32)
            label = "backup unforeseeable" if night + group == 0 else "backup moved" if at_s == moved else "backup"
            yield text if night == 0 else "", (label, night, rows, np.array([CPU, MEMORY, DISK, NET_TX]), at)


def campaigns(trace: Trace, rng: np.random.Generator, added: F32) -> Iterator[tuple[str, Span]]:
    """Lay the campaigns into `added`; yields calendar entries and spans."""
    rows = np.flatnonzero(np.arange(len(trace.mean)) % 3 == 0)
    kinds = np.array([CPU, NET_RX, NET_TX])
    scope = ",".join(f"vm{i}" for i in rows)
    declared = 2.0 * least_of(trace)[kinds]
    amount = declared[:, None] * rng.lognormal(0.0, 0.3, (len(rows), 1, 1))
    bell = 0.4 + 0.6 * np.sin(np.pi * (np.arange(CAMPAIGN) + 0.5) / CAMPAIGN)
    lines = (
        "CATEGORIES:campaign",
        f"X-TIDEGATE-SCOPE:vm={scope}",
        "X-TIDEGATE-EFFECT:cpu=+{:.0f}m net_rx=+{:.0f}bit net_tx=+{:.0f}bit".format(*declared),
    )
    for day, night in enumerate(nights_of(trace)):
        start_s = night + int(rng.integers(5, 15)) * HOUR_S
        at = (start_s - trace.start_s) // BUCKET_S
        noise = rng.lognormal(0.0, 0.1, (len(rows), 3, CAMPAIGN))
        added[np.ix_(rows, kinds, np.arange(at, at + CAMPAIGN))] += (amount * bell * noise).astype(np.float32)
        yield entry(f"campaign{day}", start_s, CAMPAIGN, *lines), ("campaign", day, rows, kinds, at)


def stage(trace: Trace, seed: int = 1) -> Staged:
    """The trace with backups and campaigns, and the calendar that announces them."""
    rng = np.random.default_rng(seed)
    added = np.zeros_like(trace.mean)
    laid = [(item, BACKUP) for item in backups(trace, rng, added)] + [(item, CAMPAIGN) for item in campaigns(trace, rng, added)]
    text = "".join(text for (text, _), _ in laid)
    events = ical.parse("bench", f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:bench\r\n{text}END:VCALENDAR\r\n", ZoneInfo("UTC"))
    laid_on = replace(trace, mean=trace.mean + added, peak=trace.peak + added)
    return Staged(trace=laid_on, bare=trace, events=events, added=added, spans=tuple((span, buckets) for (_, span), buckets in laid))


def peaks_of(staged: Staged, shard: ForecastShard) -> F64:
    """Median of the forecast peak within the next hour [b, v, r], issued at the end of bucket b; NaN before the scored part."""
    trace = staged.trace
    shard.load(block(trace.mean[..., : trace.loaded], trace.peak[..., : trace.loaded], trace.start_s + (trace.loaded - 1) * BUCKET_S))
    said = np.full((trace.mean.shape[2], *trace.mean.shape[:2]), np.nan)
    for b in range(trace.loaded, trace.mean.shape[2] - HORIZON_STEPS):
        said[b] = shard.advance(bucket_of(trace, b), {}).peak_quantiles[:, :, -1, MEDIAN]
    return said


def told_exactly(staged: Staged) -> F64:
    """As `peaks_of`, of an engine that sees the load without events and adds what they will add."""
    bare, shard = staged.bare, ForecastEngine(LEAN)
    shard.load(block(bare.mean[..., : bare.loaded], bare.peak[..., : bare.loaded], bare.start_s + (bare.loaded - 1) * BUCKET_S))
    said = np.full((bare.mean.shape[2], *bare.mean.shape[:2]), np.nan)
    nothing, unlimited = np.zeros((*bare.mean.shape[:2], HORIZON_STEPS)), np.full(bare.mean.shape[:2], np.nan)
    for b in range(bare.loaded, bare.mean.shape[2] - HORIZON_STEPS):
        found = shard.advance(bucket_of(bare, b), {})
        to_come = staged.added[..., b + 1 : b + 1 + HORIZON_STEPS].astype(np.float64)
        under_way = (to_come != 0.0).any(axis=1)
        lift = Lift(issued_s=found.issued_s, mean=to_come, mean_stddev=nothing, peak=to_come, peak_stddev=nothing, active=under_way)
        said[b] = with_events(found, lift, unlimited).peak_quantiles[:, :, -1, MEDIAN]
    return said


def variation(trace: Trace) -> F64:
    """[v, r]: how far the peak of an hour usually (median) lies from that of the hour before."""
    past = trace.peak[..., : trace.loaded // HORIZON_STEPS * HORIZON_STEPS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an hour, or a VM, without any sample
        hours = np.nanmax(past.reshape(*past.shape[:2], -1, HORIZON_STEPS), axis=-1)
        return np.nan_to_num(np.nanmedian(np.abs(np.diff(hours, axis=-1)), axis=-1))


class Found(NamedTuple):
    """Scaled errors of one occurrence at one origin, all [n]: of which VM, whether the event makes the hour's peak, with and without."""

    row: NDArray[np.int64]
    matters: NDArray[np.bool_]
    aware: F64
    blind: F64


def errors_of(staged: Staged, aware: F64, blind: F64) -> dict[str, Found]:
    """Per label, the errors of both at all origins whose next hour meets an event."""
    found: dict[str, list[Found]] = {}
    trace = staged.trace
    usual = variation(trace)
    told = ~np.isnan(trace.mean[::2, :, trace.loaded :]).all(axis=(0, 2))  # [r] seen by VMs of the first night
    for (label, occurrence, rows, resources, at), buckets in staged.spans:
        size = staged.added[np.ix_(rows, resources, np.arange(at, at + buckets))].max(axis=-1).astype(np.float64)
        known = size > MATERIAL * usual[np.ix_(rows, resources)]
        if label == "backup" and occurrence == 0:
            known &= told[resources]
        size = np.where(known, size, np.nan)
        number = label if " " in label else f"{label} {'first' if occurrence == 0 else 'later'}"
        for origin in range(at - HORIZON_STEPS, at + buckets - 1):
            hour = np.ix_(rows, resources, np.arange(origin + 1, origin + 1 + HORIZON_STEPS))
            came = trace.peak[hour].max(axis=-1)
            matters = came - (trace.peak[hour] - staged.added[hour]).max(axis=-1) >= MATTERS * size
            said = [np.abs(each[origin][np.ix_(rows, resources)] - came) / size for each in (aware, blind)]
            there = ~np.isnan(said[0]) & ~np.isnan(said[1])
            row = np.broadcast_to(rows[:, None], there.shape)
            for name in (number, f"{number}, before") if origin < at - 1 else (number,):
                found.setdefault(name, []).append(Found(row[there], matters[there], said[0][there], said[1][there]))
    return {name: Found(*(np.concatenate(column) for column in zip(*parts, strict=True))) for name, parts in found.items()}


def median_ratio(found: Found) -> tuple[float, int]:
    """(median over VMs of the error with over that without the calendar, number of VMs) at origins that matter."""
    with_calendar, without, count = (
        np.bincount(found.row[found.matters], weights)
        for weights in (found.aware[found.matters], found.blind[found.matters], np.ones(int(found.matters.sum())))
    )
    here = count > 0
    return (float(np.median(with_calendar[here] / np.maximum(without[here], 1e-9))) if here.any() else float("nan")), int(here.sum())


def drawn(trace: Trace, draws: int, bounds: bool) -> tuple[dict[str, Found], dict[str, Found]]:
    """Errors under several draws of what the events add, with the calendar and (`bounds`) with all told.

    A VM of another draw counts as another VM.
    """
    pooled: tuple[dict[str, list[Found]], dict[str, list[Found]]] = ({}, {})
    for draw in range(draws):
        staged = stage(trace, seed=1 + draw)
        aware = EventShard(ForecastEngine(LEAN))
        aware.announce(occurrences(staged.events, trace.start_s, trace.start_s + trace.mean.shape[2] * BUCKET_S))
        blind = peaks_of(staged, ForecastEngine(LEAN))
        said_by = (peaks_of(staged, aware), *((told_exactly(staged),) if bounds else ()))
        for kept, said in zip(pooled, said_by, strict=False):
            for name, found in errors_of(staged, said, blind).items():
                kept.setdefault(name, []).append(found._replace(row=found.row + draw * len(trace.mean)))
    return joined(pooled[0]), joined(pooled[1])


def joined(pooled: dict[str, list[Found]]) -> dict[str, Found]:
    """The draws of each label as one."""
    return {name: Found(*(np.concatenate(column) for column in zip(*parts, strict=True))) for name, parts in pooled.items()}


def figures_of(trace: Trace, draws: int, bounds: bool) -> list[Figure]:
    """With against without the calendar, on one set."""
    errors, told = drawn(trace, draws, bounds)
    figures = []
    for name, found in sorted(errors.items()):
        ratio, vms = median_ratio(found)
        if not vms:
            print(f"left out: {trace.name}, {name}: no event that can be told from the rest")
            continue
        bar = {} if "unforeseeable" in name else {"bar": f"<= {BAR}", "holds": ratio <= BAR, "row": 11}
        label = f"{trace.name}, {name}"
        figures.append(Figure(name=f"{label}: peak error with / without calendar, median of {vms} VMs", value=ratio, unit="ratio", **bar))
        if name in told:
            least = median_ratio(told[name])[0]
            figures.append(Figure(name=f"{label}: the same, of who is told exactly what events add", value=least, unit="ratio"))
        mean = float(found.aware.mean())
        figures.append(Figure(name=f"{label}: the same, mean of all origins", value=mean / float(found.blind.mean()), unit="ratio"))
        figures.append(Figure(name=f"{label}: with calendar, mean of all origins", value=mean, unit="of the event"))
    return figures


def main() -> None:
    """Run on every set that has nights enough."""
    arguments = options(__doc__ or "").parse_args()
    size = Size(vms=10, trained=1, scored=3 * 288) if arguments.quick else Size(vms=60, trained=1, scored=7 * 288)
    figures, seen = [], 0
    for trace in load(arguments.data, arguments.quick, size):
        if len(nights_of(trace)) < 2:
            print(f"left out: {trace.name} has fewer than two scored nights")
            continue
        figures += figures_of(trace, 2 if arguments.quick else -(-FEW // len(trace.mean)), bounds=not arguments.quick)
        seen += 1
        if arguments.quick and seen == QUICK_SETS:
            break
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
