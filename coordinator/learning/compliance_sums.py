"""Per-VM counts of minutes over a rolling period, and what they come to by client, application, priority or VM.

Rows are VMs, gone ones as well until their minutes have left the longest period. Hours go in and out one at a time, so that a period's
totals cost a few additions an hour; an hour that is counted again replaces what it was. Groups are sums over rows, so they add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.learning.compliance_hours import HOUR_S, I32, N_METRICS, Owner, Promise
from coordinator.learning.objectives import METRICS
from shared.model import Priority

PERIOD: Final = 0  # stands for each objective's own
FAST, HOUR, HALF, SIX, THREE_DAYS, DAY = 300, HOUR_S, 1800, 6 * HOUR_S, 72 * HOUR_S, 24 * HOUR_S
WINDOWS: Final = (PERIOD, FAST, HALF, HOUR, SIX, DAY, THREE_DAYS)
# (long, short, how many times too fast) as in the SRE workbook; what burns in both windows of a pair is told of
PAIRS: Final = ((HOUR, FAST, 14.4), (SIX, HALF, 6.0), (THREE_DAYS, SIX, 1.0))

State = Literal["met", "burning", "exhausted", "unknown"]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class VmMinutes:
    """Minutes of each row, int32[v, 4, window] in the order of WINDOWS."""

    bad: NDArray[np.int32]
    known: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Burn:
    """How fast a budget was used up over a window: 1 = it lasts just for the period; None = nothing was seen."""

    window_s: int
    rate: float | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One name's standing on one metric, in VM-minutes of the period. Shares are None where nothing was seen."""

    metric: str
    good: int
    bad: int
    unknown: int
    budget: float  # minutes that may be bad within the period
    compliance: float | None  # good / (good + bad)
    at_least: float | None  # with every unknown minute taken as bad
    promised: float | None  # share of minutes that must be good, the mean over the minutes seen
    day: float | None  # compliance of the last 24 hours
    hour: float | None
    burn: tuple[Burn, ...]
    alert: float  # largest over PAIRS of min(long, short) / how fast is too fast; above 1 tells of it
    state: State

    @property
    def remaining(self) -> float:
        """Of the budget, minutes; negative = overdrawn."""
        return self.budget - self.bad


class VmTable:
    """Rows of VMs with their totals over their periods."""

    def __init__(self) -> None:
        self.vm_ids: list[str] = []
        self.now_s: int | None = None  # the running hour
        self.given_up = 0
        self.bad: NDArray[np.int32] = np.zeros((0, N_METRICS), np.int32)
        self.known = np.zeros_like(self.bad)
        self.there = np.zeros_like(self.bad)
        self.running: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.promise = Promise.empty()
        self.owners: list[Owner] = []
        self._seen_s: NDArray[np.int64] = np.zeros(0, np.int64)  # newest hour with anything counted
        self._row: dict[str, int] = {}
        self._ring: dict[int, tuple[U8, U8, U8]] = {}  # hour -> bad [v, 4], known [v, 4], there [v, 1]; short of rows that came later

    def __len__(self) -> int:
        return len(self.vm_ids)

    def rows(self, vm_ids: Sequence[str], owners: Sequence[Owner], promise: Promise) -> NDArray[np.int64]:
        """Rows of these VMs, made where they are new; owner and promise of a row are those told last."""
        new = [i for i, vm_id in enumerate(vm_ids) if vm_id not in self._row]
        for i in new:
            self._row[vm_ids[i]] = len(self.vm_ids)
            self.vm_ids.append(vm_ids[i])
            self.owners.append(owners[i])
        if new:
            taken, n = promise.take(np.array(new, np.int64)), len(new)
            old = self.promise
            self.promise = Promise(
                thresholds=np.concatenate([old.thresholds, taken.thresholds]),
                budgets=np.concatenate([old.budgets, taken.budgets]),
                periods=np.concatenate([old.periods, taken.periods]),
            )
            zeros = np.zeros((n, N_METRICS), np.int32)
            self.bad, self.known, self.there = (np.concatenate([each, zeros]) for each in (self.bad, self.known, self.there))
            self.running = np.concatenate([self.running, np.zeros(n, np.bool_)])
            self._seen_s = np.concatenate([self._seen_s, np.full(n, -1, np.int64)])
        return np.array([self._row[vm_id] for vm_id in vm_ids], np.int64)

    def found(self, vm_ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of those of these VMs that are not forgotten: their places in `vm_ids`, and their rows."""
        rows = np.array([self._row.get(vm_id, -1) for vm_id in vm_ids], np.int64)
        at = np.flatnonzero(rows >= 0)
        return at, rows[at]

    def set_hour(self, hour_s: int, rows: NDArray[np.int64], bad: U8, known: U8, there: U8) -> None:
        """Count an hour in place of what was counted of it."""
        if self.now_s is None or hour_s > self.now_s:
            self.roll(hour_s)
        assert self.now_s is not None
        age = (self.now_s - hour_s) // HOUR_S
        new = tuple(np.zeros((len(self), each.shape[1]), np.uint8) for each in (bad, known, there[:, None]))
        for target, values in zip(new, (bad, known, there[:, None]), strict=True):
            target[rows] = values
        was = self._padded(hour_s)
        self._ring[hour_s] = new  # type: ignore[assignment]  # three, as above
        inside = self.promise.periods > age
        for total, after, before in zip((self.bad, self.known, self.there), new, was, strict=True):
            total[:] += np.where(inside, after.astype(np.int32) - before, 0)
        self._seen_s[rows] = np.maximum(self._seen_s[rows], hour_s)

    def told(self, rows: NDArray[np.int64], owners: Sequence[Owner], promise: Promise) -> None:
        """Whose these rows are now and what they were promised."""
        for row, owner in zip(rows.tolist(), owners, strict=True):
            self.owners[row] = owner
        self.promise.thresholds[rows], self.promise.budgets[rows] = promise.thresholds, promise.budgets
        if (self.promise.periods[rows] != promise.periods).any():
            self.promise.periods[rows] = promise.periods
            self._recount()

    def roll(self, hour_s: int) -> None:
        """The running hour is this one now: older ones leave the periods that they are too old for."""
        if self.now_s is None or hour_s <= self.now_s:
            self.now_s = hour_s if self.now_s is None else self.now_s
            return
        longest = int(self.promise.periods.max(initial=1))
        if hour_s - self.now_s >= longest * HOUR_S:
            self.now_s, self._ring = hour_s, {}
            self._recount()
            return
        while self.now_s < hour_s:
            self.now_s += HOUR_S
            for period in np.unique(self.promise.periods).tolist():
                leaving = self._ring.get(self.now_s - period * HOUR_S)
                if leaving is not None:
                    n = len(leaving[0])
                    out = self.promise.periods[:n] == period
                    for total, part in zip((self.bad, self.known, self.there), leaving, strict=True):
                        total[:n] -= np.where(out, part.astype(np.int32), 0)
        keep = max(longest, THREE_DAYS // HOUR_S)
        self._ring = {at: each for at, each in self._ring.items() if at > hour_s - keep * HOUR_S}

    def run(self, vm_ids: Sequence[str]) -> None:
        """These VMs run now, and no others."""
        self.running[:] = False
        self.running[[self._row[vm_id] for vm_id in vm_ids]] = True

    def forget(self, spare: int) -> list[str]:
        """Drop VMs that do not run and have nothing counted any more, or are too many. Who was dropped."""
        if self.now_s is None or self.running.all():
            return []
        longest = max(int(self.promise.periods.max(initial=1)), THREE_DAYS // HOUR_S)
        gone = np.flatnonzero(~self.running)
        old = gone[self._seen_s[gone] <= self.now_s - longest * HOUR_S]
        too_many = len(gone) - len(old) - int(self.running.sum()) - spare
        if too_many > 0:
            rest = np.setdiff1d(gone, old)
            # the running hour is counted again with its next bucket, and would bring them back
            rest = rest[self._seen_s[rest] < self.now_s]
            too_many = min(too_many, len(rest))
            old = np.concatenate([old, rest[np.argsort(self._seen_s[rest], kind="stable")][:too_many]])
            self.given_up += too_many
        if not len(old):
            return []
        kept = np.setdiff1d(np.arange(len(self)), old)
        dropped = [self.vm_ids[row] for row in old.tolist()]
        self.vm_ids, self.owners = [self.vm_ids[row] for row in kept], [self.owners[row] for row in kept]
        self._row = {vm_id: row for row, vm_id in enumerate(self.vm_ids)}
        self.bad, self.known, self.there = self.bad[kept], self.known[kept], self.there[kept]
        self.running, self._seen_s, self.promise = self.running[kept], self._seen_s[kept], self.promise.take(kept)
        self._ring = {at: tuple(each[kept[kept < len(each)]] for each in parts) for at, parts in self._ring.items()}  # type: ignore[misc]
        return dropped

    def last_hours(self, hours: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(bad, known) int32[v, 4] of the newest whole hours, the running one among them."""
        bad, known = np.zeros((len(self), N_METRICS), np.int32), np.zeros((len(self), N_METRICS), np.int32)
        for hour_s, parts in self._ring.items():
            if self.now_s is not None and self.now_s - hours * HOUR_S < hour_s <= self.now_s:
                bad[: len(parts[0])] += parts[0]
                known[: len(parts[1])] += parts[1]
        return bad, known

    def hourly(self, kind: str, name: str, newest_s: int, hours: int) -> tuple[list[int], NDArray[np.int64]]:
        """Starts, and int64[hours, 4, 3] of a name's members."""
        rows = np.array([self._row[vm_id] for vm_id in self.members(kind, name)], np.int64)
        starts = [newest_s - back * HOUR_S for back in range(hours - 1, -1, -1)]
        found = np.zeros((hours, N_METRICS, 3), np.int64)
        for i, start_s in enumerate(starts):
            parts = self._ring.get(start_s)
            if parts is None:
                continue
            own = rows[rows < len(parts[0])]
            asked = self.promise.thresholds[own] >= 0
            found[i] = np.stack(
                [parts[0][own].sum(axis=0), parts[1][own].sum(axis=0), np.where(asked, parts[2][own], 0).sum(axis=0)], axis=1
            )
        return starts, found

    def owner(self, vm_id: str) -> Owner | None:
        """Whose a VM was when it was told of last."""
        row = self._row.get(vm_id)
        return None if row is None else self.owners[row]

    def names(self, kind: str) -> list[str]:
        """Sorted names of one kind."""
        return sorted({name_of(kind, vm_id, owner) for vm_id, owner in zip(self.vm_ids, self.owners, strict=True)})

    def members(self, kind: str, name: str, running: bool = False) -> list[str]:
        """Sorted VMs under a name."""
        return sorted(
            vm_id
            for vm_id, owner, runs in zip(self.vm_ids, self.owners, self.running.tolist(), strict=True)
            if name_of(kind, vm_id, owner) == name and (runs or not running)
        )

    def codes(self, kind: str) -> tuple[list[str], NDArray[np.int64]]:
        """Sorted names, and the place of each row's."""
        own = [name_of(kind, vm_id, owner) for vm_id, owner in zip(self.vm_ids, self.owners, strict=True)]
        names = sorted(set(own))
        place = {name: i for i, name in enumerate(names)}
        return names, np.array([place[name] for name in own], np.int64)

    def _padded(self, hour_s: int) -> tuple[I32, ...]:
        """What was counted of an hour, as wide as the table is now."""
        parts = self._ring.get(hour_s) or (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8), np.zeros((0, 1), np.uint8))
        padded = []
        for part in parts:
            wide = np.zeros((len(self), part.shape[1]), np.int32)
            wide[: len(part)] = part
            padded.append(wide)
        return tuple(padded)

    def _recount(self) -> None:
        for total in (self.bad, self.known, self.there):
            total[:] = 0
        for hour_s, parts in self._ring.items():
            assert self.now_s is not None, "the ring is empty before the first hour"
            inside = self.promise.periods > (self.now_s - hour_s) // HOUR_S
            for total, part in zip((self.bad, self.known, self.there), parts, strict=True):
                n = len(part)
                total[:n] += np.where(inside[:n], part.astype(np.int32), 0)


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Minutes summed by the names of one kind, sorted. Arrays float64[metric, window, name] and [metric, name]."""

    names: list[str]
    asked: NDArray[np.bool_]  # [metric, name]: anybody of it has an objective
    bad: NDArray[np.float64]
    known: NDArray[np.float64]
    allowed: NDArray[np.float64]  # minutes that may be bad, of those known
    there: NDArray[np.float64]
    budget: NDArray[np.float64]

    def standing(self, place: int) -> tuple[Standing, ...]:
        """One Standing per metric with an objective, in the order of METRICS, of the name at this place."""
        return tuple(
            _standing(
                metric,
                bad=self.bad[m, :, place],
                known=self.known[m, :, place],
                allowed=self.allowed[m, :, place],
                there=float(self.there[m, place]),
                budget=float(self.budget[m, place]),
            )
            for m, metric in enumerate(METRICS)
            if self.asked[m, place]
        )


def grouped(minutes: VmMinutes, table: VmTable, kind: str) -> Grouped:
    """Everybody's minutes by the names of a kind."""
    names, code = table.codes(kind)
    n = len(names)
    asked = table.promise.thresholds >= 0
    whole = np.where(table.running[:, None], table.promise.periods * 60, table.there)

    def total(values: NDArray[Any]) -> NDArray[np.float64]:
        """[v, 4] to [4, name]."""
        return np.stack([np.bincount(code, values[:, m].astype(np.float64), n) for m in range(N_METRICS)])

    def windows(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.stack([total(values[..., w]) for w in range(len(WINDOWS))], axis=1)

    return Grouped(
        names=names,
        asked=total(asked) > 0,
        bad=windows(minutes.bad),
        known=windows(minutes.known),
        allowed=windows(minutes.known * table.promise.budgets[:, :, None]),
        there=total(np.where(asked, table.there, 0)),
        budget=total(np.where(asked, whole * table.promise.budgets, 0.0)),
    )


def _standing(
    metric: str, *, bad: NDArray[np.float64], known: NDArray[np.float64], allowed: NDArray[np.float64], there: float, budget: float
) -> Standing:
    at = {window: i for i, window in enumerate(WINDOWS)}
    period = at[PERIOD]
    good, all_ = known[period] - bad[period], max(there, known[period])

    def share(window: int) -> float | None:
        return float(1.0 - bad[at[window]] / known[at[window]]) if known[at[window]] else None

    rates = {w: (float(bad[at[w]] / allowed[at[w]]) if allowed[at[w]] > 0 else None) for w in WINDOWS if w != PERIOD}
    alert = max(min(rates[long] or 0.0, rates[short] or 0.0) / fast for long, short, fast in PAIRS)
    state: State = "met"
    if not known[period]:
        state = "unknown"
    elif bad[period] > budget:
        state = "exhausted"
    elif alert > 1.0:
        state = "burning"
    return Standing(
        metric=metric,
        good=int(good),
        bad=int(bad[period]),
        unknown=int(all_ - known[period]),
        budget=budget,
        compliance=share(PERIOD),
        at_least=float(good / all_) if known[period] else None,
        promised=float(1.0 - allowed[period] / known[period]) if known[period] else None,
        day=share(DAY),
        hour=share(HOUR),
        burn=tuple(Burn(window_s=w, rate=rates[w]) for w in sorted(rates)),
        alert=float(alert),
        state=state,
    )


def name_of(kind: str, vm_id: str, owner: Owner) -> str:
    """What a VM counts under, by kind."""
    if kind == "client":
        return owner.client
    if kind == "application":
        return owner.application
    if kind == "priority":
        return Priority(owner.priority).name.lower()
    return vm_id


assert all(window in WINDOWS for pair in PAIRS for window in pair[:2])
