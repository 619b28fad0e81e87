"""When a shrink is worth a turn: the host's flap budget, as far as outcomes tell it, and what a turning shrink must leave. Pure.

A host refuses a lever's third turn from growing to shrinking within six hours (agent/acting/guard.py, docs/adr/0007). A shrink that follows
a growth uses up a turn; one that continues a shrink does not. A turn that the next bucket takes back is lost twice: the VM grows again,
and what it then holds cannot be had back for hours. With few turns, each has to last for its share of the window, so a turning shrink
leaves what the last hour needed and what the next hour may need; an hour is as far as the forecast sees, and what is behind counts
as far as what is ahead. Once no turn is left the lever counts as what it holds: nothing is planned that the host would refuse, and
the sizes of the others are bought with the room that is really there.
Invariant: a shrink that is no turn, and any shrink where the budget cannot run out (a turn per cycle), is as eager as ever.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from coordinator.model import N_RESOURCES, LeverTurns, VmState
from coordinator.sizing.levers import KIND
from coordinator.sizing.policy import SizingPolicy
from shared.plan import Outcome, OutcomeState, StepKind
from shared.refusal import RefusalCode
from shared.units import HORIZON_STEPS, NS_PER_S, UNLIMITED

SIZED_KINDS: Final = frozenset(KIND.values())
# Buckets behind that count for a turning shrink: as many as the forecast has steps ahead.
RECENT_BUCKETS: Final = HORIZON_STEPS
# Turns remembered per lever; budgets beyond it are spent too slowly to matter to a cycle of five minutes.
REMEMBERED: Final = 72
# A refusal tells that the budget is spent, not until when; asked again after so long.
REFUSED_S: Final = 3600.0

NEVER: Final = (LeverTurns(),) * N_RESOURCES


class TurnLog:
    """What outcomes tell of one VM's turns, by lever. A coordinator that just started has them of stored ones; what it still does not know,
    the host's refusals tell it.
    """

    __slots__ = ("_growing", "_refused_ns", "_turned_ns")

    def __init__(self) -> None:
        self._growing: set[StepKind] = set()
        self._turned_ns: dict[StepKind, deque[int]] = {}
        self._refused_ns: dict[StepKind, int] = {}

    def record(self, outcome: Outcome) -> None:
        """Take one outcome, the host's own steps included. Shadows and steps that were never begun change nothing."""
        kind, before, state = outcome.step.kind, outcome.step.before, outcome.state
        if kind not in SIZED_KINDS:
            return
        if state is OutcomeState.REFUSED and outcome.code is RefusalCode.FLAP_BUDGET:
            self._growing.add(kind)
            self._refused_ns[kind] = outcome.finished_ns
        if state in (OutcomeState.REFUSED, OutcomeState.SHADOWED) or before is None:
            return
        # A step that came to nothing still counts on the host: it was begun.
        value = outcome.step.value if outcome.value is None or state in (OutcomeState.FAILED, OutcomeState.UNDONE) else outcome.value
        if before != UNLIMITED and (value == UNLIMITED or value > before):
            self._growing.add(kind)
        elif value != before:
            if kind in self._growing:
                self._turned_ns.setdefault(kind, deque(maxlen=REMEMBERED)).append(outcome.finished_ns)
            self._growing.discard(kind)
            if state is OutcomeState.UNDONE:  # given back, which is a growth
                self._growing.add(kind)

    def view(self, now_ns: int) -> tuple[LeverTurns, ...]:
        """[r] as sizing sees it."""
        if not (self._growing or self._turned_ns or self._refused_ns):
            return NEVER
        found = []
        for r in range(N_RESOURCES):
            kind = KIND.get(r)
            if kind is None:
                found.append(LeverTurns())
                continue
            refused_ns = self._refused_ns.get(kind)
            found.append(
                LeverTurns(
                    turning=kind in self._growing,
                    ago_s=tuple((now_ns - at_ns) / NS_PER_S for at_ns in self._turned_ns.get(kind, ())),
                    refused_s=math.inf if refused_ns is None else (now_ns - refused_ns) / NS_PER_S,
                )
            )
        return tuple(found)


def precious(policy: SizingPolicy) -> bool:
    """Turns can run out: fewer of them than cycles in their window."""
    return policy.turns * policy.cycle_s < policy.turn_window_s


def scarce(vm: VmState, r: int, policy: SizingPolicy) -> bool:
    """A shrink of this resource would use up a turn, and turns can run out."""
    return vm.turns[r].turning and precious(policy)


def spent(vm: VmState, r: int, policy: SizingPolicy) -> bool:
    """A shrink would be a turn that the host does not allow now."""
    turns = vm.turns[r]
    used = sum(ago_s < policy.turn_window_s for ago_s in turns.ago_s)
    return scarce(vm, r, policy) and (used >= policy.turns or turns.refused_s < REFUSED_S)


def turn_size(vm: VmState, r: int, hour: float) -> float:
    """What a turning shrink leaves: the largest peak of the last hour, and what the next may need (`hour`); NaN counts for nothing."""
    recent = vm.recent_peak[r]
    return max((value for value in (recent, hour) if math.isfinite(value)), default=0.0)
