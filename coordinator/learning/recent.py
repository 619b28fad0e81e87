"""What happened of late that no state shows any more: refusals, reversals, hung monitors, lost frames, clock offsets, drifts. Pure.

Counted as it is told, by minute or by VM; a look costs as much as there is of late, not as there are VMs. What a bound cuts off is the
oldest.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from shared.plan import Outcome, OutcomeState
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

HOUR_NS: Final = 3600 * NS_PER_S
MINUTE_NS: Final = 60 * NS_PER_S
REVERSALS_S: Final = 6 * 3600.0
QUARANTINE_NS: Final = HOUR_NS // 2
MAX_VMS: Final = 20_000  # with reversals or hung monitors remembered; a fleet has 10,000
OFFSETS: Final = 5  # newest readings of a host's clock: the one that travelled least is nearest to the truth
HOPELESS: Final = frozenset({RefusalCode.NOTHING_TO_DO, RefusalCode.STEP_DUPLICATE})  # say nothing of a fault


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Of the last hour's ended steps, those that hosts refused for one reason."""

    code: str
    refused: int
    steps: int


@dataclass
class Recent:
    """Give it every new outcome, status and drift; ask it what is so now. Times in ns of the coordinator's clock."""

    _minutes: deque[tuple[int, Counter[str]]] = field(default_factory=lambda: deque(maxlen=61))
    _turned: OrderedDict[str, tuple[str, int]] = field(default_factory=OrderedDict)
    _hung: OrderedDict[str, tuple[str, int]] = field(default_factory=OrderedDict)
    _offsets: dict[str, deque[float]] = field(default_factory=dict)
    _dropped: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # host -> in all, at the last rise more, when
    _drifts: dict[str, int] = field(default_factory=dict)

    def outcome(self, host_id: str, outcome: Outcome, now_ns: int) -> None:
        """One step ended, a host's own ones included."""
        vm_id, minute = outcome.step.vm_id, now_ns // MINUTE_NS
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, Counter()))
        counts = self._minutes[-1][1]
        if outcome.state is not OutcomeState.SHADOWED:
            counts[""] += 1
        if outcome.state is OutcomeState.REFUSED and outcome.code is not None and outcome.code not in HOPELESS:
            counts[outcome.code.value] += 1
        if outcome.code is RefusalCode.QUARANTINED:
            self._hung[vm_id] = (host_id, now_ns)
            self._hung.move_to_end(vm_id)
            _trim(self._hung)

    def turned(self, host_id: str, vm_id: str, now_ns: int) -> None:
        """A VM made so many turns that it is worth a look."""
        self._turned[vm_id] = (host_id, now_ns)
        self._turned.move_to_end(vm_id)
        _trim(self._turned)

    def heard(self, host_id: str, wall_ns: int, spool_dropped: int, now_ns: int) -> None:
        """A heartbeat: the host's clock, and frames that it has lost since it started."""
        self._offsets.setdefault(host_id, deque(maxlen=OFFSETS)).append((wall_ns - now_ns) / NS_PER_S)
        before = self._dropped.get(host_id)
        if before is None or spool_dropped < before[0]:  # an agent that started anew counts from nothing
            self._dropped[host_id] = (spool_dropped, spool_dropped, now_ns if spool_dropped else 0)
        elif spool_dropped > before[0]:
            self._dropped[host_id] = (spool_dropped, spool_dropped - before[0], now_ns)

    def drifted(self, reason: str, now_ns: int) -> None:
        """The forecasts were found to have worsened."""
        self._drifts[reason] = now_ns

    def forget(self, host_ids: frozenset[str]) -> None:
        """Hosts that there are no more."""
        for host_id in host_ids:
            self._offsets.pop(host_id, None)
            self._dropped.pop(host_id, None)

    def refused(self, now_ns: int) -> tuple[Refused, ...]:
        """By code, over the last hour."""
        total: Counter[str] = Counter()
        for minute, counts in self._minutes:
            if minute > now_ns // MINUTE_NS - 60:
                total += counts
        return tuple(Refused(code=code, refused=n, steps=total[""]) for code, n in sorted(total.items()) if code)

    def reversals(self, turns_of: Callable[[str], int], least: int) -> list[tuple[str, str, int]]:
        """(VM, host, turns) where `turns_of` (within six hours, now) says at least so many; others are no longer looked at."""
        found = [(vm_id, host_id, turns_of(vm_id)) for vm_id, (host_id, _) in self._turned.items()]
        for vm_id, _, turns in found:
            if turns < least:
                del self._turned[vm_id]
        return [each for each in found if each[2] >= least]

    def quarantined(self, now_ns: int) -> list[tuple[str, str, float]]:
        """(VM, host, seconds since its monitor was last found hung)."""
        found = [(vm_id, host, at) for vm_id, (host, at) in self._hung.items() if now_ns - at < QUARANTINE_NS]
        return [(vm_id, host, (now_ns - at) / NS_PER_S) for vm_id, host, at in found]

    def offsets_s(self) -> dict[str, float]:
        """host -> its clock less ours, of the newest heartbeats the one that travelled least: delay makes it look behind, never ahead."""
        return {host_id: max(seen) for host_id, seen in self._offsets.items()}

    def losing(self, now_ns: int) -> list[tuple[str, int]]:
        """(host, frames lost at the last rise) of hosts that lost some within the hour."""
        return [(host_id, more) for host_id, (_, more, at) in self._dropped.items() if at and now_ns - at < HOUR_NS]

    def drifts(self, now_ns: int) -> list[tuple[str, float]]:
        """(reason, seconds ago) of drifts within the hour."""
        return [(reason, (now_ns - at) / NS_PER_S) for reason, at in self._drifts.items() if now_ns - at < HOUR_NS]


def _trim(table: OrderedDict[str, tuple[str, int]]) -> None:
    while len(table) > MAX_VMS:
        table.popitem(last=False)
