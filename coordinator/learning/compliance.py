"""Compliance with service objectives, minute by minute: good, bad and unknown VM-minutes, error budgets and how fast they burn.

Each closed bucket brings its minutes (coordinator/demand/minutes.py). Hours are kept as bitmaps (compliance_hours.py): the newest here,
all of them as documents in the store; of every hour of a period the counts per VM stay in memory (9 bytes a VM and hour: 10,000 VMs over
30 days are 65 MB). A late bucket of an hour that is no longer here is merged where the documents are, and comes back through `counted`.

A period is whole hours and ends with the running one. The error budget of a VM that runs is (1 - share) of all minutes of the period, of
one that is gone (1 - share) of the minutes that it ran: what is still to come counts as good, what will never come does not count. Minutes
that nobody saw while a VM ran are unknown, neither good nor bad: `compliance` is good / (good + bad), and `at_least` takes all unknown
minutes as bad. Burn rates and the pairs of windows that must agree are the SRE workbook's (ch. 5, "Alerting on SLOs"); they end with the
newest closed bucket, to the minute but for the three days, which are whole hours. Sums are additive: a client's minutes and budget are
the sums over its VMs. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.demand.minutes import MINUTE_S, TENTHS, MinuteBlock
from coordinator.learning.compliance_hours import HOUR_S, N_METRICS, HourBits, Owner, Promise
from coordinator.learning.compliance_sums import PERIOD, THREE_DAYS, WINDOWS, Grouped, Standing, VmMinutes, VmTable, grouped
from coordinator.learning.default_slas import DEFAULT_SLAS, SlaSource, objective_on
from coordinator.learning.objectives import METRICS, Sla
from shared.model import Priority
from shared.units import BUCKET_S

RECENT_HOURS: Final = 8  # the six of the longest exact window, the running one, and one for late samples
SPARE_VMS: Final = 10_000  # VMs that are gone and still counted, beyond as many as run; the longest gone are forgotten first

Kind = Literal["client", "application", "vm", "priority"]


@dataclass(frozen=True, kw_only=True)
class LateMinutes:
    """Minutes of an hour that is no longer in memory: to be merged into its document, then given to `counted`."""

    hour_s: int
    block: MinuteBlock
    owners: tuple[Owner, ...]
    promise: Promise


class ComplianceBook:
    """All minutes of one coordinator. `version` grows with every change."""

    def __init__(self, slas: SlaSource = DEFAULT_SLAS) -> None:
        self.slas = slas
        self.version = 0
        self.end_s: int | None = None  # end of the newest bucket
        self.forgotten = 0  # VMs that were given up, see SPARE_VMS
        self._table = VmTable()
        self._hours: dict[int, HourBits] = {}  # the newest
        self._promised: dict[str, tuple[Owner, int, Sla, int]] = {}
        self._terms: dict[Sla, int] = {}  # its row in the tables below
        self._tables = Promise.empty()
        nothing = np.zeros((0, N_METRICS, len(WINDOWS)), np.int32)
        self._cached: tuple[int, VmMinutes, dict[Kind, Grouped]] = (-1, VmMinutes(bad=nothing, known=nothing), {})

    # ---- what happens

    def close(self, start_s: int, block: MinuteBlock | None, running: Mapping[str, Owner]) -> list[HourBits]:
        """A bucket closed for the first time: its minutes, and whose each running VM is. The hours that changed, to be stored."""
        block = _empty(start_s) if block is None else block
        newest_s = None if self.end_s is None else self.end_s - BUCKET_S
        if newest_s is None or start_s > newest_s:
            self._roll(start_s // HOUR_S * HOUR_S)
            self.end_s = start_s + BUCKET_S
        first_s = start_s if newest_s is None else min(start_s, newest_s + BUCKET_S)
        first_s = max(first_s, start_s // HOUR_S * HOUR_S - (RECENT_HOURS - 1) * HOUR_S)
        names = list(running)
        owners, promise = [running[vm_id] for vm_id in names], self._promise(running)
        changed = {}
        # while nobody counted, VMs ran all the same: those minutes are unknown unless a spool still brings them
        for at_s in range(first_s, start_s + 1, BUCKET_S):
            hour = self._hour(at_s // HOUR_S * HOUR_S)
            hour.see((at_s - hour.hour_s) // BUCKET_S, names, owners, promise)
            changed[hour.hour_s] = hour
        self._merge(self._hour(start_s // HOUR_S * HOUR_S), block, running)
        for hour in changed.values():
            self.counted(hour)
        self._table.told(self._table.rows(names, owners, promise), owners, promise)
        self._table.run(names)
        self._forget()
        return [hour.copy() for hour in changed.values()]

    def grow(self, block: MinuteBlock, running: Mapping[str, Owner]) -> HourBits | LateMinutes:
        """A closed bucket grew. The hour to store, or what the store must merge."""
        hour_s = block.start_s // HOUR_S * HOUR_S
        if self._table.now_s is None or hour_s <= self._table.now_s - RECENT_HOURS * HOUR_S:
            owners = tuple(self._owner(vm_id, running) for vm_id in block.vm_ids)
            whose = dict(zip(block.vm_ids, owners, strict=True))
            return LateMinutes(hour_s=hour_s, block=block, owners=owners, promise=self._promise(whose))
        hour = self._hour(hour_s)
        self._merge(hour, block, running)
        self.counted(hour)
        return hour.copy()

    def counted(self, hour: HourBits) -> None:
        """Count an hour as it is now, in place of what was counted of it before."""
        rows = self._table.rows(hour.vm_ids, hour.owners, hour.promise)
        self._table.set_hour(hour.hour_s, rows, *hour.counts())
        self.version += 1

    def restore(self, hours: Iterable[HourBits]) -> None:
        """Go on from stored hours, oldest first. Nothing may have been counted before."""
        for hour in hours:
            if not hour.present.any():
                continue
            self._roll(hour.hour_s)
            self._hours[hour.hour_s] = hour
            self.counted(hour)
            self._table.told(self._table.rows(hour.vm_ids, hour.owners, hour.promise), hour.owners, hour.promise)
            self._drop_old()
            last = int(np.bitwise_or.reduce(hour.present)).bit_length() - 1
            self.end_s = hour.hour_s + (last + 1) * BUCKET_S

    def filled(self, hour: HourBits, vm_ids: Sequence[str], promise: Promise) -> HourBits | None:
        """A stored hour was filled in from history for these VMs. The whole of it where more is known here: to be stored again."""
        own = self._hours.get(hour.hour_s)
        if own is not None:
            own.rebase(vm_ids, promise)
            own.join(hour)
            hour = own
        self.counted(hour)
        return None if own is None else own.copy()

    # ---- what is asked

    def promise_of(self, whose: Mapping[str, Owner]) -> Promise:
        """What these VMs are promised, rows in the order given."""
        return self._promise(whose)

    @property
    def longest_s(self) -> int:
        """Longest period of any objective that was met so far, seconds; three days at least, as burn rates look so far back."""
        return max(THREE_DAYS, int(self._table.promise.periods.max(initial=1)) * HOUR_S)

    def hours(self) -> dict[int, HourBits]:
        """The newest hours that are in memory, by their start."""
        return dict(self._hours)

    def grouped(self, kind: Kind) -> Grouped:
        """Everybody's minutes by the names of a kind; kept until something changes."""
        if self._cached[0] != self.version:
            self._cached = (self.version, self._count(), {})
        _, minutes, kinds = self._cached
        if kind not in kinds:
            kinds[kind] = grouped(minutes, self._table, kind)
        return kinds[kind]

    def standings(self, kind: Kind) -> dict[str, tuple[Standing, ...]]:
        """name -> one Standing per metric that anybody of that name has an objective on, in the order of METRICS."""
        found = self.grouped(kind)
        return {name: found.standing(place) for place, name in enumerate(found.names)}

    def sla(self, vm_id: str) -> Sla | None:
        """The SLA that a VM was counted under last."""
        found = self._promised.get(vm_id)
        return None if found is None else found[2]

    def slas_of(self, kind: Kind, name: str) -> list[tuple[Sla, int]]:
        """SLAs in force under a name with the number of their running VMs, the most used first."""
        counts: dict[Sla, int] = {}
        for vm_id in self._table.members(kind, name, running=True):
            sla = self.sla(vm_id)
            if sla is not None:
                counts[sla] = counts.get(sla, 0) + 1
        return sorted(counts.items(), key=lambda item: (-item[1], item[0].id))

    def members(self, kind: Kind, name: str) -> list[str]:
        """VMs under a name, gone ones included, sorted."""
        return self._table.members(kind, name)

    def owner_of(self, vm_id: str) -> tuple[str, int]:
        """(application, priority) of a VM that was counted, gone or not."""
        owner = self._table.owner(vm_id) or Owner()
        return owner.application, owner.priority

    def hourly(self, kind: Kind, name: str, hours: int) -> tuple[list[int], NDArray[np.int64]]:
        """Starts of the newest `hours` hours, and int64[hours, 4, 3]: bad, known and all minutes in each."""
        if self.end_s is None:
            return [], np.zeros((0, N_METRICS, 3), np.int64)
        return self._table.hourly(kind, name, (self.end_s - 1) // HOUR_S * HOUR_S, hours)

    # ---- inside

    def _count(self) -> VmMinutes:
        """Bad and known minutes of every VM over its periods and the windows."""
        table, end_s = self._table, self.end_s or 0
        bad = np.zeros((len(table), N_METRICS, len(WINDOWS)), np.int32)
        known = np.zeros_like(bad)
        for w, window_s in enumerate(WINDOWS):
            if window_s == PERIOD:
                bad[..., w], known[..., w] = table.bad, table.known
            elif window_s > (RECENT_HOURS - 1) * HOUR_S:
                bad[..., w], known[..., w] = table.last_hours(window_s // HOUR_S)
            else:
                for hour in self._hours.values():
                    mask = _mask(hour.hour_s, end_s - window_s, end_s)
                    if mask:
                        at, rows = table.found(hour.vm_ids)
                        bad[rows, :, w] += np.bitwise_count(hour.bad[at] & np.uint64(mask))
                        known[rows, :, w] += np.bitwise_count(hour.known[at] & np.uint64(mask))
        return VmMinutes(bad=bad, known=known)

    def _merge(self, hour: HourBits, block: MinuteBlock, running: Mapping[str, Owner]) -> None:
        if block.vm_ids:
            owners = [self._owner(vm_id, running) for vm_id in block.vm_ids]
            hour.merge(block, owners, self._promise(dict(zip(block.vm_ids, owners, strict=True))))

    def _owner(self, vm_id: str, running: Mapping[str, Owner]) -> Owner:
        """Whose a VM is, or was when it was last heard of."""
        found = running.get(vm_id)
        if found is None:
            found = self._promised[vm_id][0] if vm_id in self._promised else self._table.owner(vm_id) or Owner()
        return found

    def _promise(self, whose: Mapping[str, Owner]) -> Promise:
        version, promised = self.slas.version, self._promised
        rows = []
        for vm_id, owner in whose.items():
            found = promised.get(vm_id)
            if found is None or found[1] != version or found[0] != owner:
                sla = self.slas.sla_of(vm_id, owner.client, owner.application, Priority(owner.priority))
                found = promised[vm_id] = (owner, version, sla, self._row_of(sla))
            rows.append(found[3])
        return self._tables.take(np.array(rows, np.int64))

    def _row_of(self, sla: Sla) -> int:
        """Row of an SLA's terms; SLAs that nobody has any more are few, and stay."""
        row = self._terms.get(sla)
        if row is None:
            row = self._terms[sla] = len(self._terms)
            thresholds, budgets, periods = ([each] for each in _terms(sla))
            old = self._tables
            self._tables = Promise(
                thresholds=np.concatenate([old.thresholds, np.array(thresholds, np.int32)]),
                budgets=np.concatenate([old.budgets, np.array(budgets, np.float64)]),
                periods=np.concatenate([old.periods, np.array(periods, np.int32)]),
            )
        return row

    def _hour(self, hour_s: int) -> HourBits:
        if hour_s not in self._hours:
            self._hours[hour_s] = HourBits(hour_s=hour_s)
        return self._hours[hour_s]

    def _roll(self, hour_s: int) -> None:
        self._table.roll(hour_s)
        self._drop_old()

    def _drop_old(self) -> None:
        oldest_s = max([*self._hours, self._table.now_s or 0]) - (RECENT_HOURS - 1) * HOUR_S
        self._hours = {hour_s: hour for hour_s, hour in sorted(self._hours.items()) if hour_s >= oldest_s}

    def _forget(self) -> None:
        gone = self._table.forget(SPARE_VMS)
        self.forgotten += self._table.given_up
        self._table.given_up = 0
        for vm_id in gone:
            self._promised.pop(vm_id, None)


def _terms(sla: Sla) -> tuple[Sequence[float], ...]:
    """(thresholds, budgets, periods) of an SLA by metric."""
    found = [objective_on(sla, metric) for metric in METRICS]
    return (
        [-1 if each is None else round(each.threshold_permille * TENTHS) for each in found],
        [0.0 if each is None else (1000.0 - each.share_permille) / 1000.0 for each in found],
        [1 if each is None else max(1, each.period_s // HOUR_S) for each in found],
    )


def _mask(hour_s: int, from_s: int, until_s: int) -> int:
    """Bits of the hour's minutes that begin in [from_s, until_s)."""
    low, high = (min(max((at - hour_s) // MINUTE_S, 0), 60) for at in (from_s, until_s))
    return (1 << high) - (1 << low)


def _empty(start_s: int) -> MinuteBlock:
    nothing = np.zeros((0, BUCKET_S // MINUTE_S, N_METRICS), np.int32)
    return MinuteBlock(start_s=start_s, vm_ids=(), sums=nothing, weights=nothing, samples=np.zeros(0, np.int64))
