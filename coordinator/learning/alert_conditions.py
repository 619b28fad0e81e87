"""Which conditions hold, from what the coordinator knows: one small function per rule, in the order of the table. Pure.

`judged_now` is asked at every look and costs O(hosts); `judged_by_bucket` after every decision, over arrays, so a VM costs no Python
unless it is found. Of each rule at most MAX_FOUND are named, the worst first; the last one says how many there are beside them. NaN and
None are unknown: they raise nothing, and what stands because of them stays (`blind` of a look).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from coordinator.learning.accuracy import Accuracy
from coordinator.learning.alerts import OVERFLOW, Finding, Rule
from coordinator.learning.budgets import Standing
from coordinator.learning.recent import Refused
from coordinator.learning.shortfall import Shortfall, amount
from coordinator.model import BucketBlock, ForecastBlock, NoForecast
from coordinator.sizing.feasible import Infeasible
from shared.units import CPU, GIB, MEMORY, RESOURCES

MAX_FOUND: Final = 100  # of one rule: more are one cause, and nobody reads them
LEAST_PAIRS: Final = 500.0  # scored pairs of a resource below which a day's accuracy says nothing
# judged once a bucket, so before the first decision after a start nothing can be said of them
BY_BUCKET: Final = frozenset(
    {
        "VmAtItsLimit",
        "VmsOutOfCalibration",
        "BudgetBurning",
        "BudgetSpent",
        "ObjectiveInfeasible",
        "CapacityShortfall",
        "HostShortfall",
        "ForecastInaccurate",
        "ForecastCoverageLow",
    }
)
LEAST_STEPS: Final = 20  # ended steps in an hour below which a share of refusals says nothing


@dataclass(frozen=True, kw_only=True)
class HostNow:
    """One host as last heard. NaN = not known."""

    host_id: str
    alive: bool
    asleep: bool = False  # it was put to sleep, or is waking: its silence is meant
    why_silent: str = ""
    cpu_share: float = float("nan")
    memory_share: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class FleetNow:
    """What `judged_now` looks at."""

    hosts: Sequence[HostNow] = ()
    offsets_s: Mapping[str, float] = field(default_factory=dict)
    losing: Sequence[tuple[str, int]] = ()  # host, frames
    refused: Sequence[Refused] = ()
    reversals: Sequence[tuple[str, str, int]] = ()  # VM, host, turns
    quarantined: Sequence[tuple[str, str, float]] = ()  # VM, host, seconds ago
    drifts: Sequence[tuple[str, float]] = ()  # reason, seconds ago
    certificates: Mapping[str, float | None] = field(default_factory=dict)  # file -> days left; None = cannot be read
    disk_free: float | None = None  # share
    wal_share: float | None = None
    registry_error: str | None = None
    decided_s: float | None = None  # since the last decision; None = no agent is connected
    undelivered_s: Mapping[str, float] = field(default_factory=dict)  # receiver -> age of the oldest that waits
    beyond: int = 0  # conditions that found no room


@dataclass(frozen=True, kw_only=True)
class BucketSeen:
    """What `judged_by_bucket` looks at, after a decision."""

    bucket: BucketBlock | None = None
    forecast: ForecastBlock | None = None
    named: Callable[[str], tuple[str, str, str] | None] = lambda _vm_id: None  # vm_id -> name, host, client
    standings: Sequence[Standing] = ()
    infeasible: Sequence[Infeasible] = ()
    shortfalls: Sequence[Shortfall] = ()
    accuracy: Accuracy | None = None


def judged_now(now: FleetNow, rules: Mapping[str, Rule]) -> list[Finding]:
    """Of the rules that are in force."""
    found = [*_hosts(now, rules), *_told(now, rules), *_own(now, rules)]
    return _capped(each for each in found if each.rule in rules)


def judged_by_bucket(seen: BucketSeen, rules: Mapping[str, Rule]) -> list[Finding]:
    """Of the rules that are in force."""
    found = [*_vms(seen, rules), *_promises(seen), *_ahead(seen), *_forecasts(seen, rules)]
    return _capped(each for each in found if each.rule in rules)


def _hosts(now: FleetNow, rules: Mapping[str, Rule]) -> Iterable[Finding]:
    most, off = _threshold(rules, "HostBusy"), _threshold(rules, "ClockOffset")
    for host in now.hosts:
        if not host.alive:
            if not host.asleep:
                yield Finding(
                    rule="AgentStale", labels={"host": host.host_id}, value=1.0, summary=f"{host.host_id} is silent: {host.why_silent}"
                )
            continue
        for r, share in ((CPU, host.cpu_share), (MEMORY, host.memory_share)):
            if share > most:
                labels = {"host": host.host_id, "resource": RESOURCES[r]}
                what = "CPU" if r == CPU else "memory"
                yield Finding(rule="HostBusy", labels=labels, value=share, summary=f"{host.host_id} uses {share:.1%} of its {what}")
        offset = now.offsets_s.get(host.host_id, 0.0)
        if abs(offset) > off:
            text = f"{host.host_id}'s clock is {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}; allowed are {off:g} s"
            yield Finding(rule="ClockOffset", labels={"host": host.host_id}, value=offset, summary=text)


def _told(now: FleetNow, rules: Mapping[str, Rule]) -> Iterable[Finding]:
    """Rules over what agents said of late."""
    for host_id, frames in now.losing:
        yield Finding(
            rule="AgentLosesSamples", labels={"host": host_id}, value=frames, summary=f"{host_id} lost {frames} frames of samples"
        )
    for vm_id, host_id, ago_s in now.quarantined:
        text = f"the monitor of {vm_id} on {host_id} did not answer, last {ago_s / 60:.0f} minutes ago"
        yield Finding(rule="VmQuarantined", labels={"vm": vm_id, "host": host_id}, value=1.0, summary=text)
    for part in now.refused:
        share = part.refused / max(part.steps, 1)
        if part.steps >= LEAST_STEPS and share > _threshold(rules, "StepsRefused"):
            text = f"hosts refused {part.refused} of {part.steps} steps of the last hour: {part.code}"
            yield Finding(rule="StepsRefused", labels={"code": part.code}, value=share, summary=text)
    for vm_id, host_id, turns in now.reversals:
        text = f"{vm_id} on {host_id} was grown and shrunk again {turns} times in six hours"
        yield Finding(rule="VmFlapping", labels={"vm": vm_id, "host": host_id}, value=turns, summary=text)
    for reason, ago_s in now.drifts:
        text = f"the forecasts have worsened for long ({reason}), found {ago_s / 60:.0f} minutes ago"
        yield Finding(rule="ForecastDrift", labels={"reason": reason}, value=1.0, summary=text)


def _own(now: FleetNow, rules: Mapping[str, Rule]) -> Iterable[Finding]:
    """Rules over the coordinator itself."""
    soon, unusable = _threshold(rules, "CertificateExpiring"), _threshold(rules, "CertificateUnusable")
    for file, days in now.certificates.items():
        if days is None:
            yield Finding(rule="CertificateUnusable", labels={"file": file}, value=None, summary=f"{file} cannot be read")
        elif days < unusable:
            text = f"{file} {f'expires in {days * 24:.0f} hours' if days > 0 else f'expired {-days:.1f} days ago'}"
            yield Finding(rule="CertificateUnusable", labels={"file": file}, value=days, summary=text)
        elif days < soon:
            yield Finding(rule="CertificateExpiring", labels={"file": file}, value=days, summary=f"{file} expires in {days:.0f} days")
    if now.disk_free is not None and now.disk_free < _threshold(rules, "DiskFilling"):
        yield Finding(rule="DiskFilling", labels={}, value=now.disk_free, summary=f"{now.disk_free:.1%} of state_dir's disk is free")
    if now.wal_share is not None and now.wal_share > _threshold(rules, "FrameLogFilling"):
        yield Finding(rule="FrameLogFilling", labels={}, value=now.wal_share, summary=f"the log of frames is {now.wal_share:.0%} full")
    if now.registry_error is not None:
        yield Finding(rule="RegistryFailing", labels={}, value=1.0, summary=f"the registry does not take alerts: {now.registry_error}")
    if now.decided_s is not None and now.decided_s > _threshold(rules, "DecisionsStuck"):
        text = f"no decision for {now.decided_s / 60:.0f} minutes, with agents connected"
        yield Finding(rule="DecisionsStuck", labels={}, value=now.decided_s, summary=text)
    for receiver, age_s in now.undelivered_s.items():
        if age_s > _threshold(rules, "AlertsUndelivered"):
            text = f"{receiver} has not taken alerts for {age_s / 60:.0f} minutes"
            yield Finding(rule="AlertsUndelivered", labels={"receiver": receiver}, value=age_s, summary=text)
    if now.beyond:
        yield Finding(rule=OVERFLOW, labels={}, value=now.beyond, summary=f"and {now.beyond} more conditions hold that are not shown")


def _vms(seen: BucketSeen, rules: Mapping[str, Rule]) -> Iterable[Finding]:
    """VMs at a limit: of the closed bucket, by what they used of what was in force."""
    bucket = seen.bucket
    if bucket is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(bucket.allocation > 0, bucket.usage / bucket.allocation, np.nan)
        share = np.where(np.isfinite(share), share, -1.0)
        found = np.flatnonzero(share > _threshold(rules, "VmAtItsLimit"))
        worst = found[np.argsort(-share.flat[found], kind="stable")][: MAX_FOUND if len(found) <= MAX_FOUND else MAX_FOUND - 1]
        if len(found) > len(worst):  # a storm over all VMs costs no more than this
            yield _others("VmAtItsLimit", len(found) - len(worst))
        for v, r in zip(*(each.tolist() for each in np.unravel_index(worst, share.shape)), strict=True):
            vm_id = bucket.vm_ids[v]
            name, host_id, client = seen.named(vm_id) or (vm_id, bucket.host_ids[v], "")
            labels = {"vm": vm_id, "name": name, "host": host_id, "client": client, "resource": RESOURCES[r]}
            text = f"{name} used {share[v, r]:.1%} of its {amount(r, float(bucket.allocation[v, r]))} in the last bucket"
            yield Finding(rule="VmAtItsLimit", labels=labels, value=float(share[v, r]), summary=text)
    forecast = seen.forecast
    if forecast is not None and forecast.vm_ids:
        for r, resource in enumerate(RESOURCES):
            off = int((forecast.reason[:, r] == NoForecast.OUT_OF_CALIBRATION).sum())
            share_off = off / len(forecast.vm_ids)
            if share_off > _threshold(rules, "VmsOutOfCalibration"):
                text = f"{off} of {len(forecast.vm_ids)} VMs' forecasts of {resource} are out of calibration"
                yield Finding(rule="VmsOutOfCalibration", labels={"resource": resource}, value=share_off, summary=text)


def _promises(seen: BucketSeen) -> Iterable[Finding]:
    for each in seen.standings:
        labels = {"client": each.client}
        used = f"lacked something in {each.violated:.2%} of its VMs' time, allowed are {each.budget:.2%}"
        if each.burn > 1.0:
            yield Finding(
                rule="BudgetBurning", labels=labels, value=each.burn, summary=f"{each.client} burns {each.burn:.1f} times too fast: {used}"
            )
        if each.spent > 1.0:
            yield Finding(
                rule="BudgetSpent",
                labels=labels,
                value=each.spent,
                summary=f"{each.client} has used {each.spent:.0%} of its budget: {used}",
            )
    for lack in seen.infeasible:
        labels = {"client": lack.client, "cause": lack.cause, "resource": RESOURCES[lack.resource]}
        where = f" at {lack.where}" if lack.where else ""
        text = (
            f"{lack.client} will lack {amount(lack.resource, lack.missing)}{where} within {5 * (lack.last_step + 1)} minutes: {lack.cause}"
        )
        yield Finding(rule="ObjectiveInfeasible", labels=labels, value=lack.missing, summary=text)


def _ahead(seen: BucketSeen) -> Iterable[Finding]:
    for each in seen.shortfalls:
        labels = {"pool": each.pool, "resource": RESOURCES[each.resource]}
        value = each.missing / GIB if each.resource == MEMORY else each.missing
        if each.host_id:
            yield Finding(rule="HostShortfall", labels={**labels, "host": each.host_id}, value=value, summary=each.summary, advice=each.fix)
        else:
            yield Finding(rule="CapacityShortfall", labels=labels, value=value, summary=each.summary, advice=each.fix)


def _forecasts(seen: BucketSeen, rules: Mapping[str, Rule]) -> Iterable[Finding]:
    told = seen.accuracy
    if told is None:
        return
    for r, resource in enumerate(RESOURCES):
        if not told.pairs[r] >= LEAST_PAIRS:
            continue
        loss, inside = float(told.to_naive[r]), float(told.coverage_80[r])
        if loss > _threshold(rules, "ForecastInaccurate"):
            text = f"the loss of a day's forecasts of {resource} is {loss:.2f} times the naive forecast's"
            yield Finding(rule="ForecastInaccurate", labels={"resource": resource}, value=loss, summary=text)
        if inside < _threshold(rules, "ForecastCoverageLow"):
            text = f"{inside:.0%} of a day's actuals of {resource} lie within the 80 % band"
            yield Finding(rule="ForecastCoverageLow", labels={"resource": resource}, value=inside, summary=text)


def _threshold(rules: Mapping[str, Rule], name: str) -> float:
    """NaN, with which nothing compares, where the rule is not in force."""
    rule = rules.get(name)
    return float("nan") if rule is None or rule.threshold is None else rule.threshold


def _capped(found: Iterable[Finding]) -> list[Finding]:
    """Each condition once, the worst; of each rule at most MAX_FOUND, and how many there are beside them in the last one's words."""
    worst: dict[tuple[str, tuple[tuple[str, str], ...]], Finding] = {}
    for each in found:
        key = (each.rule, tuple(sorted(each.labels.items())))
        if key not in worst or _size(each) > _size(worst[key]):
            worst[key] = each
    by_rule: dict[str, list[Finding]] = {}
    for each in worst.values():
        by_rule.setdefault(each.rule, []).append(each)
    kept: list[Finding] = []
    for rule, named in by_rule.items():
        if len(named) <= MAX_FOUND:
            kept += named
            continue
        named.sort(key=lambda each: (-_size(each), sorted(each.labels.items())))
        kept += [*named[: MAX_FOUND - 1], _others(rule, len(named) - MAX_FOUND + 1)]
    return kept


def _others(rule: str, many: int) -> Finding:
    return Finding(rule=rule, labels={"others": "true"}, value=many, summary=f"and {many} more")


def _size(found: Finding) -> float:
    return float("inf") if found.value is None else abs(found.value)
