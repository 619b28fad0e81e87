"""From a size and what is in force to the changes of levers. Works on plain facts, so that a receipt can hold them and replay.

A lever is touched only when the allocation lies outside [lower, upper] (the dead band is in there) and the value is not in force already.
Values are whole granules, as sizing made them. vCPUs follow the CPU size upwards; a balloon shrinks in a staircase of small steps; memory
that a device holds is plugged last and unplugged first (sizing/choice.py says which levers a VM has).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from coordinator.model import VmSize, VmState
from coordinator.planning.weights import NO_WEIGHTS, Weights
from coordinator.sizing.choice import cpu_lever, memory_lever, virtio_most, whole_vcpus
from coordinator.sizing.levers import SHORT, ceilings, in_force
from coordinator.sizing.policy import SizingPolicy
from shared.plan import VALUE_MAX, StepKind
from shared.units import CPU, DISK, MEMORY, NET_RX, NET_TX, RESOURCES, UNLIMITED

# How something is shared, not how much of it there is.
WEIGHTS: Final = frozenset({StepKind.CPU_SHARES, StepKind.DISK_WEIGHT, StepKind.NET_TX_RATE})
Numbers = tuple[float | None, ...]  # [r], None = unknown or left alone


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides one VM's steps. Raw values of the levers; arrays by resource."""

    vm_id: str
    priority: int
    vcpus: int | None
    vcpus_ceiling: int
    raw: tuple[int | None, ...]  # [r] lever values in force, UNLIMITED = none
    allocation: Numbers  # [r] the same as promises
    target: Numbers
    lower: Numbers
    upper: Numbers
    clipped: tuple[str, ...]
    shares: int | None
    shares_wanted: int | None  # None = leave alone
    ramp_ns: tuple[int, ...]  # [r] when a growth must be in force; 0 = now
    memory_stride: float
    memory_spacing_ns: int
    memory_granule: int
    # since 0.5; receipts before that hold none of these
    cpu_lever: StepKind = StepKind.CPU_QUOTA
    vcpus_online: int | None = None  # None = as many as are plugged in, as far as is known
    memory_lever: StepKind = StepKind.MEMORY
    balloon_max: int = 2**53
    virtio_bytes: int = 0
    virtio_max: int = 0
    memory_high: int | None = None
    disk_ops: int | None = None
    disk_weight: int | None = None
    disk_weight_wanted: int | None = None  # None = leave alone, as for shares
    tx_rate: int | None = None
    tx_rate_wanted: int | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One lever's change before it has a place in the plan. `delta`: what it adds to the host's promises."""

    vm_id: str
    priority: int
    kind: StepKind
    value: int
    before: int | None
    delta: float
    reason: str
    ramp_ns: int = 0
    after_ns: int = 0  # not earlier than so long after the plan's begin


def facts_of(vm: VmState, size: VmSize, policy: SizingPolicy, ramp_ns: tuple[int, ...], weights: Weights = NO_WEIGHTS) -> Facts:
    """Gather the facts of one VM."""
    now, can = vm.allocation, vm.domain.capabilities
    top = vm.domain.vcpus_max if can.vcpu_hot_add is None else (now.vcpus or vm.domain.vcpus_max)
    priority = int(vm.domain.policy.priority)
    return Facts(
        vm_id=vm.domain.vm_id,
        priority=priority,
        vcpus=now.vcpus,
        vcpus_ceiling=min(top, math.ceil(ceilings(vm)[CPU] / 1000)),
        raw=(now.cpu_quota_millicores, now.memory_bytes, now.disk_bytes_per_s, now.net_rx_bits_per_s, now.net_tx_bits_per_s),
        allocation=numbers(in_force(vm)),
        target=numbers(size.target),
        lower=numbers(size.lower),
        upper=numbers(size.upper),
        clipped=size.clipped,
        shares=now.cpu_shares,
        shares_wanted=weights.shares,
        ramp_ns=ramp_ns,
        memory_stride=policy.memory_stride,
        memory_spacing_ns=int(policy.memory_spacing_s * 1e9),
        memory_granule=int(policy.granule[MEMORY]),
        cpu_lever=cpu_lever(vm.domain) or StepKind.CPU_QUOTA,
        vcpus_online=now.vcpus_online if can.vcpu_offline is None else None,
        memory_lever=memory_lever(vm.domain, now) or StepKind.MEMORY,
        balloon_max=vm.domain.memory_max_bytes,
        virtio_bytes=(now.virtio_mem_bytes or 0) if can.virtio_mem is None else 0,
        virtio_max=virtio_most(vm.domain, now),
        memory_high=now.memory_high_bytes if can.memory_high is None else None,
        disk_ops=now.disk_ops_per_s,
        disk_weight=now.disk_weight,
        disk_weight_wanted=weights.disk_weight,
        tx_rate=now.net_tx_rate_bits_per_s,
        tx_rate_wanted=weights.tx_rate,
    )


def numbers(values: object) -> Numbers:
    """Floats as JSON can hold them: NaN and infinities become None."""
    return tuple(float(v) if math.isfinite(v) else None for v in values)  # type: ignore[attr-defined]


def changes_of(facts: Facts) -> tuple[Change, ...]:
    """The changes of one VM, in a fixed order: CPU, shares, memory, disk, network."""
    cpu = count_changes(facts) if facts.cpu_lever is not StepKind.CPU_QUOTA else quota_changes(facts)
    found = [*cpu, *weight_change(facts, CPU, StepKind.CPU_SHARES, facts.shares, facts.shares_wanted), *memory_changes(facts)]
    found += disk_changes(facts)
    found += [*lever_change(facts, NET_RX, StepKind.NET_RX), *lever_change(facts, NET_TX, StepKind.NET_TX)]
    found += weight_change(facts, NET_TX, StepKind.NET_TX_RATE, facts.tx_rate, facts.tx_rate_wanted)
    return tuple(found)


def outside(facts: Facts, r: int) -> int | None:
    """The target as an integer when the allocation lies outside the range in which nothing is done, else None."""
    target, lower, upper, now = facts.target[r], facts.lower[r], facts.upper[r], facts.allocation[r]
    if target is None or lower is None or upper is None or now is None or lower <= now <= upper:
        return None
    return int(target)


def quota_changes(facts: Facts) -> list[Change]:
    """A quota, and the vCPUs that it needs: plugged in, and online where the guest can be asked."""
    return [*vcpu_change(facts), *online_change(facts), *lever_change(facts, CPU, StepKind.CPU_QUOTA)]


def vcpu_change(facts: Facts) -> list[Change]:
    """More vCPUs when those in force cannot hold the lower end of the CPU size."""
    target, lower = facts.target[CPU], facts.lower[CPU]
    if facts.vcpus is None or target is None or lower is None or lower <= 1000 * facts.vcpus:
        return []
    wanted = min(whole_vcpus(target), facts.vcpus_ceiling)
    if wanted <= facts.vcpus:
        return []
    # An unlimited quota promises the vCPUs; a quota step that follows sets the promise itself.
    delta = 1000.0 * (wanted - facts.vcpus) if facts.raw[CPU] == -1 and outside(facts, CPU) is None else 0.0
    return [change(facts, CPU, StepKind.VCPUS, wanted, facts.vcpus, delta=delta, reason="forecast_peak")]


def online_change(facts: Facts) -> list[Change]:
    """vCPUs that are plugged in and off are brought back when the CPU size needs them."""
    target, lower, now = facts.target[CPU], facts.lower[CPU], facts.vcpus_online
    if facts.vcpus is None or target is None or lower is None or now is None or lower <= 1000 * now or now >= facts.vcpus:
        return []
    return [change(facts, CPU, StepKind.VCPUS_ONLINE, min(whole_vcpus(target), facts.vcpus), now, delta=0.0, reason="forecast_peak")]


def count_changes(facts: Facts) -> list[Change]:
    """Without a quota the CPU's size is its vCPUs; what is not plugged in is plugged first, and brought online by a later plan."""
    value = outside(facts, CPU)
    if value is None or facts.vcpus is None:
        return []
    wanted, now = whole_vcpus(value), facts.vcpus if facts.vcpus_online is None else facts.vcpus_online
    reason = reason_of(facts, CPU, value)
    found = []
    if facts.cpu_lever is StepKind.VCPUS or wanted > facts.vcpus:
        plugged = min(wanted, max(facts.vcpus, facts.vcpus_ceiling))
        if plugged != facts.vcpus:
            delta = 1000.0 * (plugged - facts.vcpus)
            found.append(change(facts, CPU, StepKind.VCPUS, plugged, facts.vcpus, delta=delta, reason=reason))
    if facts.cpu_lever is StepKind.VCPUS_ONLINE and min(wanted, facts.vcpus) != now:
        online = min(wanted, facts.vcpus)
        found.append(change(facts, CPU, StepKind.VCPUS_ONLINE, online, now, delta=1000.0 * (online - now), reason=reason))
    return found


def lever_change(facts: Facts, r: int, kind: StepKind) -> list[Change]:
    """A quota or ceiling."""
    value, now = outside(facts, r), facts.allocation[r]
    if value is None or now is None or value == facts.raw[r]:
        return []
    return [change(facts, r, kind, value, facts.raw[r], delta=value - now, reason=reason_of(facts, r, value))]


def weight_change(facts: Facts, r: int, kind: StepKind, now: int | None, wanted: int | None) -> list[Change]:
    """A weight or guarantee that is not as wanted; cgroup v2 rounds shares to 27, HTB rates to bytes."""
    rounding = {StepKind.CPU_SHARES: 27, StepKind.NET_TX_RATE: 8000}.get(kind, 0)
    if wanted is None or now is None or abs(wanted - now) <= max(rounding, wanted // 100):
        return []
    return [change(facts, r, kind, wanted, now, delta=0.0, reason="host_contention")]


def memory_changes(facts: Facts) -> list[Change]:
    """One step up for each lever that takes part, or a staircase down of one: the host lets only one fall at a time."""
    value, total, balloon = outside(facts, MEMORY), facts.allocation[MEMORY], facts.raw[MEMORY]
    if value is None or total is None or balloon is None or value == int(total):
        return []
    reason, more, plugged = reason_of(facts, MEMORY, value), value - int(total), facts.virtio_bytes
    if more < 0:
        if plugged > 0 or facts.memory_lever is StepKind.VIRTIO_MEM:
            return stairs(facts, StepKind.VIRTIO_MEM, max(0, plugged + more), plugged, reason)
        return stairs(facts, StepKind.MEMORY, balloon + more, balloon, reason)
    found = []
    high = facts.memory_high
    if high is not None and 0 <= high < value:  # pages that the cgroup reclaims again help nobody
        found.append(change(facts, MEMORY, StepKind.MEMORY_HIGH, UNLIMITED, high, delta=0.0, reason=reason))
    by_balloon = min(more, max(0, facts.balloon_max - balloon)) if facts.memory_lever is StepKind.MEMORY else 0
    by_device = max(0, min(more - by_balloon, facts.virtio_max - plugged)) // facts.memory_granule * facts.memory_granule
    for kind, step, now in ((StepKind.MEMORY, by_balloon, balloon), (StepKind.VIRTIO_MEM, by_device, plugged)):
        if step > 0:
            found.append(change(facts, MEMORY, kind, now + step, now, delta=step, reason=reason))
    return found


def stairs(facts: Facts, kind: StepKind, value: int, now: int, reason: str) -> list[Change]:
    """Down in as few equal steps as the stride allows: a last one of under 1 % the host could not tell from standing still.

    A device's share is one of the VM's memory, as on the host.
    """
    found: list[Change] = []
    total = int(facts.allocation[MEMORY] or now)
    while now > value:
        base = now if kind is StepKind.MEMORY else total - (facts.virtio_bytes - now)
        step = one_of_equal(now, value, base, facts.memory_stride)
        below = max(value, math.ceil((now - step) / facts.memory_granule - 1e-9) * facts.memory_granule)
        if below >= now:  # the stride is smaller than a granule
            below = max(value, now - facts.memory_granule)
        after = len(found) * facts.memory_spacing_ns
        found.append(change(facts, MEMORY, kind, below, now, delta=below - now, reason=reason, after_ns=after))
        now = below
    return found


def one_of_equal(now: int, value: int, base: int, stride: float) -> float:
    """The first of the fewest steps from `now` to `value` that are each the same share, at most `stride`, of what `base` then is."""
    end = base - (now - value)
    if stride >= 1.0 or end <= 0:
        return min(stride * base, float(now - value))
    count = math.ceil(math.log(end / base) / math.log(1.0 - stride) - 1e-9)
    return float(base * (1.0 - (end / base) ** (1.0 / max(1, count))))


def disk_changes(facts: Facts) -> list[Change]:
    """A limit of bytes; a limit of operations in force grows along with it, or it would hold the growth back."""
    value, now, ops = outside(facts, DISK), facts.allocation[DISK], facts.disk_ops
    found = []
    if value is not None and now is not None and value != facts.raw[DISK]:
        reason = reason_of(facts, DISK, value)
        found.append(change(facts, DISK, StepKind.DISK_BYTES, value, facts.raw[DISK], delta=0.0, reason=reason))
        if value > now > 0.0 and ops is not None and 0 < ops < VALUE_MAX:  # whatever somebody else set the two to, a step can be sent
            along = min(VALUE_MAX, math.ceil(ops * value / now))
            found.append(change(facts, DISK, StepKind.DISK_OPS, along, ops, delta=0.0, reason=reason))
    return found + weight_change(facts, DISK, StepKind.DISK_WEIGHT, facts.disk_weight, facts.disk_weight_wanted)


def reason_of(facts: Facts, r: int, value: int) -> str:
    """Why, in one word: growth for a forecast, a shrink on evidence, or a cut because the host is full."""
    now = facts.allocation[r]
    if now is not None and value > now:
        return "forecast_peak"
    return "host_contention" if RESOURCES[r] in facts.clipped else "shrink"


def change(
    facts: Facts,
    r: int,
    kind: StepKind,
    value: int,
    before: int | None,
    *,
    delta: float,
    reason: str,
    after_ns: int = 0,
) -> Change:
    """A change of this VM; growth carries the time of its ramp, a weight does not grow anything."""
    grows = before is not None and value > before and kind not in WEIGHTS
    return Change(
        vm_id=facts.vm_id,
        priority=facts.priority,
        kind=kind,
        value=value,
        before=before,
        delta=delta,
        reason=reason,
        ramp_ns=facts.ramp_ns[r] if grows else 0,
        after_ns=after_ns,
    )


def show(values: Numbers) -> dict[str, float | None]:
    """Numbers by the short name of the resource."""
    return dict(zip(SHORT, values, strict=True))
