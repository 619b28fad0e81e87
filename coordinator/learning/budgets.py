"""SLA error budgets by client: how much of the time its VMs may lack something, and how fast that is used up.

The burn rate of a window is the violated share of VM time in it over the client's budgeted share; 1 = just used up at the period's end.
Alone, a short window cries wolf and a long one comes late, so two windows must agree, and the shorter they are the faster they must burn,
as in the SRE workbook's multi-window alerts (ch. 5): an hour that burns six times too fast has used up 4 % of a week's budget, and a fast
hour once a week is what a budget is for. What counts is the largest over the pairs of  min(rate of short, rate of long) / how fast they
must burn; above 1 the client's VMs weigh more. A client that has overdrawn the whole period's budget counts with at least that overdraft.
Time not observed yet counts as good. Pure, in memory: the period begins with the coordinator. Bounded: windows hold buckets, clients that
are gone are dropped after a period.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from coordinator.learning.sla import SlaSums
from coordinator.sizing.feasible import Objectives
from shared.units import BUCKET_S

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


@dataclass
class ErrorBudgets:
    """Give it the running sums of all VMs at the end of every bucket."""

    objectives: Objectives = field(default_factory=Objectives)
    accounts: dict[str, Account] = field(default_factory=dict)
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def bucket(self, by_vm: Mapping[str, SlaSums], clients: Mapping[str, str]) -> None:
        """A bucket ended. `by_vm`: sums since the start; `clients`: vm_id -> client, VMs that are not named are left out."""
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
        for client, part in grown.items():
            if client not in self.accounts:
                self.accounts[client] = Account(deque(maxlen=self.period))
            self._add(self.accounts[client], part)
        for client in [name for name in self.accounts if name not in grown]:
            self._add(self.accounts[client], (0, 0))
            if self.accounts[client].idle >= self.period:
                del self.accounts[client]

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
