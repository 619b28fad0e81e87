"""Everything that is learned, behind one object: the cycle reports what happened, pages and metrics read the scores.

Pure: no clock, no I/O; the same reports give the same scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.learning.budgets import ErrorBudgets
from coordinator.learning.drift import DriftWatch, RetrainWanted
from coordinator.learning.errors import ForecastErrors
from coordinator.learning.outcomes import OutcomeLedger
from coordinator.learning.shadow import ShadowLedger
from coordinator.learning.sla import SlaSums, SlaTracker
from coordinator.model import BucketBlock, ForecastBlock, HostState, VmSize
from coordinator.sizing.feasible import Objectives
from shared.model import HostSample, Mode
from shared.plan import Outcome, OutcomeState, StepKind

# VMs that are gone keep their sums for a while (one may be migrating); beyond so many they are dropped, so that churn cannot fill memory.
SPARE_VMS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Score:
    """One mode's score since the start. None = nothing observed."""

    mode: Mode
    observed_minutes: float  # VM-minutes
    violation_minutes: float | None  # VM-minutes
    violation_depth: float | None
    minutes_by_cause: dict[str, float]
    allocation_over_use: float | None
    steps_applied: int
    steps_refused: int
    steps_failed: int
    pinball: float | None  # mean over resources of mean pinball / mean demand
    naive_pinball: float | None


class Ledger:
    """Errors, SLA, shadow and outcomes of one coordinator run."""

    def __init__(self, objectives: Objectives | None = None) -> None:
        self.budgets = ErrorBudgets(objectives or Objectives())
        self.errors = ForecastErrors()
        self.drift = DriftWatch()
        self.sla = SlaTracker()
        self.shadow = ShadowLedger()
        self.outcomes = OutcomeLedger()

    def sample(self, host_id: str, mode: Mode, sample: HostSample, again: bool = False) -> None:
        """A sample that was not seen before; `again`: by this process, another one may have counted it before it ended."""
        self.sla.observe(host_id, mode, sample)
        if again and sample.wall_ns <= self.budgets.counted_ns:
            self.budgets.pass_over(self.sla.by_vm, sample.vms)

    def bucket(
        self,
        bucket: BucketBlock,
        modes: Mapping[str, Mode],
        clients: Mapping[str, str] | None = None,
        apps: Mapping[str, str] | None = None,
        now_ns: int = 0,
    ) -> RetrainWanted | None:
        """A closed bucket; `modes` host -> mode now, `clients`, `apps` vm -> client, application.

        Says when the forecasts have worsened for long.
        """
        wanted = self.drift.update(self.errors.score(bucket, modes, clients, apps))
        self.shadow.score(bucket, modes)
        self.budgets.bucket(self.sla.by_vm, clients or {}, bucket.start_s, now_ns)
        gone = self.sla.by_vm.keys() - set(bucket.vm_ids)
        if len(gone) > len(bucket.vm_ids) + SPARE_VMS:
            self.sla.forget(frozenset(gone))
        return wanted

    def forecast(self, forecast: ForecastBlock) -> None:
        """A forecast was issued."""
        self.errors.issue(forecast)

    def sized(self, host: HostState, sizes: Sequence[VmSize]) -> None:
        """A host was sized, for real or in shadow."""
        self.shadow.propose(host, sizes)

    def outcome(self, host_id: str, mode: Mode, outcome: Outcome) -> None:
        """A step ended."""
        self.outcomes.record(host_id, mode, outcome)

    def recall(self, host_id: str, outcome: Outcome) -> None:
        """A step that ended in an earlier run: it shows how long its lever takes."""
        self.outcomes.measure(host_id, outcome)

    def lead_times_s(self, host_id: str) -> dict[StepKind, float]:
        """Measured lead times of a host's levers."""
        return self.outcomes.lead_times_s(host_id)

    def score(self, mode: Mode) -> Score:
        """What one mode has to show so far."""
        sums = self.sla.by_mode.get(mode, SlaSums())
        ours, naive = self.errors.totals(mode).relative()
        return Score(
            mode=mode,
            observed_minutes=sums.observed_ns / 60e9,
            violation_minutes=sums.violation_minutes if sums.observed_ns else None,
            violation_depth=sums.depth,
            minutes_by_cause={cause: ns / 60e9 for cause, ns in sorted(sums.by_cause_ns.items())},
            allocation_over_use=sums.allocation_over_use(),
            steps_applied=self.outcomes.total(mode, OutcomeState.VERIFIED, OutcomeState.PARTIAL),
            steps_refused=self.outcomes.total(mode, OutcomeState.REFUSED),
            steps_failed=self.outcomes.total(mode, OutcomeState.FAILED, OutcomeState.UNDONE),
            pinball=ours,
            naive_pinball=naive,
        )

    def scores(self) -> tuple[Score, ...]:
        """Scores of the modes that were seen."""
        return tuple(self.score(mode) for mode in Mode if mode in self.sla.by_mode)
