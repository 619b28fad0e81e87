"""Keeps what is registered: checks a change, makes it durable, puts it in force. Implements coordinator.service.tenancy_view.TenancyView.

Invariant: the book in memory is what the database holds (one change at a time, memory after disk), and what decides is the book: the
policy of every VM, the clients' error budgets, the events that forecasters are told of. A change is in force when its answer is given,
events at the next look at the calendars.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

from coordinator.cycle import DecisionCycle
from coordinator.learning.default_slas import RegisteredSlas
from coordinator.placement.fleet.site import Site
from coordinator.registered_calendars import RegisteredCalendars
from coordinator.service.tenancy_view import EffectivePolicy, EventState, PoolView
from coordinator.sizing.feasible import Objectives
from coordinator.store.tenancy import TenancyStore
from coordinator.tenancy.book import Book
from coordinator.tenancy.checks import Member, check, users
from coordinator.tenancy.merging import objectives_of, origins_of, policy_of
from coordinator.tenancy.model import BOUNDS, FLEET_POLICY, EventSpec, Kind, Row, Spec
from coordinator.tenancy.scheduling import ended_s, events_of
from shared.clock import Clock
from shared.errors import Refusal
from shared.model import Policy
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

OVER_S: Final = 60 * 86_400  # one-off events that ended so long ago teach the forecasts nothing more: history reaches back four weeks

HOSTS_AT_A_TIME: Final = 50  # 500 VMs: 3 ms

_T = TypeVar("_T")


class Office(Protocol):
    """What the desk needs of the process around it."""

    clock: Clock
    cycle: DecisionCycle

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run a store's work, in order with the others."""
        ...

    def audit(self, event: str, **fields: str | int) -> None:
        """Who changed what."""
        ...


class TenancyDesk:
    """One for a coordinator. `configured`: error budgets of the configuration, which registered ones replace client by client."""

    def __init__(
        self,
        office: Office,
        store: TenancyStore,
        site: Site,
        *,
        configured: Objectives,
        slas: RegisteredSlas,
        calendars: RegisteredCalendars,
    ) -> None:
        self._office, self._store, self._site, self._configured = office, store, site, configured
        self._calendars, self._slas = calendars, slas
        self._one_at_a_time = asyncio.Lock()
        self._book = store.load()
        office.cycle.fleet.policy_of = lambda domain: policy_of(self._book, domain.vm_id, domain.policy)
        self._promise()
        calendars.put(self._book.events)
        self.order: Callable[[str, Mapping[str, Policy]], None] = lambda _host_id, _policies: None  # tells a host's agent
        self._told: dict[str, Mapping[str, Policy]] = {}

    @property
    def book(self) -> Book:
        """All that is registered."""
        return self._book

    def now_s(self) -> int:
        """Of the coordinator's clock."""
        return self._office.clock.wall_ns() // NS_PER_S

    def members(self) -> Mapping[str, Member]:
        """Whose each VM is now, by its policy in force."""
        policies = ((vm_id, vm.domain.policy) for vm_id, vm in self._office.cycle.fleet.vms.items())
        return {vm_id: Member(policy.client, policy.application) for vm_id, policy in policies}

    def event_state(self, id_: str) -> EventState:
        """What the calendar makes of a registered event; all unknown until it was looked at."""
        known = self._calendars.state(id_)
        if known is None:
            return EventState(next_start_s=None, fetched_s=None, problem=None)
        upcoming = None if known.next_s is None else known.next_s[0]
        return EventState(next_start_s=upcoming, fetched_s=known.fetched_s, problem=known.problem)

    def effective(self, vm_id: str) -> EffectivePolicy | None:
        """None = no such VM."""
        own = self._office.cycle.fleet.own_policy(vm_id)
        if own is None:
            return None
        policy, origins = origins_of(self._book, vm_id, own)
        return EffectivePolicy(vm_id=vm_id, policy=policy, domain=own, origins=origins)

    def pools(self) -> tuple[PoolView, ...]:
        """Of the site file, or the built-in one; each host is in one."""
        hosts: dict[str, list[str]] = {}
        pools = {pool.name: pool for pool in self._site.pools}
        for host_id in sorted(self._office.cycle.fleet.hosts):
            pool = self._site.pool_of(host_id)
            hosts.setdefault(pools.setdefault(pool.name, pool).name, []).append(host_id)
        return tuple(PoolView(pool=pool, host_ids=tuple(hosts.get(name, ()))) for name, pool in pools.items())

    def tell(self, host_id: str, again: bool = False) -> None:
        """Tell a host's agent which policies hold over those of its domains, where it was not told; `again`: it may have forgotten."""
        fleet = self._office.cycle.fleet
        host = fleet.hosts.get(host_id)
        if host is None:
            return
        in_force = {vm_id: fleet.vms[vm_id].domain.policy for vm_id in sorted(host.vm_ids) if fleet.vms[vm_id].host_id == host_id}
        policies = {vm_id: policy for vm_id, policy in in_force.items() if policy != fleet.own_policy(vm_id)}
        if policies != self._told.get(host_id, {}) or (again and policies):
            self._told[host_id] = policies
            self.order(host_id, policies)

    async def create(self, kind: Kind, id_: str, spec: Spec, actor: str) -> Row[Spec]:
        """A new row. Raises Refusal: ALREADY_EXISTS, INVALID_VALUE."""
        async with self._one_at_a_time:
            if kind is Kind.EVENT and len(self._book.events) >= BOUNDS[kind]:
                await self._forget_ended()
            if id_ in self._book.of(kind):
                raise Refusal(RefusalCode.ALREADY_EXISTS, f"{kind} {id_!r} is registered already; PUT or PATCH changes it")
            await self._check(kind, id_, spec)
            row = await self._office.read(self._store.create, kind, id_, spec, actor, self._office.clock.wall_ns())
            await self._take(kind, self._book.with_rows(kind, [row]), id_)
        self._office.audit(f"create_{kind}", actor=actor, id=id_, version=row.version)
        return row

    async def replace(self, kind: Kind, before: Row[Spec], spec: Spec, actor: str) -> Row[Spec]:
        """The next version. Raises Refusal: VERSION_CHANGED, INVALID_VALUE."""
        async with self._one_at_a_time:
            await self._check(kind, before.id, spec)
            row = await self._office.read(self._store.replace, kind, before, spec, actor, self._office.clock.wall_ns())
            await self._take(kind, self._book.with_rows(kind, [row]), before.id)
        self._office.audit(f"change_{kind}", actor=actor, id=row.id, version=row.version)
        return row

    async def remove(self, kind: Kind, before: Row[Spec], actor: str) -> None:
        """Raises Refusal: VERSION_CHANGED, IN_USE with the users."""
        async with self._one_at_a_time:
            if before.id in self._book.of(kind) and (named := users(self._book, kind, before.id, self.members())):
                raise Refusal(RefusalCode.IN_USE, f"{kind} {before.id!r} is named by {', '.join(named)}")
            await self._office.read(self._store.remove, kind, before)
            await self._take(kind, self._book.without(kind, [before.id]), before.id)
        self._office.audit(f"remove_{kind}", actor=actor, id=before.id, version=before.version)

    async def _check(self, kind: Kind, id_: str, spec: Spec) -> None:
        check(self._book, kind, id_, spec, self.members())
        if isinstance(spec, EventSpec):  # a large calendar takes tenths of a second to read
            await asyncio.get_running_loop().run_in_executor(None, events_of, id_, spec)

    async def _forget_ended(self) -> None:
        """Make room: events that are long over go."""
        oldest_s = self.now_s() - OVER_S
        over = [row for row in self._book.events.values() if (end_s := ended_s(row.spec)) is not None and end_s < oldest_s]
        for row in over:
            await self._office.read(self._store.remove, Kind.EVENT, row)
        await self._take(Kind.EVENT, self._book.without(Kind.EVENT, [row.id for row in over]), "")

    async def _take(self, kind: Kind, book: Book, id_: str) -> None:
        """A book that is durable comes into force."""
        self._book = book
        match kind:
            case Kind.EVENT:
                self._calendars.put(book.events)
            case Kind.SLA:
                self._promise()
            case Kind.CLIENT:
                self._promise()
                await self._merge(self._vms_of(id_))
            case Kind.POLICY:
                level, _, of = id_.partition("/")
                await self._merge(None if id_ == FLEET_POLICY else [of] if level == "vm" else self._vms_of(of))
            case Kind.APPLICATION:
                pass  # what its VMs are told apart by is their label

    def _promise(self) -> None:
        """SLAs and error budgets as the book has them, for sizing and for what is counted."""
        self._office.cycle.set_objectives(objectives_of(self._book, self._configured))
        budgets = {client: row.spec.budget_permille for client, row in self._book.clients.items() if row.spec.budget_permille is not None}
        self._slas.promise(dict(self._book.slas_by_client()), budgets)

    async def _merge(self, vm_ids: list[str] | None) -> None:
        """Their policies in force, and told to their hosts; of a large fleet a few hosts at a time, between which the loop goes on."""
        fleet = self._office.cycle.fleet
        hosts: dict[str, list[str]] = {}
        for vm_id in list(fleet.vms) if vm_ids is None else vm_ids:
            if (vm := fleet.vms.get(vm_id)) is not None:
                hosts.setdefault(vm.host_id, []).append(vm_id)
        for n, (host_id, mine) in enumerate(sorted(hosts.items())):
            fleet.merge_policies(mine)
            self.tell(host_id)
            if n % HOSTS_AT_A_TIME == HOSTS_AT_A_TIME - 1:
                await asyncio.sleep(0)

    def _vms_of(self, client: str) -> list[str]:
        return [vm_id for vm_id, member in self.members().items() if member.client == client]
