"""Which hosts to put to sleep and which to wake, from what is true now. Pure: (book, view, now) → (book, orders, why not).

A host goes to sleep only when placement wants it empty, it has been seen empty for a while by its own agent, no plan counts on it, enough
empty hosts stay awake as spares, and it will not be needed before the energy of switching it is earned back, nor came back so lately. It
is woken its lead time and a margin before it is needed; the lead time is measured. A wake that fails is remembered for a while that
doubles: nothing is planned there.

An order is told at most once and stands in the book until the host says otherwise: heard again = awake, silent after its order = asleep.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from shared.units import NS_PER_S

LEADS_KEPT: Final = 8


class Power(StrEnum):
    """What the coordinator knows of a host's power. A host that nobody put to sleep is AWAKE, heard or not."""

    AWAKE = "awake"
    FALLING = "falling_asleep"  # ordered, still heard
    ASLEEP = "asleep"
    WAKING = "waking"  # ordered, not heard yet
    FAILED = "wake_failed"


class PowerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When to switch. Seconds; `repaid_s` = least time off that pays for a switch where the host's own figure is not known."""

    spare_hosts: int = 1
    empty_s: float = 300.0
    margin_s: float = 120.0
    lead_s: float = 300.0  # from the order to the agent's first word, until measured
    repaid_s: float = 900.0
    fall_s: float = 600.0  # silent within this after its order, or the order counts as failed
    retry_s: float = 1_800.0  # after a failed wake; doubles with each in a row
    retry_max_s: float = 86_400.0
    wakes_at_once: int = 4  # of one tick: racks have breakers


class HostPower(msgspec.Struct, frozen=True, kw_only=True):
    """One host in the book."""

    state: Power = Power.AWAKE
    since_ns: int = 0
    leads_s: tuple[float, ...] = ()  # measured, newest last
    failures: int = 0  # wakes in a row
    until_ns: int = 0  # not tried before
    why: str = ""


class PowerBook(msgspec.Struct, frozen=True, kw_only=True):
    """All hosts that were ever switched. A document that lasts."""

    hosts: dict[str, HostPower] = {}

    def of(self, host_id: str) -> HostPower:
        """What is known of a host."""
        return self.hosts.get(host_id, HostPower())

    def lead_s(self, host_id: str, policy: PowerPolicy) -> float:
        """Longest measured lead time of late; the policy's where none was measured."""
        return max(self.of(host_id).leads_s, default=policy.lead_s)


class HostSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One host now. `wanted_empty`: placement keeps no VM there; `needed_ns`: when it has to take VMs, None = not in sight."""

    heard: bool
    vms: int
    empty_since_ns: int | None = None  # its own inventory has shown no VM since then
    counted_on: bool = False  # by an open plan
    wanted_empty: bool = False
    needed_ns: int | None = None
    repaid_s: float | None = None  # least time off that pays for its switch
    cannot: str | None = "no power switch"  # why it cannot be switched; None = it can


class PowerOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Switch one host."""

    host_id: str
    wake: bool
    why: str


class PowerTold(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order at the switch itself; `error` None = accepted."""

    host_id: str
    wake: bool
    error: str | None = None


def told(book: PowerBook, event: PowerTold, policy: PowerPolicy, now_ns: int) -> PowerBook:
    """An answer of the switch. That it was accepted proves nothing: the host's own voice does."""
    host = book.of(event.host_id)
    if event.error is None:
        return book
    if event.wake and host.state is Power.WAKING:
        return _put(book, event.host_id, _wake_failed(host, event.error, policy, now_ns))
    if not event.wake and host.state is Power.FALLING:
        until_ns = now_ns + int(policy.retry_s * NS_PER_S)
        fresh = msgspec.structs.replace(host, state=Power.AWAKE, since_ns=now_ns, until_ns=until_ns, why=f"sleep failed: {event.error}")
        return _put(book, event.host_id, fresh)
    return book


def look(
    book: PowerBook, hosts: Mapping[str, HostSeen], policy: PowerPolicy, now_ns: int
) -> tuple[PowerBook, list[PowerOrder], dict[str, str]]:
    """The book brought up to date, orders to carry out once it is durable, and why hosts that are wanted empty stay awake."""
    for host_id in sorted(set(book.hosts) & set(hosts)):
        book = _put(book, host_id, _observed(book.of(host_id), hosts[host_id], book.lead_s(host_id, policy), policy, now_ns))
    orders: list[PowerOrder] = []
    for host_id in sorted(hosts, key=lambda each: (hosts[each].needed_ns or 0, each)):
        why = _wake_now(book, host_id, hosts[host_id], policy, now_ns)
        if why is not None and len(orders) < policy.wakes_at_once:
            orders.append(PowerOrder(host_id=host_id, wake=True, why=why))
            host = msgspec.structs.replace(book.of(host_id), state=Power.WAKING, since_ns=now_ns, why=why)
            book = _put(book, host_id, host)
    idle = [each for each, seen in sorted(hosts.items()) if seen.heard and seen.vms == 0 and book.of(each).state is Power.AWAKE]
    spare, refused = len(idle), {}
    for host_id in idle:
        seen = hosts[host_id]
        if not seen.wanted_empty:
            continue
        why_not = _stays(book.of(host_id), seen, book.lead_s(host_id, policy), policy, now_ns)
        if why_not is None and spare <= policy.spare_hosts:
            why_not = f"{spare} empty hosts are awake, {policy.spare_hosts} stay as spares"
        if why_not is not None:
            refused[host_id] = why_not
            continue
        spare -= 1
        orders.append(PowerOrder(host_id=host_id, wake=False, why="empty, and not needed in sight"))
        book = _put(book, host_id, msgspec.structs.replace(book.of(host_id), state=Power.FALLING, since_ns=now_ns, why="ordered to sleep"))
    return book, orders, refused


def _observed(host: HostPower, seen: HostSeen, lead_s: float, policy: PowerPolicy, now_ns: int) -> HostPower:
    """What the host's voice, or its silence, says of an order."""
    waited_s = (now_ns - host.since_ns) / NS_PER_S
    if host.state is Power.FALLING:
        if not seen.heard:
            return msgspec.structs.replace(host, state=Power.ASLEEP, since_ns=now_ns, why="silent after its order")
        if waited_s > policy.fall_s:
            until_ns = now_ns + int(policy.retry_s * NS_PER_S)
            return msgspec.structs.replace(host, state=Power.AWAKE, since_ns=now_ns, until_ns=until_ns, why="heard long after its order")
    elif seen.heard and host.state in (Power.WAKING, Power.ASLEEP, Power.FAILED):
        # heard while ASLEEP or FAILED: somebody else pressed the button
        leads = (*host.leads_s, waited_s)[-LEADS_KEPT:] if host.state is Power.WAKING else host.leads_s
        return HostPower(state=Power.AWAKE, since_ns=now_ns, leads_s=leads, why=f"heard {waited_s:.0f} s after its order")
    elif host.state is Power.WAKING and waited_s > 2.0 * lead_s + policy.margin_s:
        return _wake_failed(host, f"not heard {waited_s:.0f} s after its order", policy, now_ns)
    return host


def _wake_failed(host: HostPower, why: str, policy: PowerPolicy, now_ns: int) -> HostPower:
    wait_s = min(policy.retry_max_s, policy.retry_s * 2.0**host.failures)
    until_ns = now_ns + int(wait_s * NS_PER_S)
    failures = host.failures + 1
    return msgspec.structs.replace(
        host, state=Power.FAILED, since_ns=now_ns, failures=failures, until_ns=until_ns, why=f"wake failed: {why}"
    )


def _wake_now(book: PowerBook, host_id: str, seen: HostSeen, policy: PowerPolicy, now_ns: int) -> str | None:
    """Why this host is to be woken now; None = it is not."""
    host = book.of(host_id)
    sleeping = host.state is Power.ASLEEP or (host.state is Power.FAILED and now_ns >= host.until_ns)
    if not sleeping or seen.needed_ns is None or seen.cannot is not None:
        return None
    ahead_s = (seen.needed_ns - now_ns) / NS_PER_S
    lead_s = book.lead_s(host_id, policy)
    if ahead_s > lead_s + policy.margin_s:
        return None
    return f"needed in {ahead_s:.0f} s, waking takes {lead_s:.0f} s"


def _stays(host: HostPower, seen: HostSeen, lead_s: float, policy: PowerPolicy, now_ns: int) -> str | None:
    """Why an empty host may not sleep now; None = it may."""
    if seen.cannot is not None:
        return seen.cannot
    if seen.counted_on:
        return "a plan counts on it"
    if now_ns < host.until_ns:
        return f"{host.why}: next try in {(host.until_ns - now_ns) // NS_PER_S} s"
    if seen.empty_since_ns is None or now_ns - seen.empty_since_ns < int(policy.empty_s * NS_PER_S):
        return f"not seen empty for {policy.empty_s:.0f} s yet"
    least_s = policy.repaid_s if seen.repaid_s is None else seen.repaid_s
    awake_s = (now_ns - host.since_ns) / NS_PER_S
    if host.since_ns > 0 and awake_s < least_s:  # a forecast that wavers around what is awake would switch it on and off
        return f"awake again for {awake_s:.0f} s: it stays for the {least_s:.0f} s that repay a switch"
    if seen.needed_ns is not None:
        off_s = (seen.needed_ns - now_ns) / NS_PER_S - lead_s - policy.margin_s
        if off_s < least_s:
            return f"needed again after {max(0.0, off_s):.0f} s off, its switch is repaid after {least_s:.0f} s"
    return None


def repaid_after_s(curve0: float, empty_cost: float, wake_cost: float) -> float | None:
    """Least time off that pays for a wake, from a host's money an hour idling, asleep, and of one wake; None = sleeping saves nothing."""
    saved = curve0 - empty_cost
    return wake_cost / saved * 3600.0 if saved > 0.0 else None


def _put(book: PowerBook, host_id: str, host: HostPower) -> PowerBook:
    if host == book.of(host_id):
        return book
    return PowerBook(hosts={**book.hosts, host_id: host})
