"""What VMs took, what it cost and drew, and what they would have cost at their static size or under the reactive rule.

share of a host = the larger of CPU granted / CPU that the host may promise and the same of memory (dominant resource); unlimited = maximum
rent            = share x the pool's price of the host in that hour of the day
energy          = share x the host's idle watts + CPU used / CPU of the host x (watts at 100 % - idle watts), over time
cost            = rent + energy x the pool's price of energy
The same formula with the static size, or what the reactive rule would have granted (shadow_rules.py), in place of what was granted; use is
what it was. Buckets of which nothing is known count nothing, for any of them. Fed chunk by chunk in order of time. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from coordinator.learning.shadow_rules import RuleState, replay
from coordinator.model import F32, F64
from shared.units import BUCKET_S, CPU, GIB, MEMORY

HOURS: Final = BUCKET_S / 3600
GRANTED, STATIC, REACTIVE = range(3)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of the host of each VM; NaN where it is not known. float64[v] and price float64[v, 24] by hour of the day in UTC."""

    cpu_millicores: F64
    cpu_commit_millicores: F64
    memory_commit_bytes: F64
    price: F64
    energy_price_per_kwh: F64
    idle_watts: F64
    full_watts: F64

    def of(self, rows: slice) -> Rates:
        """Of these VMs."""
        return Rates(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Sums of each VM over the time, float64[v]; money and energy [v, 3] by GRANTED, STATIC, REACTIVE, NaN where a rate is not known."""

    known_hours: F64
    cpu_used_core_hours: F64
    memory_used_gib_hours: F64
    cpu_core_hours: F64  # [v, 3]
    memory_gib_hours: F64  # [v, 3]
    energy_kwh: F64  # [v, 3]
    rent: F64  # [v, 3]
    energy_cost: F64  # [v, 3]

    @classmethod
    def joined(cls, parts: Sequence[Taken]) -> Taken:
        """The VMs of all parts, one part behind the other."""
        return cls(**{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)})


class Meter:
    """`static` float64[v, 2]: maxima of CPU and memory, NaN where a VM is gone."""

    def __init__(self, static: F64, rates: Rates) -> None:
        self._static, self._rates = static, rates
        self._reactive = [RuleState.start(static[:, i]) for i in range(2)]
        v = len(static)
        self._known, self._used = np.zeros(v), np.zeros((v, 2))
        self._granted, self._kwh, self._rent = np.zeros((v, 2, 3)), np.zeros((v, 3)), np.zeros((v, 3))

    def take(self, first_s: int, history: Mapping[str, F32]) -> None:
        """The next buckets from `first_s` on: peak, usage, mean, allocation float32[v, r, b]."""
        use, granted = [], np.zeros((len(self._static), 2, 3, history["peak"].shape[2]))
        known = ~np.isnan(history["mean"][:, CPU]) & ~np.isnan(history["mean"][:, MEMORY])
        for i, r in enumerate((CPU, MEMORY)):
            static = self._static[:, i]
            used = np.where(np.isnan(history["usage"][:, r]), history["mean"][:, r], history["usage"][:, r]).astype(np.float64)
            use.append(np.where(known, used, 0.0))
            limit = np.where(np.isnan(history["allocation"][:, r]), np.inf, history["allocation"][:, r])
            peak = np.where(known, history["peak"][:, r], np.nan).astype(np.float64)
            rule = replay(peak, static, self._reactive[i], r).granted
            for way, value in ((GRANTED, np.fmin(limit, static[:, None])), (STATIC, static[:, None]), (REACTIVE, rule)):
                granted[:, i, way] = np.where(known, value, 0.0)
            self._used[:, i] += use[i].sum(axis=1)
        self._known += known.sum(axis=1)
        self._granted += granted.sum(axis=-1)
        rates = self._rates
        share = np.fmax(
            granted[:, 0] / rates.cpu_commit_millicores[:, None, None], granted[:, 1] / rates.memory_commit_bytes[:, None, None]
        )
        busy = use[0] / rates.cpu_millicores[:, None]
        drawn = share * rates.idle_watts[:, None, None] + (busy * (rates.full_watts - rates.idle_watts)[:, None])[:, None, :]
        self._kwh += np.where(known[:, None, :], drawn, 0.0).sum(axis=-1) * HOURS / 1000.0
        hour = (first_s + BUCKET_S * np.arange(share.shape[-1])) // 3600 % 24
        self._rent += (share * rates.price[:, hour][:, None, :]).sum(axis=-1) * HOURS

    def taken(self) -> Taken:
        """What it comes to."""
        return Taken(
            known_hours=self._known * HOURS,
            cpu_used_core_hours=self._used[:, 0] * HOURS / 1000.0,
            memory_used_gib_hours=self._used[:, 1] * HOURS / GIB,
            cpu_core_hours=self._granted[:, 0] * HOURS / 1000.0,
            memory_gib_hours=self._granted[:, 1] * HOURS / GIB,
            energy_kwh=self._kwh,
            rent=self._rent,
            energy_cost=self._kwh * self._rates.energy_price_per_kwh[:, None],
        )
