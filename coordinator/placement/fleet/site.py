"""What the fleet is beyond what agents tell: pools and their prices, power, fault domains, hosts set aside, rules over VMs. Data only.

Names of hosts, VMs, clients and applications are globs (fnmatch, case counts). The first pool that names a host is its pool; a host that
no pool names is in the last pool without `hosts`, or in one of built-in values. Of several [[hosts]] entries for a host, a later one wins
field by field. Money is whatever unit the operator counts in: all prices share it. `site_file.py` reads and checks the TOML file.
Invariant: a Site that exists is valid by itself; what only shows against a fleet (a pool without hosts) is named when a problem is built.
"""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from shared.model import Priority

__all__ = ["DEFAULT_SITE", "Duty", "HostTraits", "Pool", "Rule", "RuleSort", "Site", "host_traits", "rack_of"]

Glob = Annotated[str, Meta(min_length=1, max_length=256)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Money = Annotated[float, Meta(ge=0, le=10**9)]  # typing keeps one of two equal annotations: written as an integer wherever it is
Share = Annotated[float, Meta(ge=0, le=1)]
Watts = Annotated[float, Meta(ge=0, le=1e5)]
Seconds = Annotated[int, Meta(ge=0, le=86_400)]
Curve = Annotated[tuple[Watts, ...], Meta(min_length=11, max_length=11)]
# SPECpower_ssj2008 of an HP ProLiant ML110 G5 (two cores, 2011), as CloudSim uses it; a site with other hosts states its own
WATTS: Final = (93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0)


class Duty(StrEnum):
    """What the operator wants of a host."""

    ACTIVE = "active"
    MAINTENANCE = "maintenance"  # its VMs are to leave, and none may come
    SPARE = "spare"  # the same: kept empty for when another host fails


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hosts that are bought, powered and trusted alike."""

    name: Name
    hosts: tuple[Glob, ...] = ()  # none: every host that no other pool names
    region: Annotated[str, Meta(max_length=128)] = ""
    provider: Annotated[str, Meta(max_length=128)] = ""
    price_per_hour: Money = 0.0  # of one host; 0 = it is owned, only its energy costs
    price_by_hour: Annotated[tuple[Money, ...], Meta(max_length=24)] = ()  # 24 prices instead, by hour of the day in UTC
    empty_price_share: Share = 1.0  # of the price that an empty host still costs: 0 = it is handed back
    spot: bool = False  # may be taken away at any time: never holds critical VMs
    interruptions_per_hour: Annotated[float, Meta(ge=0, le=60)] = 0.0  # of one host
    interruption_minutes: Annotated[float, Meta(ge=0, le=1440)] = 5.0  # that its VMs are then down
    energy_price_per_kwh: Money = 0.25
    energy_kwh_per_day: Annotated[float, Meta(ge=0, le=10**9)] | None = None  # budget of the pool; None = none
    energy_budget: Annotated[str, Meta(pattern="^(hard|priced)$")] = "priced"
    over_budget_price_per_kwh: Money = 1.0  # of each kWh beyond a priced budget, on top of the energy's own price
    watts: Curve = WATTS  # of one host at 0, 10, .. 100 % of its CPU
    sleep: bool = False  # its empty hosts may be put to sleep
    sleep_watts: Watts = 6.0
    sleep_s: Seconds = 60
    wake_s: Seconds = 180
    power_adapter: Annotated[str, Meta(max_length=64)] = ""  # how hosts are woken and put to sleep, by the adapter's name
    spares: Annotated[int, Meta(ge=0, le=1000)] = 0  # hosts kept empty; the largest of the empty ones
    reserve: Annotated[float, Meta(ge=0, le=0.9)] = 0.0  # share of every host kept free of demand
    disk_bytes_per_s: Annotated[float, Meta(gt=0, le=1e13)] | None = None  # what a host's disks carry; None = not known, never binds

    def price_at(self, hour: int) -> float:
        """Money of one host for this hour of the day (UTC, 0 to 23)."""
        return self.price_by_hour[hour] if self.price_by_hour else self.price_per_hour


class HostTraits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs for some hosts; None = as the pool says."""

    hosts: Annotated[tuple[Glob, ...], Meta(min_length=1)]
    domains: dict[Name, Name] = {}  # level -> fault domain: {rack = "r1", zone = "z1"}
    state: Duty | None = None
    watts: Curve | None = None
    sleep: bool | None = None
    sleep_watts: Watts | None = None
    sleep_s: Seconds | None = None
    wake_s: Seconds | None = None
    power_adapter: Annotated[str, Meta(max_length=64)] | None = None
    disk_bytes_per_s: Annotated[float, Meta(gt=0, le=1e13)] | None = None


class RuleSort(StrEnum):
    """What a rule asks."""

    APART = "apart"  # at most `limit` in one fault domain of `level`
    SPREAD = "spread"  # the same; reads better with a level above the host
    TOGETHER = "together"  # all in one fault domain of `level`
    LICENSED = "licensed"  # in at most `limit` fault domains of `level`
    PINNED = "pinned"  # only on these pools or hosts
    NEVER_SPOT = "never_spot"  # on no spot pool; holds for critical VMs by itself
    FIXED = "fixed"  # not to be moved, and `why`


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule over the VMs that every given list matches (an empty list matches all)."""

    name: Name
    kind: RuleSort
    clients: tuple[Glob, ...] = ()
    applications: tuple[Glob, ...] = ()
    vms: tuple[Glob, ...] = ()  # by id or name
    each: Annotated[str, Meta(pattern="^(client|application)?$")] = ""  # a rule for each of them by itself, not over all
    level: Name = "host"
    limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    pools: tuple[Name, ...] = ()
    hosts: tuple[Glob, ...] = ()
    why: Annotated[str, Meta(max_length=256)] = ""


class Penalties(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money that a client loses in a minute in which its VM gets nothing at all, by priority."""

    low: Money = 0.002
    normal: Money = 0.01
    high: Money = 0.03
    critical: Money = 0.10

    def of(self, priority: Priority) -> float:
        """The penalty of this priority."""
        return (self.low, self.normal, self.high, self.critical)[priority]


class Moving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What migrations cost and how many there may be."""

    bytes_per_s: Annotated[float, Meta(ge=1e6, le=1e12)] = 1e9 / 8
    dirty_bytes_per_core_s: Annotated[float, Meta(ge=0, le=1e10)] = 20e6  # assumed until a VM's dirty rate was measured
    converges_below: Annotated[float, Meta(gt=0, lt=1)] = 0.8  # dirty rate over bandwidth beyond which a live migration does not end
    base: Money = 0.0005  # of any move: risk, attention, cold caches
    slowdown: Share = 0.15  # of its work that a VM loses while its memory is copied
    pause_s: Annotated[float, Meta(ge=0, le=3600)] = 1.0  # that it stands still at the end
    cooldown_s: Annotated[int, Meta(ge=0, le=604_800)] = 3600  # a VM that moved is left where it is this long
    moves_max: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None  # of one plan
    arrivals_max: Annotated[int, Meta(ge=1, le=100_000)] | None = None  # to one host in one plan
    departures_max: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    margin: Annotated[float, Meta(ge=0, le=10)] = 0.1  # a plan saves more than its moves cost by this share, or nothing moves


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    pools: tuple[Pool, ...] = ()
    hosts: tuple[HostTraits, ...] = ()
    rules: tuple[Rule, ...] = ()
    penalty_per_minute: Penalties = Penalties()
    moving: Moving = Moving()
    numa_slowdown: Share = 0.05  # of its work that a VM loses on a host of which no single NUMA node holds it
    broken_rule: Annotated[float, Meta(gt=0, le=1e9)] = 1000.0  # money of one broken rule, or of passing a hard limit by its whole size
    priced: bool = True  # False: there is no site file, and plans say so

    def pool_of(self, host_id: str) -> Pool:
        """The pool of a host."""
        for pool in self.pools:
            if pool.hosts and matches(host_id, pool.hosts):
                return pool
        return next((pool for pool in reversed(self.pools) if not pool.hosts), EVERYWHERE)


EVERYWHERE: Final = Pool(name="default")
DEFAULT_SITE: Final = Site(priced=False)
RACK: Final = "rack"  # the level of fault domains that waves of migrations count
_POOL_FIELDS: Final = ("watts", "sleep", "sleep_watts", "sleep_s", "wake_s", "power_adapter", "disk_bytes_per_s")


def host_traits(site: Site, host_id: str) -> HostTraits:
    """All that is known of one host, nothing left open but disks that nobody stated."""
    pool = site.pool_of(host_id)
    found: dict[str, object] = {name: getattr(pool, name) for name in _POOL_FIELDS}
    found |= {"state": Duty.ACTIVE, "domains": {}}
    for entry in site.hosts:
        if matches(host_id, entry.hosts):
            given = {name: getattr(entry, name) for name in (*_POOL_FIELDS, "state")}
            found |= {name: value for name, value in given.items() if value is not None}
            found["domains"] = {**found["domains"], **entry.domains}  # type: ignore[dict-item]  # a dict since the first line
    return HostTraits(hosts=(host_id,), **found)  # type: ignore[arg-type]  # each field has its own type


def rack_of(site: Site, host_id: str) -> str:
    """The host's fault domain of level "rack"; "" = the site names none."""
    return host_traits(site, host_id).domains.get(RACK, "")


def matches(name: str, globs: tuple[str, ...]) -> bool:
    """Whether any of the globs matches the whole name."""
    return any(fnmatchcase(name, glob) for glob in globs)
