"""What was learned, as the API shows it: sums of groups, accuracy of the fleet and of a VM, which VM is under the reactive
rule, and why its forecast is what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from forecast_blocks import forecast_block
from plain_host import plain_capacity

from coordinator import cycle as cy
from coordinator.compute import NotNow
from coordinator.cycle import DecisionCycle
from coordinator.forecast.aggregate import AggregateForecast, GroupKey
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.events.model import Labels
from coordinator.forecast.why import ForecastWhy
from coordinator.learning.accuracy import ForecastAccuracy
from coordinator.live_view import LiveView
from coordinator.model import LEVELS, BucketBlock, ForecastBlock, NoForecast
from coordinator.service.accuracy import accuracy_view, vm_accuracy_view
from coordinator.service.explained import ForecastWhyView
from coordinator.service.groups import group_forecast, group_list
from coordinator.sizing.policy import SizingPolicy
from shared.config import CycleConfig
from shared.messages import Hello, Inventory
from shared.model import Domain, Mode, Policy
from shared.units import BUCKET_S, CPU, GIB, MEMORY, NS_PER_S

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S


# -- sums


@pytest.fixture
def sums() -> AggregateForecast:
    """Every mean is 1000 x group + 100 x resource + step, a quantile adds its level, a peak's ten levels."""
    keys = (GroupKey("client", "b"), GroupKey("host", "h"), GroupKey("fleet", ""), GroupKey("client", "a"))
    g, r, s = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (4, 5, 12)), indexing="ij")
    mean = 1000 * g + 100 * r + s
    levels = np.asarray(LEVELS, np.float32)
    mean[1, MEMORY, 11] = np.nan
    return AggregateForecast(
        issued_s=T0,
        groups=keys,
        members=np.array([3, 4, 7, 2]),
        known=np.full((4, 5), 0.5, np.float32),
        mean=mean,
        stddev=mean / 10,
        quantiles=mean[..., None] + levels,
        peak_quantiles=mean[..., None] + 10 * levels,
        reason=np.full((4, 5), NoForecast.GAP, np.int8),
        coverage=np.full((4, 5), np.nan, np.float32),
    )


def test_groups_come_by_kind_and_name(sums: AggregateForecast) -> None:
    found = group_list(sums, None, 3)
    assert [(group.kind, group.name, group.members) for group in found.items] == [("fleet", "", 7), ("host", "h", 4), ("client", "a", 2)]
    assert (found.total, found.issued_s) == (4, T0)
    assert [group.name for group in group_list(sums, "client", 9).items] == ["a", "b"]
    assert group_list(sums, "app", 9).items == ()
    assert group_list(None, None, 9).issued_s is None


def test_an_outlook_is_of_the_first_and_the_last_step(sums: AggregateForecast) -> None:
    cpu, memory = group_list(sums, "host", 1).items[0].resources[:2]
    assert (cpu.mean_now, cpu.mean_hour) == (1000, 1011)
    assert (cpu.low_hour, cpu.high_hour) == (pytest.approx(1011.1), pytest.approx(1011.9))
    assert cpu.highest == pytest.approx(1011 + 9.5)
    assert (cpu.known, cpu.reason, cpu.coverage) == (0.5, "gap", None)
    assert memory.mean_hour is None


def test_the_steps_of_one_group(sums: AggregateForecast) -> None:
    found = group_forecast(sums, "client", "a", 12)
    assert found is not None
    assert (found.members, [len(part.rows) for part in found.resources]) == (2, [3] * 5)
    row = found.resources[MEMORY].rows[2]
    assert (row.start_s, row.mean, row.quantiles[-1]) == (T0 + 600, 3102, pytest.approx(3102.99))
    assert group_forecast(sums, "host", "a", 12) is None
    assert group_forecast(None, "fleet", "", 12) is None


# -- accuracy


def scored() -> ForecastAccuracy:
    """Two VMs of two clients: `a` is said well, `b` half of what comes."""
    sums = ForecastAccuracy()
    vm_ids, model = ("a", "b"), np.zeros((2, 5), np.int8)
    for step in range(3):
        actual = np.array([[1000.0] * 5, [2000.0] * 5]) + 10 * step
        bucket = BucketBlock(
            start_s=T0 + step * BUCKET_S,
            vm_ids=vm_ids,
            host_ids=("h", "h"),
            mean=actual,
            peak=actual,
            usage=actual,
            censored=actual * 0,
            allocation=actual,
            samples=np.array([60, 60]),
        )
        sums.score(bucket, {"h": Mode.OBSERVE}, {"a": "aurora", "b": "borealis"})
        said = np.array([1010.0 + 10 * step, 1000.0])[:, None, None] * np.ones((2, 5, 12))
        quantiles = (said[..., None] * (0.9 + 0.2 * np.asarray(LEVELS))).astype(np.float32)
        block = forecast_block(
            vm_ids, bucket.start_s + BUCKET_S, said, stddev=said.astype(np.float32), quantiles=quantiles, model=model, models=("theta",)
        )
        sums.issue(block, actual, np.full((2, 5), 5.0))
    return sums


def test_the_fleets_accuracy_and_what_it_is_made_of() -> None:
    found = accuracy_view(scored(), "total", 20, lambda vm_id: vm_id.upper())
    cpu = found.fleet[CPU]
    assert (cpu.resource, cpu.pairs) == ("cpu_millicores", 6)  # three steps decided, of two VMs
    assert (cpu.coverage_80, cpu.coverage_95, cpu.above) == (0.5, 0.5, 0.5)
    assert [part.name for part in found.horizons[:3]] == ["5", "10", "15"]
    assert [part.resources[CPU].pairs for part in found.horizons[:3]] == [4, 2, 0]
    assert found.horizons[2].resources[CPU].to_naive is None  # nothing scored is not zero
    assert [part.name for part in found.models] == ["theta"]
    clients = {part.name: part.resources[CPU] for part in found.clients}
    assert clients["aurora"].coverage_80 == 1.0
    assert clients["borealis"].bias is not None and clients["borealis"].bias < -900
    assert {series.vm_name for series in found.worst[:2]} == {"B"}
    assert (found.worst[0].to_naive or 0) > 1
    short = accuracy_view(scored(), "total", 1, str)
    assert (len(short.worst), len(short.clients)) == (1, 1)


def test_a_vms_accuracy_by_part_of_the_horizon() -> None:
    found = vm_accuracy_view(scored(), "b", "hour")
    assert [part.name for part in found.horizons] == ["5-10", "15-30", "35-60"]
    near, far = found.horizons[0].resources[CPU], found.horizons[2].resources[CPU]
    assert near.pairs > 2 and near.above == 1.0
    assert (far.pairs, far.above) == (0, None)
    assert vm_accuracy_view(scored(), "nobody", "hour").horizons == ()


# -- who is under the reactive rule


def running(mode: Mode, policy: Policy | None = None) -> tuple[LiveView, DecisionCycle]:
    cycle = DecisionCycle(CycleConfig(), SizingPolicy(), epoch=1)
    capacity = plain_capacity(cpu_millicores=16_000, memory_bytes=64 * GIB, net_bits_per_s=10**10)
    hello = Hello(host_id="h", boot_id="b", agent_version="0", wall_ns=0, capacity=capacity, mode=mode, mode_pinned=False)
    vm = Domain(vm_id="vm-1", name="web", vcpus_max=4, memory_max_bytes=8 * GIB, policy=policy or Policy(client="aurora"))
    for message in (hello, Inventory(domains=(vm,))):
        cycle.handle(cy.AgentSaid(host_id="h", message=message), T0 * NS_PER_S)
    of: Any = SimpleNamespace(cycle=cycle)
    return LiveView(of), cycle


def one_bucket() -> BucketBlock:
    values = np.full((1, 5), 500.0)
    return BucketBlock(
        start_s=T0 - BUCKET_S,
        vm_ids=("vm-1",),
        host_ids=("h",),
        mean=values,
        peak=values,
        usage=values,
        censored=values * 0,
        allocation=values,
        samples=np.array([60]),
    )


def spoken(reasons: dict[int, NoForecast]) -> ForecastBlock:
    reason = np.zeros((1, 5), np.int8)
    for r, why in reasons.items():
        reason[0, r] = why
    spread, coverage = np.ones((1, 5, 12), np.float32), np.full((1, 5), 0.4, np.float32)
    return forecast_block(("vm-1",), T0, 1.0, stddev=spread, models=("theta",), reason=reason, coverage=coverage)


def test_vms_of_an_application_are_summed_under_its_name() -> None:
    view, cycle = running(Mode.OBSERVE, Policy(client="aurora", application="shop"))
    found = view.vm("vm-1")
    assert found is not None
    assert (found.client, found.application) == ("aurora", "shop")
    assert cycle.labels() == {"vm-1": Labels(client="aurora", app="shop")}
    cycle.handle(cy.ForecastReady(bucket=one_bucket(), forecast=spoken({})), T0 * NS_PER_S)
    assert [(group.kind, group.name, group.members) for group in view.groups("app", 5).items] == [("app", "shop", 1)]
    ahead = view.group_forecast("app", "shop", 60)
    assert ahead is not None
    assert len(ahead.resources[CPU].rows) == 12
    assert ahead.resources[CPU].rows[0].mean is not None
    assert view.group_forecast("app", "", 60) is None


def test_out_of_calibration_shows_as_reactive_with_its_reason_until_it_recovers() -> None:
    view, cycle = running(Mode.PREDICTIVE)
    cycle.forecast = spoken({CPU: NoForecast.OUT_OF_CALIBRATION})
    off = view.vm("vm-1")
    assert off is not None
    assert (off.mode, off.mode_reason) == (Mode.REACTIVE, "out_of_calibration: cpu_millicores")
    assert [(part.control, part.reason) for part in off.resources[:2]] == [
        (Mode.REACTIVE, "out_of_calibration"),
        (Mode.PREDICTIVE, None),
    ]
    cycle.forecast = replace(spoken({}), issued_s=T0 + BUCKET_S)
    back = view.vm("vm-1")
    assert back is not None
    assert (back.mode, back.mode_reason, {part.control for part in back.resources}) == (Mode.PREDICTIVE, None, {Mode.PREDICTIVE})


@pytest.mark.parametrize(
    ("reason", "control"),
    [(NoForecast.GAP, Mode.REACTIVE), (NoForecast.ALL_UNKNOWN, Mode.REACTIVE), (NoForecast.COLD_START, Mode.PREDICTIVE)],
)
def test_whatever_the_plan_cannot_use_is_left_to_the_reactive_rule(reason: NoForecast, control: Mode) -> None:
    view, cycle = running(Mode.PREDICTIVE)
    cycle.forecast = spoken({MEMORY: reason})
    found = view.vm("vm-1")
    assert found is not None
    assert found.resources[MEMORY].control is control
    assert found.mode is Mode.PREDICTIVE  # not for want of calibration


def test_before_the_first_forecast_and_in_other_modes() -> None:
    for mode, policy, control in (
        (Mode.PREDICTIVE, None, Mode.REACTIVE),
        (Mode.REACTIVE, None, Mode.REACTIVE),
        (Mode.OBSERVE, None, Mode.OBSERVE),
        (Mode.PREDICTIVE, Policy(excluded=True), Mode.OBSERVE),
    ):
        found = running(mode, policy)[0].vm("vm-1")
        assert found is not None
        assert {part.control for part in found.resources} == {control}


def test_the_running_coordinator_shows_its_sums_and_scores() -> None:
    view, cycle = running(Mode.OBSERVE)
    assert view.groups(None, 5).items == ()
    assert view.group_forecast("fleet", "", 60) is None
    assert view.vm_accuracy("vm-1", "day").horizons == ()
    cycle.handle(cy.ForecastReady(bucket=one_bucket(), forecast=spoken({})), T0 * NS_PER_S)
    assert [(group.kind, group.name) for group in view.groups(None, 5).items] == [("fleet", ""), ("host", "h"), ("client", "aurora")]
    assert view.accuracy("day", 5).fleet[CPU].pairs == 0


class Asked:
    """A pool whose worker answers, or does not, and a history that remembers reasons."""

    def __init__(self, answer: ForecastWhy | Exception | None, past: Sequence[ForecastBlock] = ()) -> None:
        self.answer, self.past = answer, list(past)

    async def explain(self, vm_id: str) -> ForecastWhy | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def forecasts(self, vm_id: str, since_s: int) -> list[ForecastBlock]:
        return [block for block in self.past if block.issued_s >= since_s]


def why(block: ForecastBlock | None, asked: Asked) -> ForecastWhyView:
    view, cycle = running(Mode.PREDICTIVE)
    cycle.forecast = block

    async def read(function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)

    of: Any = view._of
    of.pool, of.history, of.read_history = asked, asked, read
    return asyncio.run(view.why("vm-1"))


def test_why_before_any_forecast() -> None:
    found = why(None, Asked(NotNow("never asked")))
    assert (found.issued_s, found.not_now) == (None, None)
    for part in found.resources:
        assert part.reason is not None and part.reason.code == "cold_start" and "first full bucket" in part.summary[0]


def test_why_while_the_worker_is_dead_tells_what_the_coordinator_knows() -> None:
    past = [replace(spoken({CPU: reason}), issued_s=T0 - age * BUCKET_S) for age, reason in ((3, 0), (2, 4), (1, 4), (0, 4))]
    found = why(spoken({CPU: NoForecast.OUT_OF_CALIBRATION}), Asked(NotNow("the worker of 'vm-1' is gone"), past))
    assert (found.issued_s, found.not_now) == (T0, "the worker of 'vm-1' is gone")
    cpu, memory = found.resources[CPU], found.resources[MEMORY]
    assert cpu.reason is not None and (cpu.reason.code, cpu.reason.since_s) == ("out_of_calibration", T0 - 2 * BUCKET_S)
    assert "since 20" in cpu.summary[0] and "What would end it" in cpu.summary[0]
    assert (memory.reason, memory.summary, memory.model, memory.details) == (None, (), "theta", None)
    assert [(part.target, part.minutes, part.median) for part in cpu.issued][:2] == [("mean", "5-10", 1.0), ("mean", "15-30", 1.0)]


@pytest.mark.parametrize("reason", [reason for reason in NoForecast if reason])
def test_every_reason_is_put_in_words_by_the_coordinator_alone(reason: NoForecast) -> None:
    found = why(spoken({CPU: reason}), Asked(NotNow("busy"))).resources[CPU]
    assert found.reason is not None and found.reason.code == reason.name.lower()
    assert found.reason.since_s is None, "no stored forecast tells"
    assert found.reason.meaning and found.reason.ends and found.summary[0].startswith(found.reason.code)


def test_why_from_a_real_engine_and_from_another_forecast_than_the_coordinators() -> None:
    engine = ForecastEngine(ForecastOptions(boosting=False, network=False, ring=96, replay=12))
    values = np.full((1, 5), 500.0)
    for i in range(40):
        bucket = BucketBlock(
            start_s=T0 + i * BUCKET_S,
            vm_ids=("vm-1",),
            host_ids=("h",),
            mean=values + i % 3,
            peak=values + i % 3,
            usage=values,
            censored=values * 0,
            allocation=values,
            samples=np.array([60]),
        )
        block = engine.advance(bucket, {"vm-1": [501.0, *(np.nan,) * 4]})
    told = engine.explain("vm-1")
    found = why(block, Asked(told))
    assert (found.not_now, found.issued_s) == (None, block.issued_s)
    cpu = found.resources[CPU]
    assert told is not None and cpu.details == told.resources[CPU]
    assert cpu.summary[0].startswith("5-10 minutes ahead: ") and "counts most" in cpu.summary[0]
    assert "held at the most that it may ever have, 0.501 cores" in cpu.summary[-1]
    assert cpu.issued[0].at_capacity_from is not None and found.resources[MEMORY].issued[0].at_capacity_from is None
    assert msgspec.json.decode(msgspec.json.encode(found), type=ForecastWhyView) == found
    other = why(replace(block, issued_s=block.issued_s + BUCKET_S), Asked(told))
    assert other.resources[CPU].details is None and "another forecast" in str(other.not_now)
    assert "rebuilt" in str(why(block, Asked(None)).not_now)
