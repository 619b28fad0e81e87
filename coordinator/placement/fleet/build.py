"""From the fleet and its forecast to a placement problem in arrays: guests (VMs), cells, terms (hosts) and rules put together. Pure.

Silent, paused and switched-off hosts are no part of it: nothing leaves or enters them, but their VMs count for the rules.
Hosts that are known to sleep are: empty, and woken at a cost. All money is over the hour that the forecast speaks of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from coordinator.model import F64, HostState
from coordinator.placement.fleet.cells import HOUR_MINUTES, host_room, make_cells
from coordinator.placement.fleet.fleet_problem import FleetProblem, PlacementRequest
from coordinator.placement.fleet.guests import Guests, migration_s, peaking_groups, read_guests, why_fixed
from coordinator.placement.fleet.numa import node_classes
from coordinator.placement.fleet.rulebook import make_kinds, make_levels, make_rules, rule_sets
from coordinator.placement.fleet.site import Site, host_traits
from coordinator.placement.fleet.terms import Terms, make_terms
from coordinator.placement.problem import CURVE_POINTS, I32, Problem
from shared.errors import Refusal
from shared.model import Mode, Priority
from shared.refusal import RefusalCode
from shared.units import MEMORY


def build_problem(request: PlacementRequest) -> Problem:
    """The problem alone."""
    return build_fleet(request).problem


def build_fleet(request: PlacementRequest) -> FleetProblem:
    """The problem with its names. Raises Refusal (EMPTY_FLEET, NO_TARGET, CONTRADICTORY_RULES) or ConfigError (a number that is none)."""
    site = request.site
    hosts, left_out = sort_hosts(request)
    live = hosts[: len(hosts) - len(left_out)]
    guests = read_guests(hosts, len(live), request.forecast)
    if not guests.inside:
        raise Refusal(RefusalCode.EMPTY_FLEET, f"{len(live)} hosts are heard and hold no VM; {len(left_out)} are silent or off")
    traits = [host_traits(site, host.host_id) for host in hosts]
    pools = [site.pool_of(host.host_id) for host in live]
    terms = make_terms(live, traits[: len(live)], pools, request.asleep, request.forecast.issued_s)
    if terms.closed.all():
        raise Refusal(RefusalCode.NO_TARGET, f"all {len(live)} hosts that are heard are in maintenance or spare")
    room = host_room(live, traits)
    reserve = np.array([pool.reserve for pool in pools])
    home = guests.host[: guests.inside]
    cells, arrays = make_cells(guests, room, live, reserve=reserve, home=home, z=request.z)
    levels, domain = make_levels(site, [trait.domains for trait in traits])
    kind, kind_cost = make_kinds(
        site,
        guests.inner,
        guests.priority,
        home,
        host_ids=[host.host_id for host in live],
        pools=pools,
        forbidden=request.forbidden,
        away=tuple(left_out),
        numa=node_classes(guests.promise, live),
    )
    problem = Problem(
        host_ids=tuple(host.host_id for host in live),
        home=home,
        kind=kind,
        kind_cost=kind_cost,
        domain=domain[:, : len(live)],
        rules=make_rules(rule_sets(site, guests.labels), levels, domain, guests.host, guests.inside),
        curve=np.zeros((len(live), CURVE_POINTS)),  # until `priced` below
        empty_cost=np.zeros(len(live)),
        wake_cost=terms.wake_cost,
        closed=terms.closed,
        arrivals_max=per_host(site.moving.arrivals_max, len(live)),
        departures_max=per_host(site.moving.departures_max, len(live)),
        moves_max=site.moving.moves_max,
        broken_price=site.broken_rule,
        **arrays,
        **vm_columns(guests, request, terms.closed[home], float(room[:, MEMORY].max())),
    )
    fleet = name_axes(problem, request, guests=guests, terms=terms, room=room, left_out=left_out)
    fleet = replace(fleet, cells=cells)
    return replace(fleet, problem=fleet.priced(np.zeros(len(terms.pools))))


def sort_hosts(request: PlacementRequest) -> tuple[list[HostState], dict[str, str]]:
    """(hosts that take part, in the order of their ids, then those left out; why each of these is)."""
    left_out: dict[str, str] = {}
    for host in request.hosts:
        if not host.alive and host.host_id not in request.asleep:
            left_out[host.host_id] = "silent: counts as full"
        elif host.mode is Mode.OFF or host.paused:
            left_out[host.host_id] = "mode off" if host.mode is Mode.OFF else "paused: nothing on it is changed"
    ordered = sorted(request.hosts, key=lambda host: (host.host_id in left_out, host.host_id))
    return ordered, left_out


def vm_columns(guests: Guests, request: PlacementRequest, leaving: np.ndarray, most: float) -> dict[str, Any]:
    """What the problem holds of each VM."""
    site = request.site
    weight = np.array([site.penalty_per_minute.of(priority) for priority in Priority])[guests.priority]
    seconds = migration_s(guests, site.moving)
    why = why_fixed(guests, seconds, site, leaving=leaving, most=most, cooling=request.cooling)
    lost_s = site.moving.slowdown * np.where(np.isfinite(seconds), seconds, 0.0) + site.moving.pause_s
    group, rho, _ = peaking_groups(guests, request.together)
    return {
        "vm_ids": tuple(guests.inner.ids),
        "fixed": np.array([bool(text) for text in why], bool),
        "why_fixed": why,
        "weight": weight,
        "move_cost": site.moving.base + weight * lost_s / 60.0,
        "unplaced_cost": weight * HOUR_MINUTES,
        "group": group,
        "rho": rho,
    }


def name_axes(
    problem: Problem, request: PlacementRequest, *, guests: Guests, terms: Terms, room: F64, left_out: dict[str, str]
) -> FleetProblem:
    """The problem with what its axes stand for, energy not priced yet."""
    notes = terms.notes
    if not request.site.priced:
        notes = (*notes, "no site file (placement.site): one pool at built-in prices, no rules, nothing sleeps")
    loose = unpooled(request.site, problem.host_ids)
    if loose:
        notes = (*notes, f"{len(loose)} hosts are in no pool of the site ({loose[0]}, ...): built-in prices")
    large = [i for i, text in enumerate(problem.why_fixed) if text == "larger than any host"]
    if large:
        size = guests.promise[large[0], MEMORY]
        notes = (*notes, f"{len(large)} VMs are larger than any host ({problem.vm_ids[large[0]]}: {size:.0f} bytes): they stay")
    return FleetProblem(
        problem=problem,
        issued_s=request.forecast.issued_s,
        z=request.z,
        cells=(),
        names=tuple(guests.inner.names),
        clients=tuple(guests.inner.clients),
        applications=tuple(guests.inner.applications),
        priority=guests.priority,
        mean=guests.mean.astype(np.float32),
        stddev=guests.stddev.astype(np.float32),
        room=room,
        seconds=migration_s(guests, request.site.moving),
        pool=terms.pool,
        pools=tuple(pool.name for pool in terms.pools),
        price=terms.price,
        empty_price=terms.empty_price,
        watts=terms.watts,
        empty_watts=terms.empty_watts,
        energy_price=terms.energy_price,
        budget_kwh=np.array([np.inf if p.energy_kwh_per_day is None else p.energy_kwh_per_day / 24.0 for p in terms.pools]),
        budget_hard=tuple(pool.energy_budget == "hard" for pool in terms.pools),
        over_price=np.array([pool.over_budget_price_per_kwh for pool in terms.pools]),
        left_out=left_out,
        notes=notes,
    )


def unpooled(site: Site, host_ids: Sequence[str]) -> list[str]:
    """Hosts of a site with pools that no pool of it names."""
    if not site.pools or any(not pool.hosts for pool in site.pools):
        return []
    named = {pool.name for pool in site.pools}
    return [host_id for host_id in host_ids if site.pool_of(host_id).name not in named]


def per_host(most: int | None, hosts: int) -> I32 | None:
    """A limit of each host as the problem has it."""
    return None if most is None else np.full(hosts, most, np.int32)
