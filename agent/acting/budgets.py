"""What a VM and a host may still do, counted over windows: turns, growth without a plan, cuts of memory, VMs cut at a time, failures. Pure.

Each is one small memory of what was done; the guard turns its figures into refusals. All times are wall ns given by the caller; a clock
set back only prolongs. Invariant (bounded): nothing is remembered longer than its window, and no more entries than its setting counts.

The flap budget counts per VM *and lever*; turns of one lever never use up another's. docs/adr/0007 has the figures of both readings of
"per VM".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set as AbstractSet
from typing import Final

from shared.plan import StepKind
from shared.units import NS_PER_S

MINUTE_NS: Final = 60 * NS_PER_S
HOUR_NS: Final = 3600 * NS_PER_S


class Turns:
    """Turns of one VM from growing to shrinking, by lever. A growth is never a turn, nor is a shrink that follows a shrink."""

    __slots__ = ("_growing", "_times")

    def __init__(self) -> None:
        self._growing: set[StepKind] = set()  # levers whose last change was a growth
        self._times: dict[StepKind, deque[int]] = {}

    def grew(self, kind: StepKind) -> None:
        """The lever went up."""
        self._growing.add(kind)

    def shrank(self, kind: StepKind, now_ns: int, window_ns: int) -> None:
        """The lever went down; a turn when it went up before."""
        if kind not in self._growing:
            return
        self._growing.discard(kind)
        times = self._times.setdefault(kind, deque())
        times.append(now_ns)
        _forget_before(times, now_ns - window_ns)

    @property
    def growing(self) -> AbstractSet[StepKind]:
        """Levers whose last change was a growth; follows what is noted later."""
        return self._growing

    def would_turn(self, kind: StepKind) -> bool:
        """A shrink now would be a turn."""
        return kind in self._growing

    def within(self, kind: StepKind, since_ns: int) -> tuple[int, ...]:
        """When the lever turned after `since_ns`, oldest first."""
        times = self._times.get(kind)
        return tuple([at_ns for at_ns in times if at_ns > since_ns]) if times else ()


class GrowthBudget:
    """How far one VM may grow each lever without a plan within a window.

    The budget is a share of what the VM began with: the first value that the agent saw, or the value at the window's start where that is
    more. So a VM that was shrunk gets back to where its owner put it for nothing, and above that it can only multiply by
    1 + budget per window.
    """

    __slots__ = ("_began", "_windows")

    def __init__(self) -> None:
        self._began: dict[StepKind, int] = {}
        self._windows: dict[StepKind, tuple[int, int]] = {}  # lever -> (start ns, value then)

    def began_with(self, kind: StepKind, value: int) -> None:
        """The first value seen counts; later ones are ignored."""
        self._began.setdefault(kind, value)

    def began(self, kind: StepKind) -> int | None:
        """What the VM began with; None when it was never read."""
        return self._began.get(kind)

    def grew(self, kind: StepKind, before: int, now_ns: int, window_ns: int) -> None:
        """A growth without a plan was begun from `before`: it opens a window unless one is open."""
        if self.ends_ns(kind, now_ns, window_ns) is None:
            self._windows[kind] = (now_ns, before)

    def ends_ns(self, kind: StepKind, now_ns: int, window_ns: int) -> int | None:
        """When the open window ends; None = none is open. A window from the future (clock set back) is none."""
        window = self._windows.get(kind)
        return window[0] + window_ns if window is not None and window[0] <= now_ns < window[0] + window_ns else None

    def base(self, kind: StepKind, current: int, now_ns: int, window_ns: int) -> int:
        """What the budget is a share of."""
        opened = current if self.ends_ns(kind, now_ns, window_ns) is None else self._windows[kind][1]
        return max(opened, self._began.get(kind, 0))


class MemoryCuts:
    """Memory of one VM in sum right before each cut of the last hour."""

    __slots__ = ("_cuts",)

    def __init__(self) -> None:
        self._cuts: deque[tuple[int, int]] = deque()

    def cut(self, memory_bytes: int, now_ns: int) -> None:
        """A cut was begun from this much. Only falling sums are kept: a smaller one before a larger one bounds nothing."""
        while self._cuts and self._cuts[-1][1] <= memory_bytes:
            self._cuts.pop()
        self._cuts.append((now_ns, memory_bytes))
        _forget_pairs_before(self._cuts, now_ns - HOUR_NS)

    def peak(self, now_ns: int) -> tuple[int, int] | None:
        """(when, bytes) of the largest sum that was cut from within the hour; None = nothing was cut."""
        _forget_pairs_before(self._cuts, now_ns - HOUR_NS)
        return self._cuts[0] if self._cuts else None


class BlastRadius:
    """VMs of a host that were cut within the last minute."""

    __slots__ = ("_cut_at",)

    def __init__(self) -> None:
        self._cut_at: dict[str, int] = {}  # oldest first

    def cut(self, vm_id: str, now_ns: int) -> None:
        """A step that takes from this VM was begun."""
        self._cut_at.pop(vm_id, None)
        self._cut_at[vm_id] = now_ns

    def others(self, vm_id: str, now_ns: int) -> tuple[int, ...]:
        """When other VMs were last cut within the minute, oldest first."""
        if not self._cut_at:
            return ()
        for stale in [name for name, at_ns in self._cut_at.items() if at_ns <= now_ns - MINUTE_NS]:
            del self._cut_at[stale]
        return tuple([at_ns for name, at_ns in self._cut_at.items() if name != vm_id])

    def recently(self, vm_id: str, now_ns: int) -> bool:
        """This VM was cut within the minute: cutting it again widens nothing."""
        at_ns = self._cut_at.get(vm_id)
        return at_ns is not None and at_ns > now_ns - MINUTE_NS


class Circuit:
    """Opens when too many steps of the host failed within a window."""

    __slots__ = ("_failures", "open_until_ns")

    def __init__(self) -> None:
        self._failures: deque[int] = deque()
        self.open_until_ns = 0

    def failed(self, now_ns: int, *, failures: int, window_ns: int, open_ns: int) -> None:
        """A step failed; `failures` of them within the window open the circuit for `open_ns`, and the count starts anew."""
        self._failures.append(now_ns)
        _forget_before(self._failures, now_ns - window_ns)
        if len(self._failures) >= failures:
            self._failures.clear()
            self.open_until_ns = max(self.open_until_ns, now_ns + open_ns)


def _forget_before(times: deque[int], since_ns: int) -> None:
    while times and times[0] <= since_ns:
        times.popleft()


def _forget_pairs_before(pairs: deque[tuple[int, int]], since_ns: int) -> None:
    while pairs and pairs[0][0] <= since_ns:
        pairs.popleft()
