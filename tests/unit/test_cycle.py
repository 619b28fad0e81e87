"""The decision cycle by example: what each event leads to, and what a change of mode does at once."""

from __future__ import annotations

import numpy as np
import pytest
from forecast_blocks import forecast_block
from plain_host import plain_capacity

from coordinator import cycle as cy
from coordinator.cycle import DecisionCycle
from coordinator.demand.signals import SignalReading
from coordinator.fleet import Relocation
from coordinator.learning.drift import RetrainWanted
from coordinator.model import LEVELS, BucketBlock, ForecastBlock, HistoryBlock, NoForecast, VmState
from coordinator.planning.adjust import Adjustment
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.turns import RECENT_BUCKETS
from shared.config import CycleConfig
from shared.errors import Refusal
from shared.messages import Hello, Inventory, Outcomes, Status
from shared.model import Domain, HostSample, Mode, Policy, VmSample
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import BUCKET_S, CPU, GIB, MIB, NS_PER_S

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S
CAPACITY = plain_capacity(cpu_millicores=16_000, memory_bytes=64 * GIB, net_bits_per_s=10**10)
VM = Domain(vm_id="vm-1", name="web", vcpus_max=4, memory_max_bytes=8 * GIB, policy=Policy(client="aurora"))


def started(mode: Mode, *, aggregates: bool = True) -> DecisionCycle:
    cycle = DecisionCycle(CycleConfig(bucket_grace_s=10, aggregates=aggregates), SizingPolicy(), epoch=3)
    hello = Hello(host_id="h", boot_id="b", agent_version="0", wall_ns=0, capacity=CAPACITY, mode=mode, mode_pinned=False)
    cycle.handle(cy.AgentSaid(host_id="h", message=hello), T0 * NS_PER_S)
    cycle.handle(cy.AgentSaid(host_id="h", message=Inventory(domains=(VM,))), T0 * NS_PER_S)
    return cycle


def sample(at_s: int) -> cy.SamplesArrived:
    vm = VmSample(
        cpu_used_millicores=400,
        cpu_throttled_permille=0,
        memory_used_bytes=GIB,
        vcpus=4,
        cpu_quota_millicores=1000,
        memory_allocated_bytes=2 * GIB,
        net_rx_ceil_bits_per_s=10**8,
        net_tx_ceil_bits_per_s=10**8,
    )
    host = HostSample(wall_ns=at_s * NS_PER_S, monotonic_ns=at_s * NS_PER_S, period_ns=5 * NS_PER_S, vms={"vm-1": vm})
    return cy.SamplesArrived(host_id="h", samples=(host,))


def surge(bucket: BucketBlock) -> ForecastBlock:
    """Twice the quota is coming."""
    mean = np.tile(np.array([2000, GIB, 0, 1e6, 1e6], np.float32)[None, :, None], (1, 1, 12))
    quantiles = np.repeat((mean * 1.05)[..., None], len(LEVELS), axis=-1)
    return forecast_block(bucket.vm_ids, bucket.start_s + BUCKET_S, mean, stddev=mean * 0.02, quantiles=quantiles, models=("naive",))


def closed(cycle: DecisionCycle) -> cy.RequestForecast:
    for at_s in range(T0 + 5, T0 + BUCKET_S, 5):
        cycle.handle(sample(at_s), at_s * NS_PER_S)
    assert cycle.handle(cy.Tick(), (T0 + BUCKET_S + 9) * NS_PER_S) == []
    store, minutes, document, request = cycle.handle(cy.Tick(), (T0 + BUCKET_S + 10) * NS_PER_S)
    assert isinstance(document, cy.StoreDocument)
    assert isinstance(minutes, cy.StoreMinutes)
    assert isinstance(store, cy.StoreBucket)
    assert isinstance(request, cy.RequestForecast)
    return request


def decided(cycle: DecisionCycle) -> list[cy.Instruction]:
    request = closed(cycle)
    return cycle.handle(cy.ForecastReady(bucket=request.bucket, forecast=surge(request.bucket)), (T0 + BUCKET_S + 11) * NS_PER_S)


def plans(instructions: list[cy.Instruction]) -> list[cy.SendPlan]:
    return [i for i in instructions if isinstance(i, cy.SendPlan)]


def receipts(instructions: list[cy.Instruction]) -> list[cy.Receipt]:
    return [r for i in instructions if isinstance(i, cy.StoreReceipts) for r in i.receipts]


def test_a_cycle_is_decided_in_parts_that_are_the_whole_together() -> None:
    whole = decided(started(Mode.PREDICTIVE))
    cycle = started(Mode.PREDICTIVE)
    request = closed(cycle)
    parts = list(cycle.decide(cy.ForecastReady(bucket=request.bucket, forecast=surge(request.bucket)), (T0 + BUCKET_S + 11) * NS_PER_S))
    together = [instruction for part in parts for instruction in part]
    assert [type(instruction) for instruction in together] == [type(instruction) for instruction in whole]
    assert (plans(together), receipts(together)) == (plans(whole), receipts(whole))
    assert len(plans(whole)) == 1
    assert [len(plans(part)) for part in parts if plans(part)] == [1]


@pytest.mark.parametrize(
    "meanwhile",
    [
        cy.HostLost(host_id="h", why="silent"),
        cy.AgentSaid(host_id="h", message=Status(wall_ns=0, mode=Mode.OBSERVE, mode_pinned=True)),
        cy.Held(why="the registry does not answer"),
    ],
    ids=["lost", "observes", "held"],
)
def test_what_comes_between_two_parts_counts(meanwhile: cy.Event) -> None:
    cycle, now_ns = started(Mode.PREDICTIVE), (T0 + BUCKET_S + 11) * NS_PER_S
    request = closed(cycle)
    parts = cycle.decide(cy.ForecastReady(bucket=request.bucket, forecast=surge(request.bucket)), now_ns)
    assert isinstance(next(parts)[0], cy.StoreForecast)
    while next(parts) == [] and cycle.foresight is None:
        pass  # the fleet is looked at; no host is decided yet
    cycle.handle(meanwhile, now_ns)
    rest = [instruction for part in parts for instruction in part]
    assert plans(rest) == []
    assert receipts(rest) == []


def test_a_bucket_closes_after_its_grace_and_asks_for_a_forecast_of_known_vms() -> None:
    request = closed(started(Mode.PREDICTIVE))
    assert request.bucket.vm_ids == ("vm-1",)
    assert request.bucket.mean[0, CPU] == pytest.approx(400)
    assert request.capacity["vm-1"][:2] == [4000.0, 8.0 * GIB]


def test_predictive_gets_a_plan_and_observe_a_shadow_receipt_with_the_same_steps() -> None:
    real, shadow = decided(started(Mode.PREDICTIVE)), decided(started(Mode.OBSERVE))
    (plan,) = plans(real)
    assert any(step.kind == "cpu_quota" and step.value >= 2000 for step in plan.plan.steps)
    assert (plan.plan.epoch, plan.plan.sequence) == (3, 1)
    assert plans(shadow) == []
    assert [r.shadow for r in receipts(shadow)] == [True]
    assert receipts(shadow)[0].steps == receipts(real)[0].steps


def test_a_host_turned_predictive_is_planned_for_at_once_while_the_forecast_holds() -> None:
    cycle = started(Mode.OBSERVE)
    decided(cycle)
    turned = cy.AgentSaid(host_id="h", message=Status(wall_ns=0, mode=Mode.PREDICTIVE, mode_pinned=False))
    assert len(plans(cycle.handle(turned, (T0 + BUCKET_S + 60) * NS_PER_S))) == 1
    assert cycle.handle(turned, (T0 + BUCKET_S + 61) * NS_PER_S) == []  # it already was

    late = started(Mode.OBSERVE)
    decided(late)
    assert late.handle(turned, (T0 + 2 * BUCKET_S) * NS_PER_S) == []


@pytest.mark.parametrize(("mode", "old_s"), [(Mode.PREDICTIVE, 0), (Mode.PREDICTIVE, 90), (Mode.REACTIVE, 0)])
def test_who_stands_at_the_growth_budget_of_a_predictive_host_is_planned_for_at_once(mode: Mode, old_s: int) -> None:
    cycle = started(mode)
    sent = plans(decided(cycle))
    at_ns = (T0 + BUCKET_S + 60) * NS_PER_S
    asked = Step(id="l1", vm_id="vm-1", kind=StepKind.MEMORY, value=5 * GIB, before=2 * GIB, deadline_ns=0)
    told = {"state": OutcomeState.REFUSED, "code": RefusalCode.GROWTH_BUDGET, "origin": "reactive"}
    outcome = Outcome(step=asked, value=2 * GIB, finished_ns=at_ns - old_s * NS_PER_S, **told)
    lifted = plans(cycle.handle(cy.AgentSaid(host_id="h", message=Outcomes(boot_id="b", sequence=0, outcomes=(outcome,))), at_ns))
    if mode is Mode.REACTIVE or old_s:
        assert lifted == []
        return
    (first,), (plan,) = sent, lifted
    step = plan.plan.steps[0]
    assert (step.vm_id, step.kind, step.value, step.reason) == ("vm-1", StepKind.MEMORY, 8 * GIB, "growth_budget")
    assert plan.plan.sequence == first.plan.sequence + 1
    kept = [(s.kind, s.value) for s in first.plan.steps]  # what was open there is repeated: the host replaces plans whole
    assert [(s.kind, s.value) for s in plan.plan.steps[1:]] == kept
    assert len({s.id for s in plan.plan.steps}) == len(plan.plan.steps)


def test_what_applications_tell_is_forecast_with_and_stored() -> None:
    cycle = started(Mode.OBSERVE)
    cycle.tell([SignalReading(T0 + 20, ("vm-1", "vm-2"), (100.0, None)), SignalReading(T0 + 50, ("vm-1",), (200.0, 4.0))])
    for at_s in range(T0 + 5, T0 + BUCKET_S, 5):
        cycle.handle(sample(at_s), at_s * NS_PER_S)
    store, minutes, _, request, rest = cycle.handle(cy.Tick(), (T0 + BUCKET_S + 10) * NS_PER_S)
    assert isinstance(store, cy.StoreBucket)
    assert isinstance(minutes, cy.StoreMinutes)
    assert isinstance(request, cy.RequestForecast)
    for bucket in (store.bucket, request.bucket):
        assert bucket.signals is not None
        assert bucket.signals.tolist() == [[150.0, 4.0]]
    assert isinstance(rest, cy.StoreSignals)
    (block,) = rest.blocks
    assert (rest.closed_s, block.start_s, block.vm_ids) == (T0, T0, ("vm-2",))  # of which no sample came
    # a late sample stores the bucket again, with what was told of it; a late reading waits for the next bucket
    cycle.handle(sample(T0 + 299), (T0 + BUCKET_S + 20) * NS_PER_S)
    assert cycle.tell([SignalReading(T0 + 80, ("vm-1",), (600.0, None))]).late == 1
    grown, again = cycle.handle(cy.Tick(), (T0 + BUCKET_S + 21) * NS_PER_S)
    assert isinstance(grown, cy.StoreBucket)
    assert isinstance(again, cy.StoreMinutes)
    assert [hour.hour_s for hour in again.hours] == [hour.hour_s for hour in minutes.hours]
    assert grown.late
    assert grown.bucket.signals is not None
    assert grown.bucket.signals.tolist() == [[300.0, 4.0]]
    cycle.tell([SignalReading(T0 + 90, ("vm-1",), (300.0, None))])
    assert cycle.handle(cy.Tick(), (T0 + BUCKET_S + 30) * NS_PER_S) == []
    (rest,) = cycle.handle(cy.Tick(), (T0 + 2 * BUCKET_S + 10) * NS_PER_S)
    assert isinstance(rest, cy.StoreSignals)
    assert [block.means.tolist() for block in rest.blocks] == [[[300.0, 4.0]]]


def test_a_silent_host_gets_nothing_and_refuses_orders() -> None:
    cycle = started(Mode.PREDICTIVE)
    request = closed(cycle)
    cycle.handle(cy.HostLost(host_id="h", why="silent"), (T0 + BUCKET_S + 10) * NS_PER_S)
    answer = cycle.handle(cy.ForecastReady(bucket=request.bucket, forecast=surge(request.bucket)), (T0 + BUCKET_S + 11) * NS_PER_S)
    assert plans(answer) == []
    assert receipts(answer) == []
    with pytest.raises(Refusal) as refusal:
        cycle.adjust("vm-1", Adjustment(vcpus=4), T0 * NS_PER_S, dry_run=False)
    assert refusal.value.code is RefusalCode.HOST_UNKNOWN_STATE
    # its connection has outlived the silence (a machine that slept, a long pause): no Hello comes
    cycle.handle(cy.AgentSaid(host_id="h", message=Status(wall_ns=0, mode=Mode.PREDICTIVE, mode_pinned=False)), T0 * NS_PER_S)
    assert cycle.adjust("vm-1", Adjustment(cpu_quota_millicores=3000), T0 * NS_PER_S, dry_run=True)[0].steps


def test_while_nothing_can_be_stored_nothing_is_decided_but_all_is_taken_in() -> None:
    cycle, now_ns = started(Mode.PREDICTIVE), (T0 + BUCKET_S + 11) * NS_PER_S
    assert cycle.handle(cy.Held(why="the disk is full"), T0 * NS_PER_S) == []
    assert [type(each) for each in decided(cycle)] == [cy.StoreForecast]
    assert cycle.forecast is not None
    plan, _ = cycle.adjust("vm-1", Adjustment(memory_bytes=3 * GIB), now_ns, dry_run=True)
    assert plan.steps, "what would be sent can still be asked"
    with pytest.raises(Refusal, match="nothing was changed: the disk is full") as refused:
        cycle.adjust("vm-1", Adjustment(memory_bytes=3 * GIB), now_ns, dry_run=False)
    assert refused.value.code is RefusalCode.STORE_UNAVAILABLE
    assert cycle.fleet.host("h").plan_sequence == 0, "no plan was numbered"
    assert cycle.handle(cy.Held(why=""), now_ns) == []
    assert cycle.adjust("vm-1", Adjustment(memory_bytes=3 * GIB), now_ns, dry_run=False)[1]


def test_where_vms_are_is_told_before_what_their_host_says() -> None:
    cycle, now_ns = started(Mode.OBSERVE), (T0 + 60) * NS_PER_S
    hello = Hello(host_id="h2", boot_id="b", agent_version="0", wall_ns=0, capacity=CAPACITY, mode=Mode.OBSERVE, mode_pinned=False)
    cycle.handle(cy.AgentSaid(host_id="h2", message=hello), now_ns)

    def told(host_id: str, *domains: Domain) -> list[cy.Instruction]:
        return cycle.handle(cy.AgentSaid(host_id=host_id, message=Inventory(domains=domains)), now_ns)

    assert [type(each) for each in told("h", VM)] == [cy.StoreHost], "it was told when it appeared"
    moved, _ = told("h2", VM)
    assert moved == cy.StoreRelocations(relocations=(Relocation(vm_id="vm-1", host_id="h2", at_ns=now_ns),))
    assert [type(each) for each in told("h")] == [cy.StoreHost]
    gone, _ = told("h2")
    assert gone == cy.StoreRelocations(relocations=(Relocation(vm_id="vm-1", host_id=None, at_ns=now_ns),))


def test_orders_of_an_operator() -> None:
    cycle = started(Mode.REACTIVE)
    now_ns = (T0 + 6) * NS_PER_S
    cycle.handle(sample(T0 + 5), now_ns)
    plan, instructions = cycle.adjust("vm-1", Adjustment(memory_bytes=3 * GIB), now_ns, dry_run=True)
    assert instructions == []
    assert [(s.kind, s.value, s.reason) for s in plan.steps] == [("memory", 3 * GIB, "operator")]
    plan, instructions = cycle.adjust("vm-1", Adjustment(memory_bytes=3 * GIB), now_ns, dry_run=False)
    assert instructions == [cy.SendPlan(plan=plan)]
    for vm_id, request, code in (
        ("nobody", Adjustment(vcpus=1), RefusalCode.UNKNOWN_VM),
        ("vm-1", Adjustment(vcpus=5), RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        ("vm-1", Adjustment(memory_bytes=16 * MIB), RefusalCode.BELOW_WORKING_SET),
    ):
        with pytest.raises(Refusal) as refusal:
            cycle.adjust(vm_id, request, now_ns, dry_run=False)
        assert refusal.value.code is code
    observing = started(Mode.OBSERVE)
    with pytest.raises(Refusal) as refusal:
        observing.adjust("vm-1", Adjustment(vcpus=4), now_ns, dry_run=False)
    assert refusal.value.code is RefusalCode.MODE_FORBIDS


def test_the_view_knows_of_each_lever_whether_a_shrink_would_turn_and_the_peak_of_the_last_hour() -> None:
    cycle = started(Mode.PREDICTIVE)
    step = Step(id="s", vm_id="vm-1", kind=StepKind.CPU_QUOTA, value=1200, before=1000, deadline_ns=1)
    grown = Outcome(step=step, state=OutcomeState.VERIFIED, value=1200, finished_ns=T0 * NS_PER_S)
    cycle.handle(cy.AgentSaid(host_id="h", message=Outcomes(boot_id="b", sequence=1, outcomes=(grown,))), T0 * NS_PER_S)

    def seen(bucket: int) -> VmState:
        at_s = T0 + bucket * BUCKET_S
        cycle.handle(sample(at_s + 5), (at_s + 5) * NS_PER_S)
        cycle.handle(cy.Tick(), (at_s + BUCKET_S + 11) * NS_PER_S)
        return cycle.fleet.view(cycle.bucket, (at_s + BUCKET_S + 11) * NS_PER_S)[0].vms[0]

    vm = seen(0)
    assert [turns.turning for turns in vm.turns] == [r == CPU for r in range(5)]
    assert vm.recent_peak[CPU] == 400
    cycle.fleet.vms["vm-1"].peaks[0][CPU] = 900.0
    assert [seen(bucket).recent_peak[CPU] for bucket in range(1, RECENT_BUCKETS + 1)] == [900.0] * (RECENT_BUCKETS - 1) + [400.0]


def test_the_sums_of_host_client_and_fleet_follow_every_forecast() -> None:
    cycle = started(Mode.OBSERVE)
    decided(cycle)
    sums, forecast = cycle.aggregates, cycle.forecast
    assert sums is not None
    assert forecast is not None
    assert set(sums.groups) == {("host", "h"), ("client", "aurora"), ("fleet", "")}
    assert sums.issued_s == forecast.issued_s
    assert (sums.quantiles[:, CPU] <= 4000).all()  # what the members may have at most
    without = started(Mode.OBSERVE, aggregates=False)
    decided(without)
    assert without.aggregates is None


def test_a_forecast_that_comes_late_leaves_the_sums_alone() -> None:
    cycle = started(Mode.OBSERVE)
    request = closed(cycle)
    answer = cy.ForecastReady(bucket=request.bucket, forecast=surge(request.bucket))
    cycle.handle(answer, (T0 + BUCKET_S + 11) * NS_PER_S)
    before = cycle.aggregates
    cycle.handle(answer, (T0 + BUCKET_S + 12) * NS_PER_S)
    assert cycle.aggregates is before


def test_the_past_of_the_sums_comes_from_history_unless_nothing_was_ever_read() -> None:
    readings = np.full((1, 5, 30), 400.0, np.float32)
    for mean, end_s, taken in ((readings, T0 - BUCKET_S, True), (readings * np.nan, T0 + 10 * BUCKET_S, False)):
        cycle = started(Mode.OBSERVE)
        block = HistoryBlock(vm_ids=("vm-1",), end_s=end_s, mean=mean, peak=mean, censored=mean * 0, capacity=mean[:, :, 0] * 10)
        cycle.load_aggregates(block, cycle.memberships())
        decided(cycle)  # of an empty history no bucket is too old
        assert cycle.aggregates is not None
        assert (cycle.aggregates.coverage >= 0).any() == taken


def test_a_drift_of_the_forecasts_asks_for_training_and_clients_are_scored_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = started(Mode.OBSERVE)
    decided(cycle)
    wanted = RetrainWanted(reason="fleet_loss", since_s=T0, resources=("cpu_millicores",), worse=2.0)
    asked: list[cy.RequestRetrain] = []
    for bucket in range(1, 4):
        monkeypatch.setattr(cycle.ledger.drift, "update", lambda _loss, bucket=bucket: wanted if bucket == 2 else None)
        at_s = T0 + bucket * BUCKET_S
        cycle.handle(sample(at_s + 5), (at_s + 5) * NS_PER_S)
        for instruction in cycle.handle(cy.Tick(), (at_s + BUCKET_S + 10) * NS_PER_S):
            match instruction:
                case cy.RequestRetrain():
                    asked.append(instruction)
                case cy.RequestForecast(bucket=block):
                    cycle.handle(cy.ForecastReady(bucket=block, forecast=surge(block)), (at_s + BUCKET_S + 11) * NS_PER_S)
    assert asked == [cy.RequestRetrain(reason="fleet_loss", since_s=T0, resources=("cpu_millicores",))]
    assert list(cycle.ledger.errors.accuracy.by_client("total")) == ["aurora"]


def test_a_restart_knows_lead_times_and_turns_of_stored_outcomes() -> None:
    def outcome(n: int, before: int, value: int) -> Outcome:
        step = Step(id=f"s{n}", vm_id="vm-1", kind=StepKind.CPU_QUOTA, value=value, before=before, reason="x", deadline_ns=0)
        began = (T0 - 1000 + 10 * n) * NS_PER_S
        return Outcome(step=step, state=OutcomeState.VERIFIED, value=value, started_ns=began, finished_ns=began + 7 * NS_PER_S)

    ups_and_downs = [outcome(n, *((1000, 2000) if n % 2 == 0 else (2000, 1000))) for n in range(6)]
    cycle = started(Mode.PREDICTIVE)
    assert cycle.ledger.lead_times_s("h") == {}
    cycle.recall({}, [("h", each) for each in ups_and_downs], T0 * NS_PER_S)
    assert cycle.ledger.lead_times_s("h") == {StepKind.CPU_QUOTA: 7.0}
    assert cycle.ledger.outcomes.total(Mode.PREDICTIVE, OutcomeState.VERIFIED) == 0, "they are not this run's"
    (vm,) = (vm for host in cycle.fleet.view(None, T0 * NS_PER_S) for vm in host.vms)
    assert len(vm.turns[CPU].ago_s) == 3
    assert vm.since_grow_s == 1000 - 40 - 7


def test_a_view_of_one_host_is_that_host_and_makes_none() -> None:
    cycle = started(Mode.PREDICTIVE)
    (whole,), (one,) = (cycle.fleet.view(None, T0 * NS_PER_S, host_id) for host_id in (None, "h"))
    assert (one.host_id, [vm.domain for vm in one.vms]) == ("h", [vm.domain for vm in whole.vms])
    assert cycle.fleet.view(None, T0 * NS_PER_S, "elsewhere") == ()
    assert list(cycle.fleet.hosts) == ["h"]


def test_a_vm_out_of_calibration_is_reactive_within_three_cycles_and_comes_back() -> None:
    """400 come, 2,000 are said: the plan grows it at first, then no more; once what is said has come true, it does again."""
    cycle = started(Mode.PREDICTIVE)

    def turn(bucket: int, said: float) -> tuple[bool, bool, int]:
        """Whether the plan grew its CPU, whether a receipt says `out_of_calibration: reactive`, and the reason of its CPU forecast."""
        at_s = T0 + bucket * BUCKET_S
        cycle.handle(sample(at_s + 5), (at_s + 5) * NS_PER_S)
        (request,) = (i for i in cycle.handle(cy.Tick(), (at_s + BUCKET_S + 10) * NS_PER_S) if isinstance(i, cy.RequestForecast))
        block = surge(request.bucket)
        block.mean[:, CPU] = said
        for array in (block.quantiles, block.peak_quantiles):
            array[:] = block.mean[..., None] * (0.9 + 0.2 * np.asarray(LEVELS, np.float32))
        answer = cycle.handle(cy.ForecastReady(bucket=request.bucket, forecast=block), (at_s + BUCKET_S + 11) * NS_PER_S)
        (stored,) = (i.forecast for i in answer if isinstance(i, cy.StoreForecast))
        assert stored is cycle.forecast
        assert (stored.reason[:, 1:] == NoForecast.OK).all()
        grown = any(step.kind == "cpu_quota" and step.value > 1000 for sent in plans(answer) for step in sent.plan.steps)
        said_so = any("out_of_calibration: reactive" in line for receipt in receipts(answer) for line in receipt.trail)
        return grown, said_so, int(stored.reason[0, CPU])

    trusted, reactive = (True, False, NoForecast.OK), (False, True, NoForecast.OUT_OF_CALIBRATION)
    # what was said after bucket 0 is proved wrong by buckets 1, 2 and 3: three cycles
    assert [turn(bucket, said=2000.0) for bucket in range(6)] == [trusted] * 3 + [reactive] * 3
    assert [turn(bucket, said=400.0)[2] for bucket in range(6, 9)] == [NoForecast.OUT_OF_CALIBRATION] * 3
    assert turn(9, said=2000.0) == trusted  # buckets 7, 8 and 9 were said right
