"""How the levers behave: outcomes by kind and state, refusals by code, and the lead time each lever really takes.

Lead time = from submission to the value being seen in force, of VERIFIED outcomes only: the 90th percentile of the newest
LEADS outcomes per host and lever, so that one slow guest does not delay a fleet and an old habit of a host is forgotten. Of a growth of
memory, which the host makes in strides, it is the time of one stride.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from coordinator.sizing.choice import strides
from shared.model import Mode
from shared.plan import Outcome, OutcomeState, StepKind
from shared.units import NS_PER_S

LEADS: Final = 64  # newest lead times kept per host and lever
MIN_LEADS: Final = 5  # fewer say nothing yet: the table's lead time holds


@dataclass
class OutcomeLedger:
    """Counts outcomes; give it each one once. Shadowed ones are counted apart by their state."""

    by_state: Counter[tuple[Mode, StepKind, OutcomeState]] = field(default_factory=Counter)
    by_code: Counter[tuple[Mode, str]] = field(default_factory=Counter)
    leads_s: dict[tuple[str, StepKind], deque[float]] = field(default_factory=dict)

    def record(self, host_id: str, mode: Mode, outcome: Outcome) -> None:
        """Take one outcome of a host in this mode."""
        self.by_state[mode, outcome.step.kind, outcome.state] += 1
        if outcome.code is not None:
            self.by_code[mode, outcome.code.value] += 1
        self.measure(host_id, outcome)

    def measure(self, host_id: str, outcome: Outcome) -> None:
        """Take its lead time alone."""
        took_ns = outcome.finished_ns - outcome.started_ns
        if outcome.state is OutcomeState.VERIFIED and outcome.started_ns > 0 and took_ns >= 0:
            key = (host_id, outcome.step.kind)
            made = strides(outcome.step.kind, outcome.step.before, outcome.step.value)
            self.leads_s.setdefault(key, deque(maxlen=LEADS)).append(took_ns / NS_PER_S / made)

    def lead_times_s(self, host_id: str) -> dict[StepKind, float]:
        """Measured p90 by lever of one host, for sizing and planning; levers without enough outcomes are absent."""
        found: dict[StepKind, float] = {}
        for kind in StepKind:
            seen = self.leads_s.get((host_id, kind))
            if seen is not None and len(seen) >= MIN_LEADS:
                found[kind] = sorted(seen)[min(len(seen) - 1, int(0.9 * len(seen)))]
        return found

    def total(self, mode: Mode, *states: OutcomeState) -> int:
        """Outcomes of a mode in any of these states."""
        return sum(n for (m, _, state), n in self.by_state.items() if m is mode and state in states)
