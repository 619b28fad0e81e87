"""From a size and what is in force to the changes of levers. Works on plain facts, so that a receipt can hold them and replay.

A lever is touched only when the allocation lies outside [lower, upper] (the dead band is in there) and the value is not in force already.
Values are whole granules, as sizing made them. vCPUs follow the CPU size upwards; a balloon shrinks in a staircase of small steps.
"""

from __future__ import annotations

import math

import msgspec

from coordinator.model import VmSize, VmState
from coordinator.sizing.levers import SHORT, ceilings, in_force
from coordinator.sizing.policy import SizingPolicy
from shared.plan import StepKind
from shared.units import CPU, MEMORY, NET_RX, NET_TX, RESOURCES

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


def facts_of(vm: VmState, size: VmSize, policy: SizingPolicy, ramp_ns: tuple[int, ...], *, contended: bool) -> Facts:
    """Gather the facts of one VM. `contended`: the host's CPUs are about to run short, so shares follow priority."""
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
        shares_wanted=policy.shares[priority] if contended and can.cpu_quota is None else None,
        ramp_ns=ramp_ns,
        memory_stride=policy.memory_stride,
        memory_spacing_ns=int(policy.memory_spacing_s * 1e9),
        memory_granule=int(policy.granule[MEMORY]),
    )


def numbers(values: object) -> Numbers:
    """Floats as JSON can hold them: NaN and infinities become None."""
    return tuple(float(v) if math.isfinite(v) else None for v in values)  # type: ignore[attr-defined]


def changes_of(facts: Facts) -> tuple[Change, ...]:
    """The changes of one VM, in a fixed order: vCPUs, quota, shares, memory, rx, tx."""
    found = [*vcpu_change(facts), *lever_change(facts, CPU, StepKind.CPU_QUOTA), *shares_change(facts), *memory_changes(facts)]
    found += [*lever_change(facts, NET_RX, StepKind.NET_RX), *lever_change(facts, NET_TX, StepKind.NET_TX)]
    return tuple(found)


def outside(facts: Facts, r: int) -> int | None:
    """The target as an integer when the allocation lies outside the range in which nothing is done, else None."""
    target, lower, upper, now = facts.target[r], facts.lower[r], facts.upper[r], facts.allocation[r]
    if target is None or lower is None or upper is None or now is None or lower <= now <= upper:
        return None
    return int(target)


def vcpu_change(facts: Facts) -> list[Change]:
    """More vCPUs when those in force cannot hold the lower end of the CPU size."""
    target, lower = facts.target[CPU], facts.lower[CPU]
    if facts.vcpus is None or target is None or lower is None or lower <= 1000 * facts.vcpus:
        return []
    wanted = min(math.ceil(target / 1000), facts.vcpus_ceiling)
    if wanted <= facts.vcpus:
        return []
    # An unlimited quota promises the vCPUs; a quota step that follows sets the promise itself.
    delta = 1000.0 * (wanted - facts.vcpus) if facts.raw[CPU] == -1 and outside(facts, CPU) is None else 0.0
    return [change(facts, CPU, StepKind.VCPUS, wanted, facts.vcpus, delta=delta, reason="forecast_peak")]


def lever_change(facts: Facts, r: int, kind: StepKind) -> list[Change]:
    """A quota or ceiling."""
    value, now = outside(facts, r), facts.allocation[r]
    if value is None or now is None or value == facts.raw[r]:
        return []
    return [change(facts, r, kind, value, facts.raw[r], delta=value - now, reason=reason_of(facts, r, value))]


def shares_change(facts: Facts) -> list[Change]:
    wanted = facts.shares_wanted
    if wanted is None or facts.shares is None or abs(wanted - facts.shares) <= max(27, wanted // 100):  # cgroup v2 rounds to 27 shares
        return []
    return [change(facts, CPU, StepKind.CPU_SHARES, wanted, facts.shares, delta=0.0, reason="host_contention")]


def memory_changes(facts: Facts) -> list[Change]:
    """One step up, or a staircase down."""
    value, now = outside(facts, MEMORY), facts.raw[MEMORY]
    if value is None or now is None or value == now:
        return []
    reason = reason_of(facts, MEMORY, value)
    if value > now:
        return [change(facts, MEMORY, StepKind.MEMORY, value, now, delta=value - now, reason=reason)]
    stairs: list[Change] = []
    while now > value:
        below = max(value, math.ceil(now * (1.0 - facts.memory_stride) / facts.memory_granule) * facts.memory_granule)
        if below >= now:  # the stride is smaller than a granule
            below = max(value, now - facts.memory_granule)
        after = len(stairs) * facts.memory_spacing_ns
        stairs.append(change(facts, MEMORY, StepKind.MEMORY, below, now, delta=below - now, reason=reason, after_ns=after))
        now = below
    return stairs


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
    grows = before is not None and value > before and kind is not StepKind.CPU_SHARES
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
