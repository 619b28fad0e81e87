"""SLA error budgets by client: how much of the time its VMs may lack something, and how fast that is used up.

The burn rate of a window is the violated share of VM time in it over the client's budgeted share; 1 = just used up at the period's end.
Alone, a short window cries wolf and a long one comes late, so two windows must agree, and the shorter they are the faster they must burn,
as in the SRE workbook's multi-window alerts (ch. 5): an hour that burns six times too fast has used up 4 % of a week's budget, and a fast
hour once a week is what a budget is for. What counts is the largest over the pairs of  min(rate of short, rate of long) / how fast they
must burn; above 1 the client's VMs weigh more. A client that has overdrawn the whole period's budget counts with at least that overdraft.
Time not observed yet counts as good, as do buckets that nobody saw. Pure. What was counted is a document for each hour, to be made durable
with every bucket: a coordinator that starts again goes on where the last one stood. Documents have as many names as a period has hours, and
later hours take the place of those that no longer count. Bounded: windows hold buckets, clients that are gone are dropped after a period.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from coordinator.learning.sla import SlaSums
from coordinator.sizing.feasible import Objectives
from shared.units import BUCKET_S

DOCUMENT: Final = "error_budgets/"  # and a number
HOUR_S: Final = 3600
# Buckets of the short and the long window, and the share of a period's budget that the long one must use up: 5 min and 1 h, 30 min and 6 h,
# 6 h and 3 days. Of a week's budget the hour's share is used up at six times the pace that lasts.
PAIRS: Final = ((1, 12, 6 * 12 / 2016), (6, 72, 3 * 72 / 2016), (72, 864, 864 / 2016))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One client now. Shares of its VMs' time."""

    client: str
    budget: float  # share that it may lack something
    violated: float  # share that it did, over the period
    burn: float  # what counts: above 1 its VMs weigh more
    spent: float  # of the whole period's budget; above 1 = overdrawn
    observed_s: float  # VM time


@dataclass(slots=True)
class Account:
    """One client's newest buckets, (observed, violated) ns each, and their sums over the period."""

    newest: deque[tuple[int, int]]
    observed: int = 0
    violated: int = 0
    idle: int = 0  # buckets since anything was observed


class BudgetHour(msgspec.Struct, kw_only=True):
    """What was counted in one hour, as it is stored."""

    start_s: int
    counted_ns: int = 0  # samples up to then are in it
    parts: dict[str, list[tuple[int, int, int]]] = {}  # client -> (bucket of the hour, observed ns, violated ns)


@dataclass
class ErrorBudgets:
    """Give it the running sums of all VMs at the end of every bucket."""

    objectives: Objectives = field(default_factory=Objectives)
    accounts: dict[str, Account] = field(default_factory=dict)
    counted_ns: int = 0  # samples up to then are in the accounts
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    _newest_s: int | None = None  # start of the newest bucket
    _hour: BudgetHour | None = None

    def bucket(self, by_vm: Mapping[str, SlaSums], clients: Mapping[str, str], start_s: int | None = None, now_ns: int = 0) -> None:
        """A bucket ended. `by_vm`: sums since the start; `clients`: vm_id -> client, VMs that are not named are left out.

        `start_s`: of the bucket; None = it follows the one before and no document is kept.
        """
        grown: dict[str, tuple[int, int]] = {}
        seen: dict[str, tuple[int, int]] = {}
        for vm_id, sums in by_vm.items():
            now = (sums.observed_ns, sums.violated_ns)
            seen[vm_id] = now
            client = clients.get(vm_id)
            if client is None:
                continue
            before = self._seen.get(vm_id, (0, 0))
            observed, violated = grown.get(client, (0, 0))
            grown[client] = (observed + now[0] - before[0], violated + now[1] - before[1])
        self._seen = seen
        self._count(grown, start_s, now_ns)

    def document(self) -> tuple[str, str] | None:
        """(name, JSON) of the newest hour; None = no bucket was counted yet."""
        if self._hour is None:
            return None
        place = self._hour.start_s // HOUR_S % (self.objectives.period_s // HOUR_S + 2)
        return f"{DOCUMENT}{place}", msgspec.json.encode(self._hour).decode()

    def restore(self, documents: Mapping[str, str], now_s: int) -> None:
        """Go on from the documents of an earlier run, other ones among them. Nothing may have been counted before."""
        found = (msgspec.json.decode(text, type=BudgetHour) for name, text in sorted(documents.items()) if name.startswith(DOCUMENT))
        oldest_s = now_s - self.objectives.period_s - HOUR_S
        hours: dict[int, BudgetHour] = {}  # under another period an hour had another name
        for hour in found:
            if oldest_s < hour.start_s <= now_s and hour.counted_ns >= hours.get(hour.start_s, hour).counted_ns:
                hours[hour.start_s] = hour
        for _, hour in sorted(hours.items()):
            buckets: dict[int, dict[str, tuple[int, int]]] = {}
            for client, parts in hour.parts.items():
                for number, observed, violated in parts:
                    buckets.setdefault(number, {})[client] = (observed, violated)
            for number, grown in sorted(buckets.items()):
                self._count(grown, hour.start_s + number * BUCKET_S, hour.counted_ns)

    def pass_over(self, by_vm: Mapping[str, SlaSums], vm_ids: Iterable[str]) -> None:
        """The sums of these VMs have just grown by something that the accounts have already."""
        for vm_id in vm_ids:
            self._seen[vm_id] = (by_vm[vm_id].observed_ns, by_vm[vm_id].violated_ns)

    def _count(self, grown: Mapping[str, tuple[int, int]], start_s: int | None, now_ns: int) -> None:
        if start_s is not None:
            self._write_down(grown, start_s, now_ns)
        for client, part in grown.items():
            if client not in self.accounts:
                self.accounts[client] = Account(deque(maxlen=self.period))
            self._add(self.accounts[client], part)
        for client in [name for name in self.accounts if name not in grown]:
            self._add(self.accounts[client], (0, 0))
            if self.accounts[client].idle >= self.period:
                del self.accounts[client]

    def _write_down(self, grown: Mapping[str, tuple[int, int]], start_s: int, now_ns: int) -> None:
        missed = 0 if self._newest_s is None else min(self.period, (start_s - self._newest_s) // BUCKET_S - 1)
        for account in self.accounts.values():
            for _ in range(missed):
                self._add(account, (0, 0))
        self._newest_s, self.counted_ns = max(start_s, self._newest_s or 0), now_ns
        hour_s = start_s // HOUR_S * HOUR_S
        if self._hour is None or self._hour.start_s != hour_s:
            self._hour = BudgetHour(start_s=hour_s)
        self._hour.counted_ns = now_ns
        for client, (observed, violated) in grown.items():
            if observed:
                self._hour.parts.setdefault(client, []).append(((start_s - hour_s) // BUCKET_S, observed, violated))

    @property
    def period(self) -> int:
        """In buckets."""
        return max(1, self.objectives.period_s // BUCKET_S)

    def standing(self, client: str) -> Standing | None:
        """None = not one of its VMs was observed."""
        account = self.accounts.get(client)
        if account is None or account.observed == 0:
            return None
        budget = self.objectives.of(client)
        violated = account.violated / account.observed
        whole = account.observed * self.period / len(account.newest)
        spent = account.violated / (budget * whole)
        rates = [
            min(rate(account, short, budget), rate(account, long, budget)) / max(1.0, share * self.period / long)
            for short, long, share in PAIRS
        ]
        return Standing(
            client=client,
            budget=budget,
            violated=violated,
            burn=max(spent if spent > 1.0 else 0.0, *rates),
            spent=spent,
            observed_s=account.observed / 1e9,
        )

    def standings(self) -> tuple[Standing, ...]:
        """Every client that was observed, by name."""
        found = (self.standing(client) for client in sorted(self.accounts))
        return tuple(each for each in found if each is not None)

    def burn_rates(self, clients: Mapping[str, str]) -> dict[str, float]:
        """vm_id -> burn rate of its client, where that is above 1."""
        burning = {each.client: each.burn for each in self.standings() if each.burn > 1.0}
        return {vm_id: burning[client] for vm_id, client in clients.items() if client in burning} if burning else {}

    @staticmethod
    def _add(account: Account, part: tuple[int, int]) -> None:
        if len(account.newest) == account.newest.maxlen:
            observed, violated = account.newest[0]
            account.observed -= observed
            account.violated -= violated
        account.newest.append(part)
        account.observed += part[0]
        account.violated += part[1]
        account.idle = 0 if part[0] else account.idle + 1


def rate(account: Account, buckets: int, budget: float) -> float:
    """Burn rate over the newest buckets, as far as the period reaches; 0 where nothing was observed in them."""
    newest = account.newest
    whole = min(buckets, newest.maxlen or buckets)
    parts = [newest[i] for i in range(max(0, len(newest) - whole), len(newest))]
    observed = sum(part[0] for part in parts)
    return sum(part[1] for part in parts) * len(parts) / (observed * whole * budget) if observed else 0.0
