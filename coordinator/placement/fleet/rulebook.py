"""A site's rules as arrays over one fleet's VMs and hosts: kinds (who may be where), rules over sets, who stays and why. Pure.

A rule counts all its VMs, those on hosts that the problem leaves out too (`Rules.outside`). Raises Refusal(CONTRADICTORY_RULES) naming the
rules where no assignment could keep them: together and apart over the same VMs, pinned to nothing that is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate

import numpy as np
from numpy.typing import NDArray

from coordinator.placement.fleet.site import Pool, Rule, RuleSort, Site, matches
from coordinator.placement.problem import F64, I32, Bool, RuleKind, Rules
from shared.errors import Refusal
from shared.model import Priority
from shared.refusal import RefusalCode

SETS: dict[RuleSort, RuleKind] = {
    RuleSort.APART: RuleKind.APART,
    RuleSort.SPREAD: RuleKind.APART,
    RuleSort.TOGETHER: RuleKind.TOGETHER,
    RuleSort.LICENSED: RuleKind.LICENSED,
}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Who the VMs are, [v]. Those that the problem holds come first; the others are on hosts that it leaves out."""

    ids: Sequence[str]
    names: Sequence[str]
    clients: Sequence[str]
    applications: Sequence[str]

    def match(self, rule: Rule) -> Bool:
        """Which VMs [v] a rule speaks of."""
        chosen = np.ones(len(self.ids), bool)
        for globs, *columns in ((rule.clients, self.clients), (rule.applications, self.applications), (rule.vms, self.ids, self.names)):
            if globs:
                wanted = re.compile("|".join(translate(glob) for glob in globs))
                found = np.zeros(len(self.ids), bool)
                for column in columns:
                    hits = {text for text in set(column) if wanted.match(text)}
                    found |= np.fromiter((text in hits for text in column), bool, len(column))
                chosen &= found
        return chosen


def rule_sets(site: Site, labels: Labels) -> list[tuple[str, Rule, I32]]:
    """(name, rule, VMs) of every rule over sets, one for each client or application where it says so; of two VMs or more."""
    found = []
    for rule in site.rules:
        if rule.kind not in SETS:
            continue
        members = np.flatnonzero(labels.match(rule)).astype(np.int32)
        if not rule.each:
            found.append((rule.name, rule, members))
            continue
        column = labels.clients if rule.each == "client" else labels.applications
        parts: dict[str, list[int]] = {}
        for v in members.tolist():
            if column[v]:
                parts.setdefault(column[v], []).append(v)
        found += [(f"{rule.name} ({text})", rule, np.array(vms, np.int32)) for text, vms in sorted(parts.items())]
    return [part for part in found if len(part[2]) > 1]


def make_rules(sets: Sequence[tuple[str, Rule, I32]], levels: Sequence[str], domain: I32, home: I32, inside_vms: int) -> Rules:
    """Rules over the problem's VMs (the first `inside_vms`) and hosts; domain [level, all hosts], home [all VMs] index all hosts."""
    if not sets:
        return Rules()
    check_sets(sets, levels, domain)
    size = int(domain.max()) + 1
    outside = np.zeros((len(sets), size), np.int32)
    parts = []
    for r, (_, rule, members) in enumerate(sets):
        away = members[members >= inside_vms]
        np.add.at(outside[r], domain[levels.index(rule.level)][home[away]], 1)
        parts.append(members[members < inside_vms])
    return Rules(
        kind=np.array([SETS[rule.kind] for _, rule, _ in sets], np.int32),
        limit=np.array([rule.limit for _, rule, _ in sets], np.int32),
        level=np.array([levels.index(rule.level) for _, rule, _ in sets], np.int32),
        start=np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32),
        members=np.concatenate(parts).astype(np.int32),
        names=tuple(name for name, _, _ in sets),
        outside=outside if outside.any() else np.zeros((0, 0), np.int32),
    )


def check_sets(sets: Sequence[tuple[str, Rule, I32]], levels: Sequence[str], domain: I32) -> None:
    """Refuse VMs that must be together within what another rule wants them apart in."""
    together = [part for part in sets if part[1].kind is RuleSort.TOGETHER]
    apart = [part for part in sets if SETS[part[1].kind] is RuleKind.APART]
    for name, rule, members in together:
        within = domain[levels.index(rule.level)]
        for other, limit, others in apart:
            around = domain[levels.index(limit.level)]
            inside_one = len(np.unique(np.stack([within, around]), axis=1)[0]) == len(np.unique(within))
            shared = len(np.intersect1d(members, others))
            if inside_one and shared > limit.limit:
                raise Refusal(
                    RefusalCode.CONTRADICTORY_RULES,
                    f"rules {name!r} (together, {rule.level}) and {other!r} (at most {limit.limit} in one {limit.level}) "
                    f"both hold for {shared} VMs",
                )


def make_kinds(
    site: Site, labels: Labels, priority: NDArray[np.int8], home: I32, *, host_ids: Sequence[str], pools: Sequence[Pool],
    forbidden: frozenset[tuple[str, str]], away: Sequence[str] = (), numa: tuple[NDArray[np.int64], Bool] | None = None,
) -> tuple[I32, F64]:  # fmt: skip
    """(kind [v], kind_cost [k, h]) of the problem's VMs and hosts; `pools` [h] is each host's pool, `away` hosts that are left out.

    `numa`: (class of each VM [v], whether it spans nodes there [class, h]), as numa.node_classes has it.

    A VM that stands where it may not has a kind of its own, in which that one host costs what a broken rule costs. One that none of the
    hosts may have stays, unless no host of those left out may have it either: then its rules contradict each other.
    """
    spot = np.array([pool.spot for pool in pools], bool)
    pins = [rule for rule in site.rules if rule.kind is RuleSort.PINNED]
    never = (priority == Priority.CRITICAL) & spot.any()
    for rule in site.rules:
        if rule.kind is RuleSort.NEVER_SPOT and spot.any():
            never |= labels.match(rule)
    width, spans = numa or (np.zeros(len(home), np.int64), np.zeros((1, len(pools)), bool))
    priced = np.where(spot.any() or spans.any(), priority, 0)
    sign = [priced, width, never.astype(np.int64), *(labels.match(rule).astype(np.int64) for rule in pins)]
    unique, kind = np.unique(np.stack(sign, axis=1), axis=0, return_inverse=True)
    allowed = [
        np.array([matches(h, rule.hosts) or pool.name in rule.pools for h, pool in zip(host_ids, pools, strict=True)]) for rule in pins
    ]
    rows = []
    for row in unique:
        penalty = site.penalty_per_minute.of(Priority(int(row[0])))
        cost = np.array([pool.interruptions_per_hour * pool.interruption_minutes * penalty for pool in pools])
        cost += spans[row[1]] * penalty * 60.0 * site.numa_slowdown
        if row[2]:
            cost[spot] = np.inf
        for pinned, hosts in zip(row[3:], allowed, strict=True):
            if pinned:
                cost[~hosts] = np.inf
        if not np.isfinite(cost).any() and not any(
            may_be(site, name, row[2], [p for p, on in zip(pins, row[3:], strict=True) if on]) for name in away
        ):
            names = [repr(rule.name) for rule, pinned in zip(pins, row[3:], strict=True) if pinned] + ["'never on spot'"] * bool(row[2])
            raise Refusal(RefusalCode.CONTRADICTORY_RULES, f"no host of the fleet is allowed by {' and '.join(names)} together")
        rows.append(cost)
    return own_kinds(kind.ravel().astype(np.int32), rows, labels.ids, home, host_ids=host_ids, forbidden=forbidden, price=site.broken_rule)


def may_be(site: Site, host_id: str, never_spot: int, pins: Sequence[Rule]) -> bool:
    """Whether VMs of a kind may be on a host."""
    pool = site.pool_of(host_id)
    return not (never_spot and pool.spot) and all(matches(host_id, rule.hosts) or pool.name in rule.pools for rule in pins)


def own_kinds(
    kind: I32,
    rows: list[F64],
    ids: Sequence[str],
    home: I32,
    *,
    host_ids: Sequence[str],
    forbidden: frozenset[tuple[str, str]],
    price: float,
) -> tuple[I32, F64]:
    """Kinds for VMs that failed on a host of late, and for those that stand where they may not."""
    table = np.array(rows).reshape(-1, len(host_ids))
    extra: list[F64] = []
    barred: dict[str, set[str]] = {}
    for vm_id, host_id in forbidden:
        barred.setdefault(vm_id, set()).add(host_id)
    place = {host_id: h for h, host_id in enumerate(host_ids)}
    at = np.maximum(home, 0)
    wrong = (home >= 0) & ~np.isfinite(table[kind, at])
    everyone = [place[host_id] for host_id in barred.pop("", ()) if host_id in place]
    stays = (home >= 0) & np.isin(home, everyone) & ~wrong  # whoever is there already may stay, at no cost
    table[:, everyone] = np.inf
    keep = np.where(stays, np.array(rows).reshape(-1, len(host_ids))[kind, at], 0.0)
    own = set(np.flatnonzero(stays).tolist()) | set(np.flatnonzero(wrong).tolist()) | {v for v, vm_id in enumerate(ids) if vm_id in barred}
    for v in sorted(own):
        cost = table[kind[v]].copy()
        for host_id in barred.get(ids[v], ()):
            if host_id in place and place[host_id] != home[v]:
                cost[place[host_id]] = np.inf
        if wrong[v] or stays[v]:
            cost[home[v]] = price if wrong[v] else keep[v]
        kind[v] = len(table) + len(extra)
        extra.append(cost)
    return kind, np.concatenate([table, np.array(extra)]) if extra else table


def make_levels(site: Site, domains: Sequence[dict[str, str]]) -> tuple[tuple[str, ...], I32]:
    """(names, domain [level, h]) with the host itself as level 0; a host without a domain of a level is one by itself."""
    names = ("host", *sorted({level for entry in site.hosts for level in entry.domains}))
    table = np.empty((len(names), len(domains)), np.int32)
    table[0] = np.arange(len(domains))
    for row, level in enumerate(names[1:], 1):
        known: dict[str, int] = {}
        for h, own in enumerate(domains):
            key = f"={own[level]}" if level in own else f"host {h}"
            table[row, h] = known.setdefault(key, len(known))
    return names, table
