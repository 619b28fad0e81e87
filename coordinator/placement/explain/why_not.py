"""Why a VM is where the plan has it, and why not elsewhere: what binds, and the smallest single change that would flip it. Pure.

Answers come from the same Books that made the plan's numbers: all other VMs where the plan puts them, this one moved. A change flips when
with it alone the move would be allowed and save money; several bind at once where the list has several.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.placement.explain.books import CAUSES, Books, Change
from coordinator.placement.explain.plan import Placed, cell_name
from coordinator.placement.fleet.fleet_problem import FleetProblem
from coordinator.placement.fleet.rulebook import Labels
from coordinator.placement.fleet.site import Duty, RuleSort, host_traits, matches
from coordinator.placement.problem import NOWHERE, SLACK
from shared.model import Priority
from shared.units import CPU, DISK, GIB, MEMORY

OFFERED = 3  # other hosts that `why` tells of


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One thing that stands against a host. kind: vm, host, pin, rule, capacity, cap or money."""

    kind: str
    text: str
    change: str  # the smallest change that would lift it


@dataclass(frozen=True, kw_only=True)
class WhyNot:
    """A VM and a host that it might run on. money: by cause against the plan, negative saves; empty where the host takes no part."""

    vm_id: str
    host_id: str
    here: bool  # the plan has it there
    possible: bool  # nothing but money stands against it
    total: float
    money: dict[str, float]
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, kw_only=True)
class Why:
    """Where the plan has a VM, and its next best hosts, the cheapest first."""

    vm_id: str
    from_host: str
    to_host: str
    text: str
    others: tuple[WhyNot, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One VM of a plan, with what moving it to each host would change."""

    placed: Placed
    fleet: FleetProblem
    books: Books
    v: int
    found: Change


def open_case(placed: Placed, vm_id: str) -> Case | None:
    """None = the plan knows no such VM."""
    fleet, place = placed.fleet, placed.place
    if fleet is None or place is None or vm_id not in fleet.problem.vm_ids:
        return None
    v = fleet.problem.vm_ids.index(vm_id)
    books = Books(fleet.problem, place)
    return Case(placed=placed, fleet=fleet, books=books, v=v, found=books.change(v))


def why(placed: Placed, vm_id: str) -> Why | None:
    """None = the plan knows no such VM."""
    case = open_case(placed, vm_id)
    if case is None:
        return None
    fleet, found, v = case.fleet, case.found, case.v
    problem, at = fleet.problem, int(case.books.place[case.v])
    home, here = host_name(fleet, int(problem.home[v])), host_name(fleet, at)
    move = next((move for move in placed.plan.moves if move.vm_id == vm_id), None)
    order = np.argsort(np.where(found.allowed, found.total, np.inf), kind="stable")
    offered = [int(h) for h in order if h != at][:OFFERED]
    others = tuple(explain(case, h) for h in offered)
    if move is not None:
        text = f"moves from {home} to {here}: {move.why}; worth {move.gain:.4f} for a cost of {move.cost:.4f}"
    elif problem.fixed[v]:
        text = f"stays on {here}: {problem.why_fixed[v]}"
    elif not found.allowed[[h for h in range(len(found.allowed)) if h != at]].any():
        text = f"stays on {here}: no other host could take it"
    else:
        best = others[0]
        text = f"stays on {here}: the best other host, {best.host_id}, would cost {best.total:.4f} more"
    return Why(vm_id=vm_id, from_host=home, to_host=here, text=text, others=others)


def why_not(placed: Placed, vm_id: str, host_id: str) -> WhyNot | None:
    """None = the plan knows no such VM, or no such host at all."""
    case = open_case(placed, vm_id)
    if case is None:
        return None
    fleet = case.fleet
    if host_id in fleet.left_out:
        text = f"{host_id} is {fleet.left_out[host_id]}"
        lift = Binding(kind="host", text=text, change="its agent heard again, in a mode other than off")
        return WhyNot(vm_id=vm_id, host_id=host_id, here=False, possible=False, total=0.0, money={}, bindings=(lift,))
    return explain(case, fleet.problem.host_ids.index(host_id)) if host_id in fleet.problem.host_ids else None


def explain(case: Case, h: int) -> WhyNot:
    """One VM and one host of the problem."""
    problem, found, v = case.fleet.problem, case.found, case.v
    here = bool(case.books.place[v] == h)
    bindings = () if here else (*obstacles(case, h), *too_dear(case, h))
    return WhyNot(
        vm_id=problem.vm_ids[v],
        host_id=problem.host_ids[h],
        here=here,
        possible=not any(binding.kind != "money" for binding in bindings),
        total=float(found.total[h]),
        money={cause: float(found.money[h, i]) for i, cause in enumerate(CAUSES)},
        bindings=bindings,
    )


def obstacles(case: Case, h: int) -> list[Binding]:
    """What forbids it whatever it costs."""
    problem, found, v = case.fleet.problem, case.found, case.v
    name = problem.host_ids[h]
    out: list[Binding] = []
    if problem.fixed[v]:
        out.append(Binding(kind="vm", text=f"it may not move: {problem.why_fixed[v]}", change="what holds it there ended"))
    if found.closed[h]:
        state = host_traits(case.placed.site, name).state
        kept = "maintenance" if state is Duty.MAINTENANCE else "spare"
        out.append(Binding(kind="host", text=f"{name} is kept empty ({kept})", change=f"{name} made active, or the pool's spares lowered"))
    if found.barred[h]:
        out += barred(case, h)
    out += broken_more(case, h) if found.ruled[h] else []
    out += too_full(case, h) if found.hard[h] else []
    if found.capped[h]:
        out.append(
            Binding(
                kind="cap",
                text="the plan's limit of moves is used up",
                change="moving.moves_max, arrivals_max or departures_max raised by 1",
            )
        )
    return out


def barred(case: Case, h: int) -> list[Binding]:
    """Which pins, risks or failures keep this kind off the host."""
    fleet, site, v = case.fleet, case.placed.site, case.v
    name = fleet.problem.host_ids[h]
    pool = site.pool_of(name)
    one = Labels(ids=[fleet.problem.vm_ids[v]], names=[fleet.names[v]], clients=[fleet.clients[v]], applications=[fleet.applications[v]])
    out = []
    if pool.spot and fleet.priority[v] == Priority.CRITICAL:
        out.append(Binding(kind="pin", text=f"critical VMs never run on spot hosts ({pool.name})", change="a priority below critical"))
    for rule in site.rules:
        off_pin = rule.kind is RuleSort.PINNED and pool.name not in rule.pools and not matches(name, rule.hosts)
        off_spot = rule.kind is RuleSort.NEVER_SPOT and pool.spot
        if (off_pin or off_spot) and one.match(rule)[0]:
            out.append(
                Binding(kind="pin", text=f"rule {rule.name!r} does not allow {name}", change=f"rule {rule.name!r} dropped or widened")
            )
    return out or [Binding(kind="pin", text=f"a move of it to {name} failed of late", change="the next placements, once that is forgotten")]


def broken_more(case: Case, h: int) -> list[Binding]:
    """The rules over sets that would be broken more."""
    out = []
    fleet, books, v = case.fleet, case.books, case.v
    rules = fleet.problem.rules
    for r, worse in books.rules_broken(v, h):
        members = rules.members[rules.start[r] : rules.start[r + 1]]
        domain = fleet.problem.domain[rules.level[r]]
        near = [u for u in members.tolist() if u != v and books.place[u] != NOWHERE and domain[books.place[u]] == domain[h]]
        names = ", ".join(fleet.problem.vm_ids[u] for u in near[:3])
        text = f"rule {rules.names[r]!r} would be broken by {worse:.0f}" + (f" ({names} there already)" if near else "")
        change = f"rule {rules.names[r]!r} dropped" + (f", or {names.split(', ')[0]} elsewhere" if near else "")
        out.append(Binding(kind="rule", text=text, change=change))
    return out


def too_full(case: Case, h: int) -> list[Binding]:
    """Hard cells that would be passed, the worst first."""
    fleet, books, problem = case.fleet, case.books, case.fleet.problem
    name = problem.host_ids[h]
    over = np.where(problem.hard, books.load_with(case.v, h) - books.limit[h], -np.inf)
    order = [int(c) for c in np.argsort(-over / np.maximum(problem.capacity[h], 1e-12)) if over[c] > 0]
    return [
        Binding(
            kind="capacity",
            text=f"{name} would lack {amount(fleet, c, float(over[c]))} of {cell_name(fleet, c)}",
            change=f"{amount(fleet, c, float(over[c]))} more of {cell_name(fleet, c)} on {name}, or a VM smaller by that",
        )
        for c in order[:2]
    ]


def too_dear(case: Case, h: int) -> list[Binding]:
    """What makes it cost more than staying, where it does."""
    fleet, problem = case.fleet, case.fleet.problem
    name, total, money = problem.host_ids[h], float(case.found.total[h]), case.found.money[h]
    if total < 0.0:
        return []
    by = {cause: float(money[i]) for i, cause in enumerate(CAUSES)}
    dearest = max(by, key=lambda cause: by[cause])
    text = f"it would cost {total:.4f} more than the plan, most of it {dearest.replace('_', ' ')} ({by[dearest]:.4f})"
    if dearest == "overload":
        load = case.books.load_with(case.v, h)
        over = np.where(problem.hard, -np.inf, load - problem.capacity[h] * (1.0 + SLACK))
        c = int(np.argmax(over / np.maximum(problem.capacity[h], 1e-12)))
        if over[c] > 0:
            need = amount(fleet, c, float(over[c]))
            return [
                Binding(
                    kind="money", text=f"{text}: short of {cell_name(fleet, c)}", change=f"{need} more of {cell_name(fleet, c)} on {name}"
                )
            ]
    # one cause alone can only be lowered to nothing
    lever = dearest.replace("_", " ") if by[dearest] >= total else "all of it together"
    return [Binding(kind="money", text=text, change=f"worth it if {lever} cost {total:.4f} less")]


def amount(fleet: FleetProblem, c: int, value: float) -> str:
    """A quantity of a cell's resource for people."""
    resource = fleet.cells[c].resource
    if resource == CPU:
        return f"{value / 1000.0:.2f} cores"
    if resource == MEMORY:
        return f"{value / GIB:.2f} GiB"
    return f"{value / 1e6:.1f} MB/s" if resource == DISK else f"{value / 1e6:.1f} Mbit/s"


def host_name(fleet: FleetProblem, h: int) -> str:
    """Its name; empty = nowhere."""
    return "" if h == NOWHERE else fleet.problem.host_ids[h]
