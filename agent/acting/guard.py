"""The guard: what the host refuses whatever anybody asks, local rules included. Pure; the trust boundary of the product.

Invariant (property-tested): a value that passes lies within the VM's floor and ceiling, unless it already lay outside and the step moves
towards them; growth never lifts the sum of promises over the host's commit limit; a shrink is small, rare, and needs a fresh reading
that shows no pressure. A value is clipped where a smaller change is still right; otherwise refused with a stable code and the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.acting.levers import SHARES_MAX, SHARES_MIN, bounds, charge, grows, incapable, may_be_unlimited, shows
from shared.config import GuardConfig
from shared.model import Domain, VmSample
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode
from shared.units import KIB, NS_PER_S, UNLIMITED

MINUTE_NS: Final = 60 * NS_PER_S

# Held back by its quota for 2 % of the time: above CFS's accounting noise, below what an owner would notice.
THROTTLED_PERMILLE: Final = 20
# Tasks waited for memory 5 % of the time (PSI some): oomd's usual first alarm.
MEMORY_STALL_PERMILLE: Final = 50
# A guest that swaps this much is short of memory, not tidying up.
SWAPPING_BYTES_PER_S: Final = 256 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the guard may look at: one VM and lever now. None = not known. `room` = promise the host has left, None = not limited."""

    domain: Domain | None
    in_force: int | None
    vcpus: int
    reading: VmSample | None
    reading_at_ns: int
    busy: bool = False
    growth_waits_until_ns: int = 0  # backing off after failed growths
    shrink_waits_until_ns: int = 0  # after failed shrinks: those never delay a growth
    grown_at_ns: int | None = None
    shrunk_at_ns: int | None = None
    vm_steps: int = 0
    host_steps: int = 0
    room: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`value` may be submitted (None = refused). `code` says why it was refused or clipped; `wait_ns` when asking again may help."""

    value: int | None
    code: RefusalCode | None = None
    detail: str = ""
    numbers: Mapping[str, int] | None = None
    wait_ns: int = 0

    @property
    def clipped(self) -> bool:
        """Passed with another value than asked."""
        return self.value is not None and self.code is not None


def held_back(reading: VmSample) -> bool:
    """The quota kept the VM from running in the last period: its use is not its demand."""
    return reading.cpu_throttled_permille is not None and reading.cpu_throttled_permille >= THROTTLED_PERMILLE


def short_of_memory(reading: VmSample) -> bool:
    """The VM stalls on memory or its guest swaps."""
    stalled = reading.psi_memory_some_permille
    swapped = reading.memory_swap_bytes_per_s
    return (stalled is not None and stalled >= MEMORY_STALL_PERMILLE) or (swapped is not None and swapped >= SWAPPING_BYTES_PER_S)


def dropping(reading: VmSample, kind: StepKind) -> bool:
    """Packets hit our ceiling in this direction."""
    dropped = reading.net_rx_dropped_per_s if kind is StepKind.NET_RX else reading.net_tx_dropped_per_s
    return dropped is not None and dropped > 0


def used(reading: VmSample, kind: StepKind) -> int | None:
    """Measured use in the lever's unit; for CPU the peak within the period where there was one."""
    if kind is StepKind.CPU_QUOTA:
        mean, peak = reading.cpu_used_millicores, reading.cpu_used_peak_millicores
        return mean if peak is None or mean is None else max(mean, peak)
    if kind is StepKind.MEMORY:
        return reading.memory_used_bytes
    if kind is StepKind.NET_RX:
        return reading.net_rx_bits_per_s
    return reading.net_tx_bits_per_s if kind is StepKind.NET_TX else None


class Guard:
    """Checks steps against its limits; holds no state but them."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._max_age_ns = config.reading_max_age_s * NS_PER_S
        self._cooldown_ns = config.shrink_cooldown_s * NS_PER_S
        self._after_grow_ns = config.shrink_after_grow_s * NS_PER_S

    def check(self, step: Step, view: View, now_ns: int) -> Verdict:
        """Whether `step` may be submitted now, and with which value."""
        kind, domain, current = step.kind, view.domain, view.in_force
        if domain is None:
            return _no(RefusalCode.UNKNOWN_VM, f"no VM {step.vm_id} on this host")
        if not domain.running:
            return _no(RefusalCode.VM_NOT_RUNNING, f"{domain.name} is not running")
        if domain.policy.excluded:
            return _no(RefusalCode.VM_EXCLUDED, f"policy opts {domain.name} out")
        if (reason := incapable(kind, domain)) is not None:
            return _no(RefusalCode.NOT_CAPABLE, f"{kind}: {reason}")
        if (invalid := _invalid(step)) is not None:
            return invalid
        if (kind is StepKind.VCPUS and step.value > domain.vcpus_max) or (kind is StepKind.MEMORY and step.value > domain.memory_max_bytes):
            most = domain.vcpus_max if kind is StepKind.VCPUS else domain.memory_max_bytes
            return _no(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"{kind} {step.value}: the domain allows {most}", asked=step.value, allowed=most)
        if kind is StepKind.MIGRATE:  # no value in force to compare with; the rest is the migration desk's
            return self._blocked(view, growing=True, now_ns=now_ns) or Verdict(value=step.value)
        if current is None:
            return _no(RefusalCode.READING_STALE, f"{kind} in force is not known: neither growth nor shrink can be judged")
        if shows(kind, step.value, current):
            return _no(RefusalCode.NOTHING_TO_DO, f"{kind} is {current} already", in_force=current)
        growing = grows(current, step.value)
        if (blocked := self._blocked(view, growing, now_ns)) is not None:
            return blocked
        low, high = bounds(kind, domain, self.config)
        if growing:
            return self._growth(step, view, domain, current, high)
        if kind in (StepKind.VCPUS, StepKind.CPU_SHARES):
            if kind is StepKind.VCPUS:
                return _no(RefusalCode.NOT_CAPABLE, f"vCPUs are only added: {current} in force, {step.value} asked", in_force=current)
            return Verdict(value=step.value)  # a weight takes nothing away while the host has CPU to spare
        if (veto := self._shrink_veto(kind, view, now_ns)) is not None:
            return veto
        return self._shrink(step, view, domain, current, (low, high))

    def _blocked(self, view: View, growing: bool, now_ns: int) -> Verdict | None:
        if view.busy:
            return _no(RefusalCode.VM_BUSY, "a step for this VM and lever is in flight", wait_ns=NS_PER_S)
        wait = (view.growth_waits_until_ns if growing else view.shrink_waits_until_ns) - now_ns
        if wait > 0:
            return _no(RefusalCode.BACKING_OFF, f"earlier steps failed: next try in {wait // NS_PER_S} s", wait_ns=wait)
        if view.vm_steps >= self.config.steps_per_vm_per_minute:
            return _no(
                RefusalCode.RATE_LIMITED, f"{view.vm_steps} steps for this VM in the last minute", wait_ns=NS_PER_S, vm=view.vm_steps
            )
        if view.host_steps >= self.config.steps_per_host_per_minute:
            return _no(RefusalCode.RATE_LIMITED, f"{view.host_steps} steps on this host in the last minute", wait_ns=NS_PER_S)
        return None

    def _growth(self, step: Step, view: View, domain: Domain, current: int, high: int) -> Verdict:
        kind, value, code, detail = step.kind, step.value, None, ""
        if value == UNLIMITED:
            if not may_be_unlimited(kind, domain):
                value, code, detail = high, RefusalCode.ABOVE_CEILING, f"unlimited asked, the policy's ceiling is {high}"
        elif value > high:
            policy_bites = high < _domain_maximum(kind, domain)
            code = RefusalCode.ABOVE_CEILING if policy_bites else RefusalCode.ABOVE_DOMAIN_MAXIMUM
            value, detail = high, f"{kind} {step.value}: at most {high}"
        if not grows(current, value):
            return _no(code or RefusalCode.ABOVE_CEILING, f"{kind} in force is {current}, at most {high}", in_force=current, ceiling=high)
        verdict = self._within_commit(kind, value, current, view, domain)
        if verdict is not None:
            return verdict
        if code is None:
            return Verdict(value=value)
        return Verdict(value=value, code=code, detail=detail, numbers={"asked": step.value, "allowed": value})

    def _within_commit(self, kind: StepKind, value: int, current: int, view: View, domain: Domain) -> Verdict | None:
        """None = the whole growth fits. Otherwise clipped to the room, or refused when that is less than 1 % of what was asked."""
        if view.room is None:
            return None
        if kind is StepKind.VCPUS:
            # Only an unlimited quota turns vCPUs into promised CPU; the caller passes no room otherwise.
            need, room = (value - current) * 1000, max(0, view.room) // 1000 * 1000
            fits = current + room // 1000
        else:
            now_charged = charge(kind, current, domain, view.vcpus)
            need, room = charge(kind, value, domain, view.vcpus) - now_charged, max(0, view.room)
            fits = now_charged + room
        if need <= room:
            return None
        if room * 100 < need or shows(kind, fits, current):
            return _no(RefusalCode.HOST_COMMIT_LIMIT, f"{kind}: {need} more asked, the host has room for {room}", need=need, room=room)
        detail = f"{kind} {value}: the host has room for {fits}"
        return Verdict(value=fits, code=RefusalCode.HOST_COMMIT_LIMIT, detail=detail, numbers={"need": need, "room": room})

    def _shrink(self, step: Step, view: View, domain: Domain, current: int, limits: tuple[int, int]) -> Verdict:
        kind, value = step.kind, step.value
        low, high = limits
        code, detail, numbers = None, "", {"asked": value, "in_force": current}
        if value < low:
            value, code, detail = low, RefusalCode.BELOW_FLOOR, f"{kind} {step.value}: at least {low}"
        need = self._working_set(kind, view, high)
        if value < need:
            value, code, detail = need, RefusalCode.BELOW_WORKING_SET, f"{kind} {step.value}: measured use and margin need {need}"
        base = charge(kind, current, domain, view.vcpus)
        most = self.config.memory_shrink_max_permille if kind is StepKind.MEMORY else self.config.cpu_shrink_max_permille
        least = base - base * most // 1000
        if value < least:
            value, code, detail = least, RefusalCode.STEP_TOO_LARGE, f"{kind} {step.value}: one step goes to {least} at most"
        if grows(current, value) or shows(kind, value, current):
            return _no(code or RefusalCode.NOTHING_TO_DO, detail or f"{kind} is {current} already", in_force=current, least=value)
        # From unlimited to a number above what unlimited counts for: the promise grows although the limit falls.
        if view.room is not None and charge(kind, value, domain, view.vcpus) - base > max(0, view.room):
            return _no(RefusalCode.HOST_COMMIT_LIMIT, f"{kind} {value}: the host has room for {max(0, view.room)} more", room=view.room)
        return Verdict(value=value) if code is None else Verdict(value=value, code=code, detail=detail, numbers=numbers)

    def _shrink_veto(self, kind: StepKind, view: View, now_ns: int) -> Verdict | None:
        reading = view.reading
        age_ns = now_ns - view.reading_at_ns
        if reading is None or age_ns > self._max_age_ns:
            return _no(RefusalCode.READING_STALE, "no fresh sample of this VM")
        if kind is StepKind.MEMORY:
            guest_age = reading.memory_reading_age_ms
            if reading.memory_used_bytes is None or guest_age is None or guest_age * 1_000_000 + age_ns > self._max_age_ns:
                return _no(RefusalCode.READING_STALE, "no fresh reading from the guest")
            pressed = short_of_memory(reading)
        else:
            if used(reading, kind) is None:
                return _no(RefusalCode.READING_STALE, f"no reading of use for {kind}")
            pressed = held_back(reading) if kind is StepKind.CPU_QUOTA else dropping(reading, kind)
        if pressed:
            return _no(RefusalCode.PRESSURE_VETO, f"{kind}: the VM ran into its limit in the last period")
        waits = [
            (pause - (now_ns - changed_at), what)
            for changed_at, pause, what in (
                (view.shrunk_at_ns, self._cooldown_ns, "shrink"),
                (view.grown_at_ns, self._after_grow_ns, "growth"),
            )
            if changed_at is not None
        ]
        wait, what = max(waits, default=(0, ""))
        if wait > 0:
            return _no(RefusalCode.COOLDOWN, f"{kind}: last {what} too recent, {wait // NS_PER_S} s to go", wait_ns=wait)
        return None

    def _working_set(self, kind: StepKind, view: View, high: int) -> int:
        """Use and its margin; from no limit at all, the margin alone must not lead above the ceiling."""
        use = None if view.reading is None else used(view.reading, kind)
        return 0 if use is None else max(use, min(high, use + use * self.config.working_set_margin_permille // 1000))


def _no(code: RefusalCode, detail: str, wait_ns: int = 0, **numbers: int) -> Verdict:
    return Verdict(value=None, code=code, detail=detail, numbers=numbers, wait_ns=wait_ns)


def _invalid(step: Step) -> Verdict | None:
    kind, value = step.kind, step.value
    if kind in (StepKind.CPU_QUOTA, StepKind.NET_RX, StepKind.NET_TX, StepKind.MIGRATE):
        if value == UNLIMITED or value > 0:
            return None
        return _no(RefusalCode.INVALID_VALUE, f"{kind} {value}: allowed {UNLIMITED} (unlimited) or more than 0")
    if kind is StepKind.CPU_SHARES:
        if SHARES_MIN <= value <= SHARES_MAX:
            return None
        return _no(RefusalCode.INVALID_VALUE, f"{kind} {value}: allowed {SHARES_MIN} to {SHARES_MAX}")
    return None if value > 0 else _no(RefusalCode.INVALID_VALUE, f"{kind} {value}: allowed more than 0")


def _domain_maximum(kind: StepKind, domain: Domain) -> int:
    if kind is StepKind.CPU_QUOTA:
        return domain.vcpus_max * 1000
    if kind is StepKind.VCPUS:
        return domain.vcpus_max
    return domain.memory_max_bytes if kind is StepKind.MEMORY else domain.net_max_bits_per_s
