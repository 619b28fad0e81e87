"""What applications tell: folded into means of buckets, whatever is told again, late or ahead; and for whom a report is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.demand.signals import AHEAD_S, LATE_S, SLOT_S, SignalBlock, SignalCounts, SignalFolder, SignalReading
from coordinator.forecast.events.model import Labels
from coordinator.service.problems import InvalidValue, NotFound
from coordinator.service.signals import MAX_VALUES, SignalBatch, SignalReport
from coordinator.service.telling import readings_of
from shared.units import BUCKET_S

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S
NAN = np.nan


def reading(at_s: float, rate: float | None, queue: float | None = None, vm_ids: tuple[str, ...] = ("a",)) -> SignalReading:
    return SignalReading(at_s, vm_ids, (rate, queue))


def means(folder: SignalFolder, start_s: int = T0, vm_ids: tuple[str, ...] = ("a",)) -> Any:
    found = folder.means(start_s, vm_ids)
    assert found is not None
    return found


def test_a_bucket_is_the_mean_of_what_was_told_in_it() -> None:
    folder = SignalFolder()
    for at_s, rate in ((T0, 10.0), (T0 + 100, 20.0), (T0 + BUCKET_S - 0.001, 60.0), (T0 + BUCKET_S, 1000.0)):
        assert folder.tell(reading(at_s, rate)) == SignalCounts(taken=1)
    np.testing.assert_array_equal(means(folder, T0, ("x", "a")), [[NAN, NAN], [30.0, NAN]])
    np.testing.assert_array_equal(means(folder, T0 + BUCKET_S), [[1000.0, NAN]])
    assert folder.means(T0, ("x",)) is None
    assert folder.means(T0 + 2 * BUCKET_S, ("a",)) is None


def test_telling_again_replaces_and_leaves_the_other_signal() -> None:
    folder = SignalFolder()
    folder.tell(reading(T0 + 1, 10.0))
    assert folder.tell(reading(T0 + 1, None, 4.0)) == SignalCounts(taken=1)  # another exporter's
    assert folder.tell(reading(T0 + SLOT_S - 1, 30.0)) == SignalCounts(replaced=1)
    np.testing.assert_array_equal(means(folder), [[30.0, 4.0]])


def test_zero_is_a_value() -> None:
    folder = SignalFolder()
    folder.tell(reading(T0, 0.0))
    folder.tell(reading(T0 + SLOT_S, 8.0, 0.0))
    np.testing.assert_array_equal(means(folder), [[4.0, 0.0]])


def test_a_reading_is_of_each_vm_that_it_names() -> None:
    folder = SignalFolder()
    names = tuple(f"vm-{i}" for i in range(100))
    assert folder.tell(reading(T0, 5.0, vm_ids=(*names, "vm-7"))) == SignalCounts(taken=100)
    assert folder.tell(reading(T0, 6.0, vm_ids=("vm-99", "new"))) == SignalCounts(taken=1, replaced=1)
    found = means(folder, vm_ids=(*names, "new"))
    assert found[:, 0].tolist() == [5.0] * 99 + [6.0, 6.0]


def test_closing_gives_what_no_bucket_took_with_it() -> None:
    folder = SignalFolder()
    assert folder.close(T0) is None  # nothing was ever told
    folder.tell(reading(T0, 1.0, vm_ids=("b", "a", "c")))
    folder.tell(reading(T0 + BUCKET_S, 2.0))
    assert folder.close(T0 - 1) == ()
    means(folder, vm_ids=("b",))
    (block,) = folder.close(T0 + 7) or ()
    assert (block.start_s, block.vm_ids) == (T0, ("a", "c"))
    np.testing.assert_array_equal(block.means, [[1, NAN], [1, NAN]])
    assert folder.close(T0 + 200) is None  # once a bucket


def test_late_readings_are_stored_whole_when_the_next_bucket_ends() -> None:
    folder = SignalFolder()
    folder.tell(reading(T0, 1.0))
    folder.close(T0)
    assert folder.tell(reading(T0 + 60, 3.0)) == SignalCounts(late=1)
    assert folder.tell(reading(T0 + 60, 5.0)) == SignalCounts(replaced=1)
    (block,) = folder.close(T0 + BUCKET_S) or ()
    assert block.means.tolist()[0][0] == 3.0  # 1 and 5
    assert folder.close(T0 + 2 * BUCKET_S) == ()


def test_no_reading_of_a_forgotten_bucket_is_allowed() -> None:
    folder = SignalFolder()
    assert folder.span_s(T0 + 0.9) == (T0 - LATE_S, T0 + AHEAD_S)
    folder.tell(reading(T0, 1.0))
    closed_s = T0 + LATE_S
    folder.close(closed_s)
    assert folder.means(T0, ("a",)) is None
    assert folder.span_s(closed_s - 3600)[0] == T0 + BUCKET_S  # the clock was set back
    assert folder.span_s(closed_s + BUCKET_S)[0] >= T0 + BUCKET_S


def test_what_was_told_last_is_known_for_a_day() -> None:
    folder = SignalFolder()
    assert folder.newest("a") is None
    folder.tell(reading(T0 + 20, 1.0, 9.0))
    folder.tell(reading(T0 + 40, 2.0))
    folder.tell(reading(T0 + 30, 7.0))  # older than what is shown
    assert folder.newest("a") == (T0 + 40, (2.0, 9.0))
    folder.close(T0 + 86_400 - BUCKET_S)
    assert folder.newest("a") is not None
    folder.tell(reading(T0 + 2 * 86_400, 1.0, vm_ids=("b",)))
    folder.close(T0 + 2 * 86_400)
    assert folder.newest("a") is None


TOLD = st.tuples(st.integers(0, 1199), st.sampled_from(["a", "b", "c"]), st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 1e6))


@given(st.lists(TOLD, max_size=60), st.integers(0, 60))
def test_whatever_is_told_the_means_are_those_of_a_plain_table(told: list[tuple[int, str, float | None, float | None]], at: int) -> None:
    """And what is given out or closed in between changes nothing of them."""
    folder, table, stored = SignalFolder(), {}, {}
    for i, (second, vm_id, *values) in enumerate(told):
        if i == at:
            folder.means(T0, ("a", "b"))
            folder.close(T0)
        folder.tell(SignalReading(T0 + second, (vm_id,), tuple(values)))
        for k, value in enumerate(values):
            if value is not None:
                table[second // 300, vm_id, k, second // SLOT_S] = value
    for bucket in range(4):
        found = folder.means(T0 + bucket * BUCKET_S, ("a", "b", "c"))
        for i, vm_id in enumerate("abc"):
            for k in range(2):
                values = [value for key, value in table.items() if key[:3] == (bucket, vm_id, k)]
                expected = np.mean(np.array(values, np.float32).astype(float)) if values else NAN
                stored[bucket, vm_id, k] = NAN if found is None else found[i, k]
                assert stored[bucket, vm_id, k] == pytest.approx(expected, rel=1e-12, nan_ok=True)


# -- for whom a report is

LABELS = {"a": Labels(client="acme", app="shop"), "b": Labels(client="acme"), "c": Labels(client="beta", app="shop"), "d": Labels()}


def told(*reports: SignalReport, labels: Mapping[str, Labels] = LABELS) -> tuple[SignalReading, ...]:
    return readings_of(SignalBatch(readings=reports), labels.keys(), lambda: labels, (T0 - LATE_S, T0 + AHEAD_S))


def test_a_client_and_an_application_stand_for_their_vms() -> None:
    found = told(
        SignalReport(time_s=T0, vm_id="d", requests_per_s=1),
        SignalReport(time_s=T0, client="acme", queue_length=2),
        SignalReport(time_s=T0, application="shop", requests_per_s=3, queue_length=0),
    )
    assert [one.vm_ids for one in found] == [("d",), ("a", "b"), ("a", "c")]
    assert [one.values for one in found] == [(1, None), (None, 2), (3, 0)]


@pytest.mark.parametrize(
    ("report", "field"),
    [
        (SignalReport(time_s=T0 - LATE_S - 1, vm_id="a", requests_per_s=1), "time_s"),
        (SignalReport(time_s=T0 + AHEAD_S + 0.5, vm_id="a", requests_per_s=1), "time_s"),
        (SignalReport(time_s=T0, vm_id="a"), ""),
        (SignalReport(time_s=T0, requests_per_s=1), ""),
        (SignalReport(time_s=T0, vm_id="a", client="acme", requests_per_s=1), ""),
        (SignalReport(time_s=T0, vm_id="nobody", requests_per_s=1), "vm_id"),
        (SignalReport(time_s=T0, client="nobody", requests_per_s=1), "client"),
        (SignalReport(time_s=T0, application="nothing", requests_per_s=1), "application"),
    ],
)
def test_a_wrong_report_is_named(report: SignalReport, field: str) -> None:
    good = SignalReport(time_s=T0, vm_id="a", requests_per_s=1)
    with pytest.raises((InvalidValue, NotFound)) as refusal:
        told(good, report)
    assert refusal.value.field == ("readings[1]." + field).rstrip(".")
    assert refusal.value.allowed


def test_one_request_cannot_ask_for_the_work_of_many() -> None:
    many = {f"vm-{i}": Labels(client="acme") for i in range(MAX_VALUES // 2)}
    report = SignalReport(time_s=T0, client="acme", requests_per_s=1)
    assert len(told(report, report, labels=many)) == 2
    with pytest.raises(InvalidValue, match=str(MAX_VALUES)):
        told(report, report, report, labels=many)


def test_labels_are_not_asked_for_in_vain() -> None:
    batch = SignalBatch(readings=(SignalReport(time_s=T0, vm_id="a", requests_per_s=1),))
    assert readings_of(batch, {"a"}, _unwanted, (T0, T0))[0].vm_ids == ("a",)


def _unwanted() -> dict[str, Labels]:
    raise AssertionError("no report names a client")


def test_a_block_says_what_it_holds() -> None:
    block = SignalBlock(start_s=T0, vm_ids=("a",), means=np.array([[1.0, NAN]]))
    assert block.means.shape == (len(block.vm_ids), 2)
