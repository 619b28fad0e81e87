"""The guard: what the host refuses whatever anybody asks, local rules included. Pure; the trust boundary of the product.

Invariant (property-tested): a value that passes lies within the VM's floor and ceiling, unless it already lay outside and the step moves
towards them; growth never lifts the sum of promises over the host's commit limit; memory moves in small strides both ways; a shrink is
small, rare, and needs a fresh reading that shows no pressure. A value is clipped where a smaller change is still right; otherwise refused
with a stable code and the numbers.

Order of the checks; the first that says no names the code, of several that clip the last:
1. the VM: UNKNOWN_VM, VM_NOT_RUNNING, VM_EXCLUDED, YIELDED
2. the value: INVALID_VALUE, NOT_CAPABLE (in this direction), ABOVE_DOMAIN_MAXIMUM, READING_STALE (in force unknown), NOTHING_TO_DO
3. the moment: VM_BUSY, BACKING_OFF, RATE_LIMITED
4. a growth clips: ABOVE_CEILING or ABOVE_DOMAIN_MAXIMUM, GROWTH_BUDGET, STEP_TOO_LARGE, HOST_COMMIT_LIMIT
5. a shrink needs: CIRCUIT_OPEN, READING_STALE, PRESSURE_VETO, AFTER_OOM, COOLDOWN, FLAP_BUDGET, BLAST_RADIUS;
   and, of memory, VM_BUSY while another memory lever falls;
   then clips: BELOW_FLOOR, BELOW_WORKING_SET, RATE_OF_CHANGE, STEP_TOO_LARGE; last HOST_COMMIT_LIMIT
6. a move needs 1 and 3 for every lever of the VM, then CIRCUIT_OPEN, READING_STALE, PRESSURE_VETO; where to is not the guard's to judge
Weights and the CFS period take from nobody while there is enough: 1 to 3 only.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.acting.budgets import HOUR_NS, MINUTE_NS
from agent.acting.levers import (
    DIMM_BYTES,
    MEMORY_DEVICES,
    MEMORY_LEVERS,
    PROMISE_OF,
    VCPU_COUNTS,
    WEIGHTS,
    bounds,
    charge,
    domain_maximum,
    extent,
    grows,
    incapable,
    invalid,
    may_be_unlimited,
    shows,
    smallest_change,
    tellable,
)
from agent.acting.pressure import MEMORY_KINDS, pressed, used
from shared.config import GuardConfig
from shared.model import Domain, VmSample
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S, UNLIMITED

# A growth that answers an out-of-memory kill does not wait for a back-off: so long is the kill news.
OOM_NEWS_NS = MINUTE_NS


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the guard may look at: one VM and lever now. None = not known. `room` = promise the host has left, None = not limited.

    The figures of memory are filled in for the levers that make it up; no other lever is judged by them.
    """

    domain: Domain | None
    in_force: int | None
    vcpus: int
    reading: VmSample | None
    reading_at_ns: int
    busy: bool = False
    moving: bool = False  # any lever of the VM is in flight
    growth_waits_until_ns: int = 0  # backing off after failed growths
    shrink_waits_until_ns: int = 0  # after failed shrinks: those never delay a growth
    grown_at_ns: int | None = None
    shrunk_at_ns: int | None = None
    vm_steps: int = 0
    host_steps: int = 0
    room: int | None = None
    yielded_until_ns: int = 0  # somebody else changed the VM
    memory_bytes: int | None = None  # balloon in force, without devices
    memory_sum_bytes: int = 0  # with devices
    memory_falling: bool = False  # another of the levers that make up its memory is going down: what may go is not known
    memory_peak: tuple[int, int] | None = None  # (when, largest sum that was cut from within the hour)
    turning: bool = False  # a shrink of this lever would be a turn
    turned_at_ns: tuple[int, ...] = ()  # turns of this lever within the window, oldest first
    cut_recently: bool = False  # this VM was cut within the minute
    cuts_at_ns: tuple[int, ...] = ()  # other VMs were, oldest first
    vms: int = 1  # running on the host
    circuit_open_until_ns: int = 0
    budget_base: int | None = None  # what growth without a plan is a share of
    budget_ends_ns: int | None = None  # end of the open window
    oom_at_ns: int | None = None  # newest sample with processes killed for want of memory


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
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


class Limit(msgspec.Struct, frozen=True):
    """One bound on a step's value, and what it is called when it bites."""

    value: int
    code: RefusalCode
    detail: str
    wait_ns: int = 0


class Guard:
    """Checks steps against its limits; holds no state but them."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._max_age_ns = config.reading_max_age_s * NS_PER_S
        self._cooldown_ns = config.shrink_cooldown_s * NS_PER_S
        self._after_grow_ns = config.shrink_after_grow_s * NS_PER_S

    def check(self, step: Step, view: View, now_ns: int, *, restoring: bool = False, unplanned: bool = False) -> Verdict:
        """Whether `step` may be submitted now, and with which value.

        `restoring`: an owner's undo, or limits that came with a move: cooldown, flap budget, rate of change and blast radius do not
        hold it up; everything else does. `unplanned`: growth that no plan and no person asked for counts against the growth budget.
        """
        kind, domain, current = step.kind, view.domain, view.in_force
        if domain is None:
            return _no(RefusalCode.UNKNOWN_VM, f"no VM {step.vm_id} on this host")
        if (barred := _barred(domain, view, now_ns)) is not None:
            return barred
        if kind is StepKind.MIGRATE:
            return self._move(step, view, domain, now_ns)
        growing = current is None or grows(current, step.value)
        if (unfit := _unfit(step, domain, growing)) is not None:
            return unfit
        if current is None or (kind in MEMORY_DEVICES and view.memory_bytes is None):
            return _no(RefusalCode.READING_STALE, f"{kind} in force is not known: neither growth nor shrink can be judged")
        if shows(kind, step.value, current):
            return _no(RefusalCode.NOTHING_TO_DO, f"{kind} is {current} already", in_force=current)
        if (blocked := self._blocked(kind, view, growing, now_ns)) is not None:
            return blocked
        if kind in WEIGHTS:
            return Verdict(value=step.value)
        if growing:
            return self._growth(step, view, domain, current, now_ns, unplanned)
        if (veto := self._shrink_veto(kind, view, now_ns)) is not None:
            return veto
        if not restoring and (early := self._too_soon(kind, view, now_ns)) is not None:
            return early
        return self._shrink(step, view, domain, current, now_ns, restoring)

    def _blocked(self, kind: StepKind, view: View, growing: bool, now_ns: int) -> Verdict | None:
        if view.busy:
            return _no(RefusalCode.VM_BUSY, "a step for this VM and lever is in flight", wait_ns=NS_PER_S)
        wait = (view.growth_waits_until_ns if growing else view.shrink_waits_until_ns) - now_ns
        relief = growing and kind in MEMORY_KINDS and view.oom_at_ns is not None and 0 <= now_ns - view.oom_at_ns < OOM_NEWS_NS
        if wait > 0 and not relief:
            return _no(RefusalCode.BACKING_OFF, f"earlier steps failed: next try in {wait // NS_PER_S} s", wait_ns=wait)
        if view.vm_steps >= self.config.steps_per_vm_per_minute:
            return _no(
                RefusalCode.RATE_LIMITED, f"{view.vm_steps} steps for this VM in the last minute", wait_ns=NS_PER_S, vm=view.vm_steps
            )
        if view.host_steps >= self.config.steps_per_host_per_minute:
            return _no(RefusalCode.RATE_LIMITED, f"{view.host_steps} steps on this host in the last minute", wait_ns=NS_PER_S)
        return None

    def _move(self, step: Step, view: View, domain: Domain, now_ns: int) -> Verdict:
        """A live migration: the VM must be idle as far as the agent is concerned, and well."""
        if (unfit := _unfit(step, domain)) is not None:
            return unfit
        if view.moving:
            return _no(RefusalCode.VM_BUSY, "a step for this VM is in flight", wait_ns=NS_PER_S)
        if (blocked := self._blocked(step.kind, view, True, now_ns)) is not None:
            return blocked
        return self._unsafe(step.kind, view, now_ns) or Verdict(value=step.value)

    def _growth(self, step: Step, view: View, domain: Domain, current: int, now_ns: int, unplanned: bool) -> Verdict:  # noqa: PLR0917
        kind, value, bit = step.kind, step.value, None
        limits = [self._ceiling(kind, view, domain, current)]
        if unplanned and (budget := self._budget(kind, view, now_ns)) is not None:
            limits.append(budget)
        if kind in MEMORY_LEVERS:
            most = self._stride(kind, view, current, self.config.memory_grow_max_permille)
            at_once = current + max(most, tellable(kind, current))
            limits.append(Limit(at_once, RefusalCode.STEP_TOO_LARGE, f"{kind} {value}: one step goes to {at_once} at most"))
        for limit in limits:
            forbidden = value == UNLIMITED and not may_be_unlimited(kind, domain)
            if forbidden or extent(kind, value, domain, view.vcpus) > limit.value:
                value, bit = limit.value, limit
        value = value - value % DIMM_BYTES if kind is StepKind.DIMM else value
        if bit is not None and (not grows(current, value) or shows(kind, value, current)):
            return _no(bit.code, bit.detail, bit.wait_ns, in_force=current, allowed=value)
        verdict = self._within_commit(kind, value, current, view, domain)
        if verdict is not None:
            return verdict
        if bit is None:
            return Verdict(value=value)
        return Verdict(value=value, code=bit.code, detail=bit.detail, numbers={"asked": step.value, "allowed": value})

    def _ceiling(self, kind: StepKind, view: View, domain: Domain, current: int) -> Limit:
        _, high = bounds(kind, domain, self.config)
        most, memory = domain_maximum(kind, domain), domain.policy.memory_ceiling_bytes
        if kind is StepKind.VCPUS_ONLINE:
            high = min(high, view.vcpus)  # a guest cannot bring online what is not plugged in
        if kind in MEMORY_LEVERS and memory is not None:
            high = min(high, current + max(0, memory - view.memory_sum_bytes))
        code = RefusalCode.ABOVE_CEILING if high < most and kind is not StepKind.VCPUS_ONLINE else RefusalCode.ABOVE_DOMAIN_MAXIMUM
        return Limit(high, code, f"{kind} in force is {current}, at most {high}")

    def _budget(self, kind: StepKind, view: View, now_ns: int) -> Limit | None:
        """None = the lever has no budget: nothing of it is promised, or what it began with is not known."""
        if kind not in PROMISE_OF or view.budget_base is None:
            return None
        base = view.budget_base
        most = base + max(base * self.config.growth_budget_permille // 1000, smallest_change(kind, self.config))
        wait_ns = 0 if view.budget_ends_ns is None else view.budget_ends_ns - now_ns
        return Limit(most, RefusalCode.GROWTH_BUDGET, f"{kind}: began with {base}, at most {most} without a plan", wait_ns)

    def _stride(self, kind: StepKind, view: View, base: int, permille: int) -> int:
        """The most that one step may move a lever. A device's share is one of the VM's memory, not of itself."""
        if kind in MEMORY_DEVICES:
            base = view.memory_bytes or 0
        most = max(base * permille // 1000, smallest_change(kind, self.config))
        return most - most % DIMM_BYTES if kind is StepKind.DIMM else most

    def _within_commit(self, kind: StepKind, value: int, current: int, view: View, domain: Domain) -> Verdict | None:
        """None = the whole growth fits. Otherwise clipped to the room, or refused when that is less than 1 % of what was asked."""
        if view.room is None:
            return None
        room = max(0, view.room)
        if kind is StepKind.VCPUS:
            # Only an unlimited quota turns vCPUs into promised CPU; the caller passes no room otherwise.
            need, room = (value - current) * 1000, room // 1000 * 1000
            fits = current + room // 1000
        else:
            now_charged = charge(kind, current, domain, view.vcpus)
            need = charge(kind, value, domain, view.vcpus) - now_charged
            fits = now_charged + room
        if need <= room:
            return None
        fits -= fits % DIMM_BYTES if kind is StepKind.DIMM else 0
        if room * 100 < need or shows(kind, fits, current):
            return _no(RefusalCode.HOST_COMMIT_LIMIT, f"{kind}: {need} more asked, the host has room for {room}", need=need, room=room)
        detail = f"{kind} {value}: the host has room for {fits}"
        return Verdict(value=fits, code=RefusalCode.HOST_COMMIT_LIMIT, detail=detail, numbers={"need": need, "room": room})

    def _unsafe(self, kind: StepKind, view: View, now_ns: int) -> Verdict | None:
        """Why nothing may be taken from this VM, nor the VM moved, by what the host and its reading show."""
        if (wait := view.circuit_open_until_ns - now_ns) > 0:
            return _no(RefusalCode.CIRCUIT_OPEN, f"too many steps failed on this host: {wait // NS_PER_S} s to go", wait_ns=wait)
        reading = view.reading
        if reading is None or now_ns - view.reading_at_ns > self._max_age_ns:
            return _no(RefusalCode.READING_STALE, "no fresh sample of this VM")
        if pressed(reading, kind):
            return _no(RefusalCode.PRESSURE_VETO, f"{kind}: the VM ran into its limit in the last period")
        return None

    def _shrink_veto(self, kind: StepKind, view: View, now_ns: int) -> Verdict | None:
        """Nobody's shrink passes these, an owner's undo included."""
        if (unsafe := self._unsafe(kind, view, now_ns)) is not None:
            return unsafe
        if kind in MEMORY_LEVERS and view.memory_falling:
            return _no(RefusalCode.VM_BUSY, "memory of this VM is being taken by another lever", wait_ns=NS_PER_S)
        reading = view.reading
        assert reading is not None
        if used(reading, kind) is None:
            return _no(RefusalCode.READING_STALE, f"no reading of use for {kind}")
        if kind not in MEMORY_KINDS:
            return None
        age_ms = reading.memory_reading_age_ms
        if age_ms is None or age_ms * 1_000_000 + now_ns - view.reading_at_ns > self._max_age_ns:
            return _no(RefusalCode.READING_STALE, "no fresh reading from the guest")
        if view.oom_at_ns is not None and (wait := view.oom_at_ns + self.config.after_oom_s * NS_PER_S - now_ns) > 0:
            return _no(RefusalCode.AFTER_OOM, f"the guest killed for want of memory, {wait // NS_PER_S} s to go", wait_ns=wait)
        return None

    def _too_soon(self, kind: StepKind, view: View, now_ns: int) -> Verdict | None:
        """Cooldown, flap budget, blast radius: what keeps changes rare, and few at a time."""
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
        turns, allowed = view.turned_at_ns, self.config.flap_reversals
        if view.turning and len(turns) >= allowed:
            # With a budget of none at all there is no turn to wait for.
            wait = 0 if allowed == 0 else turns[-allowed] + self.config.flap_window_s * NS_PER_S - now_ns
            detail = f"{kind} turned {len(turns)} times of late, at most {allowed}"
            return _no(RefusalCode.FLAP_BUDGET, detail, wait_ns=wait, turns=len(turns), allowed=allowed)
        cuts, radius = view.cuts_at_ns, max(1, view.vms * self.config.blast_radius_permille // 1000)
        if not view.cut_recently and len(cuts) >= radius:
            detail = f"{len(cuts)} of {view.vms} VMs were cut within the minute, at most {radius}"
            return _no(RefusalCode.BLAST_RADIUS, detail, wait_ns=cuts[-radius] + MINUTE_NS - now_ns, cut=len(cuts), allowed=radius)
        return None

    def _shrink(self, step: Step, view: View, domain: Domain, current: int, now_ns: int, restoring: bool) -> Verdict:  # noqa: PLR0917
        kind, value, bit = step.kind, step.value, None
        low, high = bounds(kind, domain, self.config)
        base = extent(kind, current, domain, view.vcpus)
        limits = [Limit(low, RefusalCode.BELOW_FLOOR, f"{kind} {value}: at least {low}"), self._need(kind, view, domain, current, high)]
        if kind in MEMORY_LEVERS and not restoring and (hourly := self._hourly(kind, view, base, now_ns)) is not None:
            limits.append(hourly)
        share = self.config.memory_shrink_max_permille if kind in MEMORY_KINDS else self.config.cpu_shrink_max_permille
        least = base - self._stride(kind, view, base, share)
        limits.append(Limit(least, RefusalCode.STEP_TOO_LARGE, f"{kind} {value}: one step goes to {least} at most"))
        for limit in limits:
            if value < limit.value:
                value, bit = limit.value, limit
        value = value + -value % DIMM_BYTES if kind is StepKind.DIMM else value
        if bit is not None and (grows(current, value) or shows(kind, value, current)):
            return _no(bit.code, bit.detail, bit.wait_ns, in_force=current, least=value)
        # From unlimited to a number above what unlimited counts for: the promise grows although the limit falls.
        if view.room is not None and value - base > max(0, view.room):
            return _no(RefusalCode.HOST_COMMIT_LIMIT, f"{kind} {value}: the host has room for {view.room} more", room=view.room)
        if bit is None:
            return Verdict(value=value)
        return Verdict(value=value, code=bit.code, detail=bit.detail, numbers={"asked": step.value, "in_force": current, "allowed": value})

    def _need(self, kind: StepKind, view: View, domain: Domain, current: int, high: int) -> Limit:
        """Use and its margin; from no limit at all, the margin alone must not lead above the ceiling. A guarantee is no limit of use."""
        assert view.reading is not None  # the veto has seen to it, and to its use being known
        use = used(view.reading, kind)
        assert use is not None
        margin = use * self.config.working_set_margin_permille // 1000
        if kind in MEMORY_DEVICES:
            # What may go is what the guest could do without, less the margin, whatever its memory consists of; the sum keeps the floor.
            usable = view.reading.memory_usable_bytes or 0
            floor = bounds(StepKind.MEMORY, domain, self.config)[0]
            least = current - max(0, min(usable - margin, view.memory_sum_bytes - floor))
        elif kind in VCPU_COUNTS:
            least = -(-(use + margin) // 1000)
        elif kind is StepKind.NET_TX_RATE:
            least = 0
        else:
            least = max(use, min(high, use + margin))
        return Limit(least, RefusalCode.BELOW_WORKING_SET, f"{kind}: measured use and margin need {least}")

    def _hourly(self, kind: StepKind, view: View, base: int, now_ns: int) -> Limit | None:
        """What the lever keeps when the VM's memory in sum may lose no more than its share of the hour's largest."""
        now = max(view.memory_sum_bytes, base)
        at_ns, peak = view.memory_peak or (now_ns, now)
        peak = max(peak, now)
        least = base - (now - (peak - peak * self.config.memory_cut_per_hour_permille // 1000))
        detail = f"{kind}: {peak - now} of {peak} bytes went within the hour"
        return Limit(least, RefusalCode.RATE_OF_CHANGE, detail, at_ns + HOUR_NS - now_ns)


def _barred(domain: Domain, view: View, now_ns: int) -> Verdict | None:
    """Why nothing at all is done to this VM."""
    if not domain.running:
        return _no(RefusalCode.VM_NOT_RUNNING, f"{domain.name} is not running")
    if domain.policy.excluded:
        return _no(RefusalCode.VM_EXCLUDED, f"policy opts {domain.name} out")
    if (wait := view.yielded_until_ns - now_ns) > 0:
        return _no(RefusalCode.YIELDED, f"somebody else changed {domain.name}: {wait // NS_PER_S} s to go", wait_ns=wait)
    return None


def _unfit(step: Step, domain: Domain, growing: bool = True) -> Verdict | None:
    """Values that the lever or the domain does not know."""
    kind, value = step.kind, step.value
    if (reason := invalid(kind, value)) is not None:
        return _no(RefusalCode.INVALID_VALUE, f"{kind} {value}: {reason}")
    if (reason := incapable(kind, domain, growing)) is not None:
        return _no(RefusalCode.NOT_CAPABLE, f"{kind}: {reason}")
    # Limits above what a domain can use do no harm and are clipped; there is no such vCPU and no such memory.
    if kind in (*VCPU_COUNTS, *MEMORY_LEVERS) and value > (most := domain_maximum(kind, domain)):
        return _no(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"{kind} {value}: the domain allows {most}", asked=value, allowed=most)
    return None


def _no(code: RefusalCode, detail: str, wait_ns: int = 0, **numbers: int) -> Verdict:
    return Verdict(value=None, code=code, detail=detail, numbers=numbers, wait_ns=wait_ns)
