"""Reads a site from the text of its TOML file; whatever is wrong becomes one ConfigError that names field, value and what is allowed.

Contradictions that show without a fleet are found here: names used twice, pools or levels that nobody defines, rules that ask nothing,
two rules over the same words of which one says apart and the other together. Pure: who reads the file is settings' business.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Final

import msgspec

from coordinator.placement.fleet.site import Duty, HostTraits, Moving, Penalties, Pool, Rule, RuleSort, Site
from shared.errors import ConfigError

MAX_BYTES: Final = 4_000_000
_SECTIONS: Final = tuple(name for name in Site.__struct_fields__ if name != "priced")


def parse_site(text: str, where: str = "site file") -> Site:
    """A checked site. Raises ConfigError; `where` says in its text which file it was."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where}: {len(text)} characters: allowed at most {MAX_BYTES}")
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    for name in tree:
        if name not in _SECTIONS:
            near = difflib.get_close_matches(name, _SECTIONS, 1, 0.0)[0]
            raise ConfigError(f"{where}: unknown section {name!r}: allowed are {', '.join(_SECTIONS)}; the nearest is {near!r}")
    for path, value in _numbers(tree, ""):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {path} = {value!r}: allowed is a finite number")
    try:
        site = msgspec.convert(tree, Site)
    except msgspec.ValidationError as error:
        raise _explain(error, tree, where) from None
    _check(site, where)
    return site


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{path}[{i}]")


def _explain(error: msgspec.ValidationError, tree: Any, where: str) -> ConfigError:
    told, _, path = str(error).partition(" - at `$.")
    path = path.rstrip("`")
    value: Any = tree
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:  # msgspec writes [...] for a key of a table
            break
    told = f"{told[0].lower()}{told[1:]}"
    if told.startswith("object"):  # a field too many or missing: the table's text says nothing
        return ConfigError(f"{where}: {path or 'the file'}: {told}: allowed are {', '.join(_fields_at(path))}")
    if told.startswith("invalid enum"):
        told = "one of " + ", ".join(RuleSort if path.endswith("kind") else Duty)
    return ConfigError(f"{where}: {path} = {value!r}: allowed is: {told}")


def _fields_at(path: str) -> tuple[str, ...]:
    """Fields of the table that this path leads to."""
    section = re.match(r"[^.\[]*", path)
    kinds = {"pools": Pool, "hosts": HostTraits, "rules": Rule, "penalty_per_minute": Penalties, "moving": Moving}
    return kinds.get(section[0] if section else "", Site).__struct_fields__


def _check(site: Site, where: str) -> None:
    for kind, names in (("pools", [pool.name for pool in site.pools]), ("rules", [rule.name for rule in site.rules])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{where}: {kind} of one name, {twice[0]!r}: allowed is each name once")
    for i, pool in enumerate(site.pools):
        if pool.price_by_hour and len(pool.price_by_hour) != 24:
            raise ConfigError(f"{where}: pools[{i}].price_by_hour has {len(pool.price_by_hour)} prices: allowed 24, one an hour, or none")
        if pool.interruptions_per_hour and not pool.spot:
            raise ConfigError(f"{where}: pools[{i}].interruptions_per_hour = {pool.interruptions_per_hour!r}: allowed 0 unless spot = true")
        if pool.sleep and pool.sleep_watts > min(pool.watts):
            raise ConfigError(f"{where}: pools[{i}].sleep_watts = {pool.sleep_watts!r}: allowed up to its idle watts, {min(pool.watts)!r}")
    if sum(not pool.hosts for pool in site.pools) > 1:
        raise ConfigError(f"{where}: pools: more than one names no hosts: allowed is one pool for all the others")
    levels = {"host"} | {level for entry in site.hosts for level in entry.domains}
    if any("host" in entry.domains for entry in site.hosts):
        raise ConfigError(f"{where}: hosts.domains: 'host' is a level of its own: allowed are other names")
    for i, rule in enumerate(site.rules):
        _check_rule(site, rule, levels, f"{where}: rules[{i}] ({rule.name!r})")
    for one, other in combinations(site.rules, 2):
        if contradict(one, other):
            raise ConfigError(
                f"{where}: rules {one.name!r} and {other.name!r} contradict each other over the same VMs: allowed is together or apart"
            )


def _check_rule(site: Site, rule: Rule, levels: set[str], where: str) -> None:
    pools = {pool.name for pool in site.pools}
    for name in rule.pools:
        if name not in pools:
            raise ConfigError(f"{where}.pools = {name!r}: allowed are {', '.join(sorted(pools)) or 'none: no pool is defined'}")
    if rule.level not in levels:
        raise ConfigError(f"{where}.level = {rule.level!r}: allowed are {', '.join(sorted(levels))}")
    if (rule.kind is RuleSort.PINNED) != bool(rule.pools or rule.hosts):
        raise ConfigError(f"{where}: pools and hosts: allowed, and at least one of them required, where kind = 'pinned'")
    if not (rule.clients or rule.applications or rule.vms or rule.each):
        raise ConfigError(f"{where}: no clients, applications or vms: allowed is at least one of them, or each")


def contradict(one: Rule, other: Rule) -> bool:
    """Whether two rules over the very same words cannot both hold."""
    if (one.clients, one.applications, one.vms, one.level) != (other.clients, other.applications, other.vms, other.level):
        return False
    kinds = {one.kind, other.kind}
    apart = next((rule for rule in (one, other) if rule.kind in (RuleSort.APART, RuleSort.SPREAD)), None)
    return apart is not None and RuleSort.TOGETHER in kinds and apart.limit == 1
