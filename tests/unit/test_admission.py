"""Token buckets: what gets in is bounded, what waits waits as long as its debt, a bound on agents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.admission import MAX_WAIT_NS, Admission, AdmissionLimits
from shared.units import NS_PER_S

LIMITS = AdmissionLimits(max_agents=2, frames_per_s=10, frames_burst=5, bytes_per_s=1000, bytes_burst=2000)


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    admission = Admission(LIMITS)
    assert admission.enter("h1", 0)
    assert [admission.charge("h1", 1, 0) for _ in range(7)] == [0] * 5 + [NS_PER_S // 10, 2 * NS_PER_S // 10]
    assert admission.charge("h1", 1, NS_PER_S) == 0
    assert admission.counters["slowed"] == 2


def test_bytes_are_counted_too() -> None:
    admission = Admission(LIMITS)
    admission.enter("h1", 0)
    assert admission.charge("h1", 3000, 0) == NS_PER_S
    assert admission.charge("h1", 10**9, 0) == MAX_WAIT_NS


def test_one_agents_flood_does_not_slow_another() -> None:
    admission = Admission(LIMITS)
    for agent in ("h1", "h2"):
        admission.enter(agent, 0)
    for _ in range(100):
        admission.charge("h1", 1, 0)
    assert admission.charge("h2", 1, 0) == 0


def test_agents_are_bounded_and_places_freed() -> None:
    admission = Admission(LIMITS)
    assert [admission.enter(agent, 0) for agent in ("h1", "h2", "h3", "h1")] == [True, True, False, True]
    assert admission.counters["refused_full"] == 1
    admission.leave("h1")
    assert admission.enter("h3", 0)


@given(st.lists(st.tuples(st.integers(0, NS_PER_S), st.integers(1, 1500)), min_size=1, max_size=60))
def test_who_waits_as_told_never_passes_burst_plus_rate(arrivals: list[tuple[int, int]]) -> None:
    admission, now = Admission(LIMITS), 0
    admission.enter("h1", 0)
    frames = total = 0
    for pause, size in arrivals:
        now += pause
        frames, total = frames + 1, total + size
        seconds = now / NS_PER_S
        assert frames <= 5 + 10 * seconds + 1 + 1e-6
        assert total <= 2000 + 1000 * seconds + size + 1e-3
        now += admission.charge("h1", size, now)


@pytest.mark.parametrize("field", ["max_agents", "frames_per_s", "bytes_burst"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_impossible_limits(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} .*allowed 1 to"):
        AdmissionLimits(**{field: value})  # type: ignore[arg-type]


def test_who_leaves_and_comes_back_finds_no_new_burst() -> None:
    admission = Admission(LIMITS)
    admission.enter("h1", 0)
    for _ in range(7):
        admission.charge("h1", 1, 0)
    admission.leave("h1")
    admission.enter("h1", 0)
    assert admission.charge("h1", 1, 0) == 3 * NS_PER_S // 10
    for agent in ("h2", "h3", "h4"):  # only as many are remembered as may be connected
        admission.leave("h1")
        admission.enter(agent, 0)
        admission.leave(agent)
    admission.enter("h1", 0)
    assert admission.charge("h1", 1, 0) == 0
