"""One (VM, resource) on its way through the sizing stack, and what sizing remembers of a VM between two cycles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from coordinator.model import N_RESOURCES, VmState
from coordinator.sizing.levers import NAN, SHORT
from shared.refusal import RefusalCode

NO_WINDOWS: Final[tuple[tuple[float, ...], ...]] = ((),) * N_RESOURCES


@dataclass(frozen=True, kw_only=True)
class VmEvidence:
    """What sizing remembers of one VM between cycles: the last targets per resource [r], oldest first; cleared by a cycle without one."""

    windows: tuple[tuple[float, ...], ...] = NO_WINDOWS


Evidence = dict[str, VmEvidence]  # by vm_id


@dataclass(slots=True)
class Draft:
    """One (VM, resource) on its way through the stack. Mutable, never leaves the stack."""

    vm: VmState
    resource: int
    allocation: float
    floor: float
    ceiling: float
    granule: float = 1.0
    need: float = NAN
    hour: float = NAN  # what the next hour may need, where a shrink would be a turn
    lower: float = NAN
    target: float = NAN
    upper: float = NAN
    may_shrink: bool = True
    window: tuple[float, ...] = ()
    clipped: bool = False
    price: float = 0.0
    trail: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.trail.append(f"{SHORT[self.resource]} {text}")

    def refuse(self, code: RefusalCode, text: str) -> None:
        """An alternative that was not taken: receipts list these lines as refused."""
        self.trail.append(f"{code}: {SHORT[self.resource]} {text}")

    @property
    def settled(self) -> float:
        """Where the resource ends if nothing cuts it: the target when it is acted on, else what is in force."""
        return self.allocation if self.lower <= self.allocation <= self.upper else self.target
