"""Compliance from minutes equals what brute force says of the same samples, with gaps, duplicates, late spools and restarts."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.demand.buckets import BucketFolder
from coordinator.learning.compliance import ComplianceBook, LateMinutes
from coordinator.learning.compliance_backfill import words_of
from coordinator.learning.compliance_hours import HOUR_S, HourBits, Owner, Promise
from coordinator.learning.compliance_series import BAD, FILLED, GOOD, UNKNOWN, minute_series
from coordinator.learning.compliance_sums import DAY, FAST, HALF, HOUR, PAIRS, SIX, THREE_DAYS
from coordinator.learning.default_slas import DefaultSlas, sla_of_thresholds
from coordinator.learning.objectives import METRICS, Objective, Sla
from coordinator.learning.sla import SlaThresholds
from coordinator.settings import default_slas
from shared.config import SlaConfig
from shared.model import HostSample, VmSample
from shared.units import BUCKET_S, NS_PER_S

T0 = 1_790_000_400 // HOUR_S * HOUR_S
PERIOD_S = 6 * HOUR_S
OWNERS = {
    "a": Owner(client="acme", application="shop", priority=1),
    "b": Owner(client="acme", application="db", priority=3),
    "c": Owner(client="zeta", application="shop", priority=1),
}


def slas(period_s: int = PERIOD_S) -> DefaultSlas:
    known = SlaThresholds()
    low, normal, high, critical = (
        sla_of_thresholds(name, share_permille=share, thresholds=known, unmet_permille=20, drops_permille=0, period_s=period_s)
        for name, share in (("low", 950.0), ("normal", 990.0), ("high", 995.0), ("critical", 999.0))
    )
    return DefaultSlas(by_priority=(low, normal, high, critical))


def host_sample(at_s: float, vms: dict[str, VmSample], period_s: int = 5) -> HostSample:
    ns = int(at_s * NS_PER_S)
    return HostSample(wall_ns=ns, monotonic_ns=ns - T0 * NS_PER_S + 10**12, period_ns=period_s * NS_PER_S, vms=vms)


def vm(ready: int | None, pressure: int | None, throttled: int | None, dropped: int | None) -> VmSample:
    return VmSample(
        cpu_used_millicores=500,
        cpu_ready_permille=ready,
        cpu_throttled_permille=throttled,
        vcpus=2,
        cpu_quota_millicores=2000,
        psi_memory_some_permille=pressure,
        net_rx_bits_per_s=88_000,
        net_rx_dropped_per_s=dropped,
    )


def brute(samples: dict[tuple[str, int], tuple[int, VmSample]], vm_id: str, metric: str) -> dict[int, bool | None]:
    """minute -> bad, good (False) or unknown (None), exactly."""
    sums: dict[int, list[tuple[Fraction, int]]] = defaultdict(list)
    for (name, wall_ns), (period_s, sample) in samples.items():
        if name != vm_id:
            continue
        dropped = sample.net_rx_dropped_per_s
        value = {
            "ready": None if sample.cpu_ready_permille is None else Fraction(sample.cpu_ready_permille, 2),
            "memory_pressure": None if sample.psi_memory_some_permille is None else Fraction(sample.psi_memory_some_permille),
            "unmet_demand": None if sample.cpu_throttled_permille is None else Fraction(sample.cpu_throttled_permille),
            "network_drops": None if dropped is None else Fraction(1000 if dropped else 0),
        }[metric]
        if value is not None:
            sums[wall_ns // (60 * NS_PER_S)].append((min(value, Fraction(1000)), period_s))
    limit = {"ready": 50, "memory_pressure": 50, "unmet_demand": 20, "network_drops": 0}[metric]
    said = {}
    for minute, parts in sums.items():
        seconds = sum(period for _, period in parts)
        said[minute] = None if seconds < 30 else sum(value * period for value, period in parts) > limit * seconds
    return said


readings = st.one_of(st.none(), st.sampled_from([0, 40, 100, 102, 900]))
one_vm = st.builds(vm, readings, st.one_of(st.none(), st.sampled_from([0, 50, 51, 700])), readings, st.sampled_from([None, 0, 0, 3]))


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, HostSample]]:
    """(when it arrives, sample): five-second samples of two hours with gaps, duplicates and a spool that comes late."""
    stream = []
    for start in draw(st.lists(st.integers(0, 119), min_size=1, max_size=12, unique=True)):
        late_s = draw(st.sampled_from([0, 0, 0, 400, 4000]))
        period = draw(st.sampled_from([5, 5, 10, 20]))
        kinds = draw(st.lists(st.dictionaries(st.sampled_from("abc"), one_vm, min_size=1), min_size=1, max_size=3))
        times = draw(st.integers(1, 2))
        count = draw(st.integers(1, 60 // period))
        for n in range(count):
            at_s = T0 + 60 * start + period * n + 1
            for _ in range(times):
                stream.append((at_s + late_s, host_sample(at_s, kinds[n % len(kinds)], period)))
    return sorted(stream, key=lambda item: item[0])


class Runs:
    """Folder and book as the cycle drives them, with a store, and restarts that replay a log."""

    def __init__(self) -> None:
        self.stored: dict[int, bytes] = {}
        self.log: list[HostSample] = []
        self.closed_s: int | None = None
        self.start()

    def start(self) -> None:
        self.folder = BucketFolder(self.closed_s)
        self.book = ComplianceBook(slas())
        self.book.restore(HourBits.decode(self.stored[hour_s]) for hour_s in sorted(self.stored))
        for sample in self.log:
            self.folder.add("host", sample)

    def take(self, sample: HostSample) -> None:
        self.log.append(sample)
        self.folder.add("host", sample)

    def tick(self, now_s: int) -> None:
        for start_s in [s for s in self.folder.open_starts() if s <= now_s - BUCKET_S]:
            self.folder.close(start_s)
            self.closed_s = max(self.closed_s or 0, start_s)
            self.store(self.book.close(start_s, self.folder.minutes(start_s), OWNERS))
        for start_s in self.folder.grown_starts():
            self.folder.close(start_s)
            block = self.folder.minutes(start_s)
            assert block is not None
            grown = self.book.grow(block, OWNERS)
            if isinstance(grown, LateMinutes):
                hour = HourBits.decode(self.stored[grown.hour_s]) if grown.hour_s in self.stored else HourBits(hour_s=grown.hour_s)
                hour.merge(grown.block, grown.owners, grown.promise)
                self.book.counted(hour)
                grown = hour
            self.store([grown])

    def store(self, hours: list[HourBits]) -> None:
        for hour in hours:
            self.stored[hour.hour_s] = hour.encode()


@settings(max_examples=60, deadline=None)
@given(streams(), st.lists(st.integers(0, 60), max_size=3))
def test_compliance_is_what_brute_force_says(stream: list[tuple[int, HostSample]], restarts: list[int]) -> None:
    runs = Runs()
    for i, (arrives_s, sample) in enumerate(stream):
        if i in restarts:
            runs.start()
        runs.take(sample)
        runs.tick(arrives_s)
    runs.tick(T0 + 4 * HOUR_S)
    unique = {}
    for _, sample in stream:
        # of two samples of one host and moment the first counts, whatever the other says
        if not any(wall_ns == sample.wall_ns for _, wall_ns in unique):
            unique |= {(vm_id, sample.wall_ns): (sample.period_ns // NS_PER_S, cell) for vm_id, cell in sample.vms.items()}
    want = {vm_id: {metric: brute(unique, vm_id, metric) for metric in METRICS} for vm_id in OWNERS}
    for vm_id, parts in runs.book.standings("vm").items():
        assert [part.metric for part in parts] == list(METRICS)
        for part in parts:
            said = want[vm_id][part.metric].values()
            assert (part.good, part.bad) == (sum(v is False for v in said), sum(v is True for v in said)), (vm_id, part.metric)
    for kind, of in (("client", lambda o: o.client), ("application", lambda o: o.application)):
        by_vm, groups = runs.book.standings("vm"), runs.book.standings(kind)
        for name, parts in groups.items():
            members = [vm_id for vm_id in by_vm if of(OWNERS[vm_id]) == name]
            for m, part in enumerate(parts):
                assert part.good == sum(by_vm[each][m].good for each in members)
                assert part.bad == sum(by_vm[each][m].bad for each in members)
                assert part.unknown == sum(by_vm[each][m].unknown for each in members)
                assert part.budget == pytest.approx(sum(by_vm[each][m].budget for each in members))
    end_s = runs.book.end_s
    assert end_s is not None
    hours = [HourBits.decode(document) for document in runs.stored.values()]
    for resolution_s in (60, 300, 3600):
        until_s = -(-end_s // resolution_s) * resolution_s
        series = minute_series(hours, lambda vm_id, _: vm_id == "a", T0, until_s, resolution_s)
        part = runs.book.standings("vm").get("a")
        if part is not None:
            for m in range(len(METRICS)):
                assert series[:, m, GOOD].sum() == part[m].good
                assert series[:, m, BAD].sum() == part[m].bad
                assert series[:, m, UNKNOWN].sum() == part[m].unknown
                assert series[:, m, FILLED].sum() == 0


def steady(book: ComplianceBook, from_s: int, buckets: int, bad_of: dict[int, int] | None = None, ready: int = 0) -> None:
    """Buckets of one VM with full minutes; `bad_of`: bucket -> how many of its minutes are bad for CPU ready."""
    folder = BucketFolder()
    for n in range(buckets):
        start_s = from_s + n * BUCKET_S
        for second in range(2, BUCKET_S, 5):
            value = 900 if second // 60 < (bad_of or {}).get(n, 0) else ready
            folder.add("host", host_sample(start_s + second, {"a": vm(value, 0, 0, 0)}))
        folder.close(start_s)
        book.close(start_s, folder.minutes(start_s), {"a": OWNERS["a"]})


def ready_of(book: ComplianceBook, kind: str = "vm", name: str = "a"):  # type: ignore[no-untyped-def]
    return book.standings(kind)[name][0]  # type: ignore[index]


def test_the_budget_and_the_burn_rates() -> None:
    book = ComplianceBook(slas())
    steady(book, T0, 12, {11: 3})
    part = ready_of(book)
    assert (part.good, part.bad, part.unknown) == (57, 3, 0)
    assert part.budget == pytest.approx(360 * 0.01)
    assert part.remaining == pytest.approx(0.6)
    rates = {each.window_s: each.rate for each in part.burn}
    assert rates[FAST] == pytest.approx(3 / 5 / 0.01)
    assert rates[HALF] == pytest.approx(3 / 30 / 0.01)
    assert rates[HOUR] == rates[SIX] == rates[DAY] == rates[THREE_DAYS] == pytest.approx(3 / 60 / 0.01)
    # both windows of a pair must burn: the hour only five times too fast, not 14.4; three days five times the one that lasts
    assert part.alert == pytest.approx(max(min(5, 60) / 14.4, min(5, 10) / 6, min(5, 5) / 1))
    assert part.state == "burning"
    steady(book, T0 + HOUR_S, 12, {0: 5})
    assert ready_of(book).state == "exhausted"


def test_a_period_ends_with_the_running_hour() -> None:
    book = ComplianceBook(slas())
    steady(book, T0, 12, {0: 5})
    steady(book, T0 + HOUR_S, 5 * 12)
    assert ready_of(book).bad == 5
    steady(book, T0 + 6 * HOUR_S, 1)
    assert ready_of(book).bad == 0
    assert ready_of(book).good == 5 * 60 + 5


def test_minutes_while_nobody_counted_are_unknown_and_a_stopped_vm_has_none() -> None:
    book = ComplianceBook(slas())
    steady(book, T0, 2)
    steady(book, T0 + 6 * BUCKET_S, 1)
    part = ready_of(book)
    assert (part.good, part.unknown) == (15, 20)
    assert part.compliance == 1.0
    assert part.at_least == pytest.approx(15 / 35)
    book.close(T0 + 7 * BUCKET_S, None, {})
    stopped = ready_of(book)
    assert (stopped.good, stopped.unknown) == (15, 20)
    assert stopped.budget == pytest.approx(35 * 0.01)


def test_an_sla_without_an_objective_leaves_the_metric_out() -> None:
    only = Sla(id="x", name="x", objectives=(Objective(metric="network_drops", threshold_permille=0, share_permille=900),))
    book = ComplianceBook(DefaultSlas(by_priority=(only, only, only, only), clients={"acme": 50.0}))
    steady(book, T0, 1)
    parts = book.standings("vm")["a"]
    assert [part.metric for part in parts] == ["network_drops"]
    assert parts[0].promised == pytest.approx(0.95)
    assert book.slas_of("client", "acme")[0][1] == 1


def test_a_part_of_a_bucket_never_replaces_the_whole() -> None:
    whole, part = BucketFolder(), BucketFolder()
    for second in range(2, BUCKET_S, 5):
        sample = host_sample(T0 + second, {"a": vm(900, 0, 0, 0)})
        whole.add("host", sample)
        if second < 60:
            part.add("host", host_sample(T0 + second, {"a": vm(0, 0, 0, 0)}))
    book = ComplianceBook(slas())
    whole.close(T0)
    book.close(T0, whole.minutes(T0), OWNERS)
    part.close(T0)
    block = part.minutes(T0)
    assert block is not None
    book.grow(block, OWNERS)
    assert ready_of(book).bad == 5


def promise_for(thresholds: list[int]) -> Promise:
    return Promise(thresholds=np.array([thresholds], np.int32), budgets=np.full((1, 4), 0.01), periods=np.full((1, 4), 168, np.int32))


def test_history_fills_in_what_it_can_tell_and_measured_minutes_win() -> None:
    shape = (1, 5, 12)
    past = {name: np.full(shape, 100.0, np.float32) for name in ("mean", "peak", "usage", "allocation")}
    past["censored"] = np.zeros(shape, np.float32)
    past["censored"][0, 0, 3] = 0.5  # CPU ran into its limit
    past["usage"][0, 0, 3] = 80.0
    past["censored"][0, 1, 4] = 0.2  # memory pressed
    past["mean"][0, :, 7] = np.nan  # nothing stored
    past["censored"][0, :, 7] = np.nan
    promise = promise_for([500, 500, 200, 0])
    known, bad = words_of(past, promise.thresholds)
    hour = HourBits(hour_s=T0)
    hour.fill(["a"], [OWNERS["a"]], promise, known=known[:, 0], bad=bad[:, 0])
    series = minute_series([hour], lambda *_: True, T0, T0 + HOUR_S, BUCKET_S)
    assert series[:, 0, :2].sum() == 0  # ready at 5 % cannot be told from history
    assert series[:, 1, BAD].tolist() == [0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]
    assert series[:, 2, BAD].tolist() == [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]
    assert series[7, :, :].sum() == 0  # neither good nor there
    assert (series[..., FILLED] == series[..., GOOD] + series[..., BAD]).all()

    folder = BucketFolder()
    for second in range(2, BUCKET_S, 5):
        folder.add("host", host_sample(T0 + 3 * BUCKET_S + second, {"a": vm(0, 0, 0, 0)}))
    folder.close(T0 + 3 * BUCKET_S)
    block = folder.minutes(T0 + 3 * BUCKET_S)
    assert block is not None
    hour.merge(block, [OWNERS["a"]], promise)
    measured = minute_series([hour], lambda *_: True, T0, T0 + HOUR_S, BUCKET_S)[3]
    assert measured[2].tolist() == [5, 0, 0, 0]
    assert hour.fill(["a"], [OWNERS["a"]], promise, known=known[:, 0], bad=bad[:, 0]) == 0


def test_other_thresholds_keep_what_they_can_decide() -> None:
    book = ComplianceBook(slas())
    steady(book, T0, 12, {0: 5}, ready=60)  # 30 permille a vCPU, and five minutes of 450
    hour = book.hours()[T0]
    wider = hour.copy()
    dropped = wider.rebase(["a"], promise_for([4000, 500, 200, 0]))
    assert np.bitwise_count(dropped[0]).tolist() == [5, 0, 0, 0]  # bad at 5 % says nothing of 40 %
    narrower = hour.copy()
    dropped = narrower.rebase(["a"], promise_for([200, 500, 200, 0]))
    assert np.bitwise_count(dropped[0]).tolist() == [55, 0, 0, 0]
    assert narrower.counts()[0][0, 0] == 5


def test_documents_are_read_back_and_others_refused() -> None:
    book = ComplianceBook(slas())
    steady(book, T0, 12, {1: 2})
    hour = book.hours()[T0]
    again = HourBits.decode(hour.encode())
    assert again.vm_ids == hour.vm_ids
    assert again.owners == hour.owners
    for name in ("bad", "known", "filled", "samples", "present"):
        assert (getattr(again, name) == getattr(hour, name)).all()
    for nonsense in (b"", b"x" * 100, hour.encode()[:-20]):
        with pytest.raises(ValueError, match="not an hour"):
            HourBits.decode(nonsense)


def test_the_settings_make_the_default_slas() -> None:
    config = SlaConfig(clients=("acme=5",))
    made = default_slas(config)
    assert [each.objectives[0].share_permille for each in made.by_priority] == [950.0, 990.0, 995.0, 999.0]
    own = made.sla_of("a", "acme", "", made_priority := 1)  # type: ignore[arg-type]
    assert made_priority == 1
    assert {each.share_permille for each in own.objectives} == {995.0}
    assert {each.period_s for each in own.objectives} == {config.period_s}


def test_the_pairs_of_windows_are_the_workbooks() -> None:
    assert PAIRS == ((3600, 300, 14.4), (21_600, 1800, 6.0), (259_200, 21_600, 1.0))
