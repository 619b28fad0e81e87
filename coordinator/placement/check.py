"""An independent check of a placement's moves, from hosts, forecast and site alone. Shares no code with what builds or solves the problem.

Plain loops. Promises, memory and rules must hold after all moves as far as they held before; the overload of every host that changes is
summed anew, bucket by bucket and resource by resource, and must come to the money that the plan claims. What is found here is a bug there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from coordinator.forecast.aggregate.answer import GroupSums
from coordinator.model import ForecastBlock, HostState, Move, VmState
from coordinator.placement.fleet.site import Duty, HostTraits, Rule, RuleSort, Site, host_traits

CPU, MEMORY, DISK, RX, TX = range(5)  # resource indices, restated here so that a mistake elsewhere cannot hide
BUCKETS = 12
BUCKET_MINUTES = 5.0
TOLERANCE = 1e-4  # the forecast has 24 bits, and sums of thousands of them differ by their order


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the plan was made from."""

    hosts: Sequence[HostState]
    forecast: ForecastBlock
    site: Site
    together: Sequence[GroupSums] = ()
    asleep: frozenset[str] = frozenset()
    forbidden: frozenset[tuple[str, str]] = frozenset()
    cooling: frozenset[str] = frozenset()
    z: float = 1.5


def check_plan(given: Inputs, moves: Sequence[Move], before: Mapping[str, float], after: Mapping[str, float]) -> tuple[str, ...]:
    """Everything wrong with these moves, one line each; empty = they may be shown. before, after: the plan's money by cause."""
    world = World(given)
    faults = world.walk(moves)
    if faults:  # what follows would speak of another fleet
        return tuple(faults)
    faults += world.check_rules()
    change = {"overload": 0.0, "hosts": 0.0}
    for host_id in sorted(world.touched):
        vms, planned = world.before[host_id], world.after[host_id]
        now, then = world.load(vms), world.load(planned)
        faults += world.check_host(host_id, float(now[MEMORY].max()), float(then[MEMORY].max()))
        change["overload"] += world.overload(host_id, planned, then) - world.overload(host_id, vms, now)
        change["hosts"] += world.host_money(host_id, planned) - world.host_money(host_id, vms)
    for cause, found in change.items():
        claimed = after[cause] - before[cause]
        if abs(found - claimed) > TOLERANCE * max(1.0, abs(before[cause]), abs(after[cause])):
            faults.append(f"{cause} changes by {found:.6f} money, and not by {claimed:.6f} as the plan says")
    return tuple(faults)


class World:
    """Who is where before and after."""

    def __init__(self, given: Inputs) -> None:
        self.given = given
        self.hosts = {host.host_id: host for host in given.hosts}
        self.traits = {host_id: host_traits(given.site, host_id) for host_id in self.hosts}
        self.before = {h.host_id: [vm for vm in h.vms if vm.domain.running] for h in given.hosts}
        self.after = {host_id: list(vms) for host_id, vms in self.before.items()}
        self.touched: set[str] = set()
        self.mean, self.stddev = given.forecast.mean.astype(float), given.forecast.stddev.astype(float)
        self.rows = {vm_id: i for i, vm_id in enumerate(given.forecast.vm_ids)}
        self.heard = np.asarray(np.isfinite(self.mean).all(axis=2) & np.isfinite(self.stddev).all(axis=2))  # [row, r]
        self.group = self.groups_of([vm for host_id, vms in self.before.items() if self.usable(host_id) for vm in vms])

    def groups_of(self, vms: Sequence[VmState]) -> dict[str, tuple[str, float]]:
        """VM -> (group, how far its VMs move together), the stronger of its application's and its client's."""
        found: dict[str, tuple[str, float]] = {}
        known = [vm for vm in vms if vm.domain.vm_id in self.rows and self.heard[self.rows[vm.domain.vm_id], [CPU, MEMORY]].all()]
        for kind, sums in zip(("application", "client"), self.given.together, strict=False):
            by_name: dict[str, list[VmState]] = {}
            for vm in known:
                by_name.setdefault(getattr(vm.domain.policy, kind), []).append(vm)
            for name, wide in zip(sums.names, sums.stddev[:, CPU].astype(float), strict=True):
                members = by_name.get(name, [])
                if len(members) < 2 or not name:
                    continue
                own = self.stddev[[self.rows[vm.domain.vm_id] for vm in members], CPU]
                alone = float((own**2).sum())
                between = float((own.sum(axis=0) ** 2).sum()) - alone
                learned = float((wide**2).sum())
                if not (between > 0.0 and math.isfinite(learned)):
                    continue
                rho = min(1.0, (learned - alone) / between)
                for vm in members:
                    if rho > max(0.02, found.get(vm.domain.vm_id, ("", 0.0))[1]):
                        found[vm.domain.vm_id] = (f"{kind} {name}", rho)
        return found

    def usable(self, host_id: str) -> bool:
        """Whether this host takes part at all."""
        host = self.hosts[host_id]
        return (host.alive or host_id in self.given.asleep) and host.mode != "off" and not host.paused

    def walk(self, moves: Sequence[Move]) -> list[str]:
        """Carry out all moves; what is wrong with any by itself, and with their number."""
        faults: list[str] = []
        moved: set[str] = set()
        arrivals: dict[str, int] = {}
        departures: dict[str, int] = {}
        for move in moves:
            vm = next((vm for vm in self.after.get(move.from_host, ()) if vm.domain.vm_id == move.vm_id), None)
            if vm is None or move.vm_id in moved:
                faults.append(f"{move.vm_id}: not on {move.from_host}, or moved twice")
                continue
            if move.to_host not in self.hosts or move.to_host == move.from_host:
                faults.append(f"{move.vm_id}: {move.to_host} cannot be a target")
                continue
            faults += [f"{move.vm_id}: {text}" for text in self.check_move(vm, move)]
            moved.add(move.vm_id)
            arrivals[move.to_host] = arrivals.get(move.to_host, 0) + 1
            departures[move.from_host] = departures.get(move.from_host, 0) + 1
            self.after[move.from_host].remove(vm)
            self.after[move.to_host].append(vm)
            self.touched |= {move.from_host, move.to_host}
        limits = self.given.site.moving
        for name, count, most in (
            ("moves", len(moves), limits.moves_max),
            ("arrivals on one host", max(arrivals.values(), default=0), limits.arrivals_max),
            ("departures from one host", max(departures.values(), default=0), limits.departures_max),
        ):
            if most is not None and count > most:
                faults.append(f"{count} {name}: allowed {most}")
        return faults

    def check_move(self, vm: VmState, move: Move) -> list[str]:
        """What is wrong with this VM going to this host."""
        site, trait = self.given.site, self.traits[move.to_host]
        pool = site.pool_of(move.to_host)
        faults = [f"{host_id} is silent, paused or off" for host_id in (move.from_host, move.to_host) if not self.usable(host_id)]
        if trait.state is not Duty.ACTIVE:
            faults.append(f"{move.to_host} is in {trait.state}")
        if vm.domain.capabilities.migrate is not None or vm.domain.policy.excluded:
            faults.append("may not be moved")
        recent = vm.since_move_s < site.moving.cooldown_s or vm.domain.vm_id in self.given.cooling
        if recent and self.traits[move.from_host].state is Duty.ACTIVE:
            faults.append("moved too recently")
        if {(vm.domain.vm_id, move.to_host), ("", move.to_host)} & self.given.forbidden:
            faults.append(f"{move.to_host} is forbidden to it")
        if pool.spot and vm.domain.policy.priority == 3:
            faults.append(f"critical, and {move.to_host} is spot")
        for rule in site.rules:
            if not speaks_of(rule, vm):
                continue
            if rule.kind is RuleSort.FIXED or (rule.kind is RuleSort.NEVER_SPOT and pool.spot):
                faults.append(f"rule {rule.name!r} forbids it")
            if rule.kind is RuleSort.PINNED and pool.name not in rule.pools and not any(fnmatchcase(move.to_host, g) for g in rule.hosts):
                faults.append(f"rule {rule.name!r} does not allow {move.to_host}")
        return faults

    def check_rules(self) -> list[str]:
        """Rules over sets that are broken more than before."""
        faults = []
        for rule in self.given.site.rules:
            if rule.kind not in (RuleSort.APART, RuleSort.SPREAD, RuleSort.TOGETHER, RuleSort.LICENSED):
                continue
            was, is_now = (broken(rule, places, self.traits) for places in (self.before, self.after))
            faults += [
                f"rule {rule.name!r}{f' ({part})' if part else ''} broken by {now}, before by {was.get(part, 0)}"
                for part, now in is_now.items()
                if now > was.get(part, 0)
            ]
        return faults

    def check_host(self, host_id: str, memory_now: float, memory_then: float) -> list[str]:
        """Promises and memory (of its highest bucket) of one host that changes."""
        capacity, faults = self.hosts[host_id].capacity, []
        before, after = self.before[host_id], self.after[host_id]
        for name, limit, r in (("CPU", capacity.cpu_commit_millicores, CPU), ("memory", capacity.memory_commit_bytes, MEMORY)):
            now, then = (sum(promise(vm, r) for vm in vms) for vms in (before, after))
            if then > max(limit, now) * (1.0 + 1e-5):
                faults.append(f"{host_id}: {name} promised {then:.0f} of {limit}")
        room = capacity.memory_commit_bytes * (1.0 - self.given.site.pool_of(host_id).reserve)
        # each VM's highest bucket counts in the plan, so the true load of every bucket is below it
        if memory_then > max(room, memory_now) * (1.0 + 1e-5):
            faults.append(f"{host_id}: memory needed {memory_then:.0f} of {room:.0f}")
        return faults

    def load(self, vms: Sequence[VmState]) -> np.ndarray:
        """Mean plus z deviations of the sum, [r, bucket]; a promise where there is no forecast."""
        rows = [self.rows.get(vm.domain.vm_id, -1) for vm in vms]
        heard = self.heard[rows] & (np.array(rows)[:, None] >= 0) if len(self.heard) else np.zeros((len(vms), 5), bool)
        if not len(vms):
            return np.zeros((5, BUCKETS))
        said, wide = (np.where(heard[:, :, None], values[rows], 0.0) for values in (self.mean, self.stddev))
        for i, r in np.argwhere(~heard):
            said[i, r] = promise(vms[i], int(r))
        variance = (wide**2).sum(axis=0)
        grouped: dict[str, list[int]] = {}
        for i, vm in enumerate(vms):
            if vm.domain.vm_id in self.group:
                grouped.setdefault(self.group[vm.domain.vm_id][0], []).append(i)
        for members in grouped.values():
            rho = self.group[vms[members[0]].domain.vm_id][1]
            variance += rho * (wide[members].sum(axis=0) ** 2 - (wide[members] ** 2).sum(axis=0))
        return np.asarray(said.sum(axis=0) + self.given.z * np.sqrt(variance))

    def host_money(self, host_id: str, vms: Sequence[VmState]) -> float:
        """Money of a host over the hour: its price, its energy at its mean CPU load, its waking."""
        site, trait, host = self.given.site, self.traits[host_id], self.hosts[host_id]
        pool, watts = site.pool_of(host_id), trait.watts or ()
        into = self.given.forecast.issued_s % 3600 / 3600.0
        hour = self.given.forecast.issued_s // 3600 % 24
        price = pool.price_at(hour) * (1.0 - into) + pool.price_at((hour + 1) % 24) * into
        if not vms:
            drawn = (trait.sleep_watts or 0.0) if trait.sleep else watts[0]
            return price * pool.empty_price_share + drawn / 1000.0 * pool.energy_price_per_kwh
        rows = [self.rows.get(vm.domain.vm_id, -1) for vm in vms]
        used = sum(
            float(self.mean[row, CPU].mean()) if row >= 0 and self.heard[row, CPU] else promise(vm, CPU)
            for row, vm in zip(rows, vms, strict=True)
        )
        share = used / max(1e-9, host.capacity.cpu_millicores - host.cpu_overhead_millicores) / (1.0 - pool.reserve)
        # plans know the curve at eleven points of what a reserve leaves, and a straight line between two of them
        at = 10.0 * min(max(share, 0.0), 1.0)
        below = min(int(at), 9)
        low, high = (float(np.interp(p * (1.0 - pool.reserve), range(11), watts)) for p in (below, below + 1))
        drawn = low + (at - below) * (high - low)
        waking = watts[10] * (trait.wake_s or 0) / 3600.0 if host_id in self.given.asleep else 0.0
        return price + (drawn + waking) / 1000.0 * pool.energy_price_per_kwh

    def overload(self, host_id: str, vms: Sequence[VmState], load: np.ndarray) -> float:
        """Money: the share by which each bucket and resource is short, times the minutes, times what everybody there would lose."""
        if not self.usable(host_id) or not vms:
            return 0.0
        host, site = self.hosts[host_id], self.given.site
        weight = sum(site.penalty_per_minute.of(vm.domain.policy.priority) for vm in vms)
        net = float(host.capacity.net_bits_per_s) or math.inf
        disk = self.traits[host_id].disk_bytes_per_s
        rooms = {CPU: max(0.0, host.capacity.cpu_millicores - host.cpu_overhead_millicores), RX: net, TX: net}
        rooms[DISK] = math.inf if disk is None else disk
        total = 0.0
        for r, room in rooms.items():
            if math.isinf(room):
                continue
            usable = room * (1.0 - site.pool_of(host_id).reserve)
            over = np.maximum(load[r] - usable * (1.0 + 1e-6), 0.0) / max(usable, 1e-12)
            total += float(over.sum()) * BUCKET_MINUTES * weight
        return total


def speaks_of(rule: Rule, vm: VmState) -> bool:
    """Whether a rule is about this VM."""
    domain = vm.domain
    parts = (
        (rule.clients, (domain.policy.client,)),
        (rule.applications, (domain.policy.application,)),
        (rule.vms, (domain.vm_id, domain.name)),
    )
    return all(not globs or any(fnmatchcase(text, glob) for text in texts for glob in globs) for globs, texts in parts)


def broken(rule: Rule, places: Mapping[str, Sequence[VmState]], traits: Mapping[str, HostTraits]) -> dict[str, int]:
    """How far a rule over sets is from being kept, by the client or application that it holds for ("" = one for all)."""
    counts: dict[str, dict[str, int]] = {}
    for host_id, vms in places.items():
        own = traits[host_id].domains
        where = f"host {host_id}" if rule.level == "host" or rule.level not in own else own[rule.level]
        for vm in vms:
            if speaks_of(rule, vm):
                part = getattr(vm.domain.policy, rule.each) if rule.each else ""
                if rule.each and not part:
                    continue
                inner = counts.setdefault(part, {})
                inner[where] = inner.get(where, 0) + 1
    found = {}
    for part, inner in counts.items():
        if rule.kind is RuleSort.TOGETHER:
            found[part] = sum(inner.values()) - max(inner.values())
        elif rule.kind is RuleSort.LICENSED:
            found[part] = max(0, len(inner) - rule.limit)
        else:
            found[part] = sum(max(0, count - rule.limit) for count in inner.values())
    return found


def promise(vm: VmState, r: int) -> float:
    """What a VM takes of the host's promise; unknown = its maximum, or 0 where its network cannot be limited. Disks promise nothing."""
    domain, policy, now = vm.domain, vm.domain.policy, vm.allocation
    if r == DISK:
        return 0.0
    if r == MEMORY:
        ceiling = min(domain.memory_max_bytes, policy.memory_ceiling_bytes or domain.memory_max_bytes)
        return float(ceiling if now.memory_bytes is None else domain.memory_max_bytes if now.memory_bytes == -1 else now.memory_bytes)
    if r in (RX, TX):
        value, cannot = (
            (now.net_rx_bits_per_s, domain.capabilities.shape_rx) if r == RX else (now.net_tx_bits_per_s, domain.capabilities.shape_tx)
        )
        top = domain.net_max_bits_per_s
        if value is None:
            return (
                0.0
                if cannot is not None
                else float(min(top, top if policy.net_ceiling_bits_per_s is None else policy.net_ceiling_bits_per_s))
            )
        return float(top if value == -1 else value)
    quota = now.cpu_quota_millicores
    if quota is None:
        count = domain.vcpus_max if domain.capabilities.vcpu_hot_add is None or now.vcpus is None else now.vcpus
        return float(min(1000 * count, 1000 * count if policy.cpu_ceiling_millicores is None else policy.cpu_ceiling_millicores))
    count = domain.vcpus_max if now.vcpus is None else now.vcpus
    return 1000.0 * count if quota == -1 else float(quota)
