"""Shadow scores, outcomes, and the ledger that holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.learning.ledger import SPARE_VMS, Ledger
from coordinator.learning.outcomes import MIN_LEADS, OutcomeLedger
from coordinator.learning.shadow import ShadowLedger
from coordinator.model import N_RESOURCES, BucketBlock, VmSize
from shared.model import HostSample, Mode, VmSample
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import CPU, MEMORY, NS_PER_S


def came(mean: float, peak: float, vm_id: str = "a") -> BucketBlock:
    def cpu(value: float) -> np.ndarray:
        row = np.full((1, N_RESOURCES), np.nan)
        row[0, CPU] = value
        return row

    return BucketBlock(
        start_s=0,
        vm_ids=(vm_id,),
        host_ids=("h",),
        mean=cpu(mean),
        peak=cpu(peak),
        usage=cpu(mean),
        censored=cpu(0),
        allocation=cpu(0),
        samples=np.ones(1, np.int64),
    )


def size(lower: float, target: float, upper: float) -> VmSize:
    rows = np.full((3, N_RESOURCES), np.nan)
    rows[:, CPU] = lower, target, upper
    return VmSize(vm_id="a", host_id="h", lower=rows[0], target=rows[1], upper=rows[2])


def outcome(state: OutcomeState, kind: StepKind = StepKind.CPU_QUOTA, took_s: float = 2.0, code: RefusalCode | None = None) -> Outcome:
    step = Step(id="1-1-0", vm_id="a", kind=kind, value=1, deadline_ns=1)
    return Outcome(step=step, state=state, code=code, started_ns=NS_PER_S, finished_ns=int((1 + took_s) * NS_PER_S))


def test_the_plan_is_scored_beside_what_was_really_in_force(make: Any) -> None:
    shadow = ShadowLedger()
    shadow.propose(make.host(make.vm(quota=1000)), [size(1900, 2000, 2200)])
    shadow.score(came(1000, 2500), {"h": Mode.OBSERVE})
    score = shadow.score_of(Mode.OBSERVE)
    assert (score.planned_unmet[CPU], score.planned_spare[CPU], score.planned_short[CPU]) == (0.5, 1.0, 1.0)
    assert (score.real_unmet[CPU], score.real_spare[CPU]) == (1.5, 0.0)
    assert np.isnan(score.planned_unmet[MEMORY])
    assert score.count[CPU] == 1


def test_inside_the_range_the_plan_is_what_is_in_force_and_each_grant_is_scored_once(make: Any) -> None:
    shadow = ShadowLedger()
    shadow.propose(make.host(make.vm(quota=1000)), [size(900, 1200, 1300)])
    shadow.score(came(500, 1100), {"h": Mode.OBSERVE})
    shadow.score(came(500, 9000), {"h": Mode.OBSERVE})
    score = shadow.score_of(Mode.OBSERVE)
    assert score.planned_unmet[CPU] == score.real_unmet[CPU] == pytest.approx(0.2)
    assert score.count[CPU] == 1


def test_lead_times_are_the_p90_of_verified_outcomes_per_host_and_lever() -> None:
    ledger = OutcomeLedger()
    for took in (1, 2, 3, 4, 5, 6, 7, 8, 9, 50):
        ledger.record("h", Mode.PREDICTIVE, outcome(OutcomeState.VERIFIED, took_s=took))
    ledger.record("h", Mode.PREDICTIVE, outcome(OutcomeState.FAILED, took_s=999))
    for _ in range(MIN_LEADS - 1):
        ledger.record("h", Mode.PREDICTIVE, outcome(OutcomeState.VERIFIED, StepKind.MEMORY))
    assert ledger.lead_times_s("h") == {StepKind.CPU_QUOTA: 50.0}
    assert ledger.lead_times_s("other") == {}


def test_outcomes_are_counted_by_state_and_code() -> None:
    ledger = OutcomeLedger()
    ledger.record("h", Mode.PREDICTIVE, outcome(OutcomeState.VERIFIED))
    ledger.record("h", Mode.PREDICTIVE, outcome(OutcomeState.REFUSED, code=RefusalCode.COOLDOWN))
    ledger.record("h", Mode.OBSERVE, outcome(OutcomeState.SHADOWED))
    assert ledger.total(Mode.PREDICTIVE, OutcomeState.VERIFIED, OutcomeState.PARTIAL) == 1
    assert ledger.by_code == {(Mode.PREDICTIVE, "cooldown"): 1}


def test_the_ledger_scores_a_mode_and_unseen_modes_are_unknown(make: Any) -> None:
    ledger = Ledger()
    vms = {"a": VmSample(cpu_throttled_permille=100, cpu_quota_millicores=1000, cpu_used_millicores=500)}
    ledger.sample("h", Mode.PREDICTIVE, HostSample(wall_ns=1, monotonic_ns=1, period_ns=60 * NS_PER_S, vms=vms))
    ledger.outcome("h", Mode.PREDICTIVE, outcome(OutcomeState.VERIFIED))
    ledger.outcome("h", Mode.PREDICTIVE, outcome(OutcomeState.REFUSED))
    ledger.forecast(make.forecast(("a",), make.need()))
    ledger.sized(make.host(make.vm()), [size(900, 1000, 1100)])
    ledger.bucket(came(500, 600), {"h": Mode.PREDICTIVE})
    score = ledger.score(Mode.PREDICTIVE)
    assert (score.violation_minutes, score.steps_applied, score.steps_refused) == (1.0, 1, 1)
    assert score.allocation_over_use == 2.0
    assert score.minutes_by_cause == {"throttled": 1.0}
    assert [s.mode for s in ledger.scores()] == [Mode.PREDICTIVE]
    assert ledger.score(Mode.REACTIVE).violation_minutes is None


def test_churn_does_not_fill_memory(make: Any) -> None:
    ledger = Ledger()
    vms = {f"v{i}": VmSample() for i in range(SPARE_VMS + 3)}
    ledger.sample("h", Mode.OBSERVE, HostSample(wall_ns=1, monotonic_ns=1, period_ns=NS_PER_S, vms=vms | {"a": VmSample()}))
    ledger.bucket(came(1, 1), {})
    assert set(ledger.sla.by_vm) == {"a"}
    assert ledger.sla.by_mode[Mode.OBSERVE].observed_ns == (SPARE_VMS + 4) * NS_PER_S
