"""The local rule: when it grows, how far, and when it dares to shrink."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.acting.reactive import SLOTS, Ask, Demand, ReactiveRule, Situation, Track
from shared.config import ReactiveConfig
from shared.model import VmSample
from shared.plan import StepKind
from shared.units import GIB, MIB, NS_PER_S, UNLIMITED

Q, M, V, RX, TX = StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.VCPUS, StepKind.NET_RX, StepKind.NET_TX
RULE = ReactiveRule(ReactiveConfig(headroom_permille=1250, shrink_window_s=1800))
BOUNDS = {Q: (100, 4000), M: (128 * MIB, 8 * GIB), V: (1, 4), RX: (10**6, 10**9), TX: (10**6, 10**9)}


def situation(**changes: int) -> Situation:
    in_force = {Q: 1000, M: 2 * GIB, V: 2, RX: 10**8, TX: 10**8}
    in_force.update({StepKind(kind): value for kind, value in changes.items()})
    return Situation(in_force, BOUNDS, 4, 10**9)


def asks(reading: VmSample, demand: Demand | None = None, now_s: int = 0, **in_force: int) -> list[tuple[StepKind, int]]:
    return [(a.kind, a.value) for a in RULE.asks(reading, situation(**in_force), demand or Demand(), now_s * NS_PER_S)]


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (VmSample(), []),
        (VmSample(cpu_used_millicores=849), []),
        (VmSample(cpu_used_millicores=850), [(Q, 1062)]),
        (VmSample(cpu_used_millicores=500, cpu_used_peak_millicores=900), [(Q, 1125)]),
        (VmSample(cpu_used_millicores=500, cpu_throttled_permille=20), [(Q, 1250)]),
        (VmSample(cpu_used_millicores=500, cpu_throttled_permille=19), []),
        (VmSample(memory_used_bytes=int(1.8 * GIB)), [(M, int(1.8 * GIB) * 1250 // 1000)]),
        (VmSample(psi_memory_some_permille=60), [(M, 2 * GIB * 5 // 4)]),  # pressed, but the guest does not answer
        (VmSample(memory_used_bytes=GIB, memory_swap_bytes_per_s=MIB), [(M, 2 * GIB * 5 // 4)]),
        (VmSample(net_rx_bits_per_s=9 * 10**7), [(RX, 112_500_000)]),
        (VmSample(net_tx_bits_per_s=10**7, net_tx_dropped_per_s=3), [(TX, 125_000_000)]),
    ],
)
def test_growth(reading: VmSample, expected: list[tuple[StepKind, int]]) -> None:
    assert asks(reading) == expected


def test_under_a_live_plan_memory_waits_longer_and_cpu_and_memory_grow_by_less() -> None:
    def planned(reading: VmSample, scarce: frozenset[StepKind] = frozenset()) -> list[tuple[StepKind, int]]:
        return [(a.kind, a.value) for a in RULE.asks(reading, replace(situation(), scarce=scarce), Demand(), 0, planned=True)]

    assert planned(VmSample(memory_used_bytes=int(1.89 * GIB))) == []  # 94.5 %
    assert planned(VmSample(memory_used_bytes=int(1.91 * GIB))) == [(M, int(1.91 * GIB) * 1100 // 1000)]
    assert planned(VmSample(psi_memory_some_permille=60)) == [(M, 2 * GIB * 5 // 4)]  # pressure is answered as ever
    little_left = frozenset({Q})
    assert planned(VmSample(cpu_used_millicores=849), little_left) == []
    assert planned(VmSample(cpu_used_millicores=850), little_left) == [(Q, 1020)]  # as early as ever; 20 % over its use, not 25 %
    assert planned(VmSample(cpu_used_millicores=850)) == [(Q, 1062)]
    assert planned(VmSample(cpu_used_millicores=900, cpu_throttled_permille=20), little_left) == [(Q, 1250)]  # pressure is answered as ever
    assert planned(VmSample(net_rx_bits_per_s=9 * 10**7)) == [(RX, 112_500_000)]  # traffic jumps: as ever


def test_vcpus_come_before_the_quota_that_needs_them() -> None:
    assert asks(VmSample(cpu_used_millicores=1900), cpu_quota=2000) == [(V, 3), (Q, 2375)]
    assert asks(VmSample(cpu_used_millicores=1900), cpu_quota=UNLIMITED) == [(V, 3)]
    assert asks(VmSample(cpu_used_millicores=3900), cpu_quota=4000, vcpus=4) == []  # at the ceiling: nothing to ask


def test_memory_high_of_ours_is_lifted_before_the_balloon_grows_and_nobody_elses() -> None:
    high = StepKind.MEMORY_HIGH

    def kinds(ours: set[StepKind], reading: VmSample, **in_force: int) -> list[tuple[StepKind, int, bool, str]]:
        now = situation(**in_force)
        now = Situation(now.in_force, BOUNDS, 4, 10**9, ours)
        return [(a.kind, a.value, a.grow, a.reason) for a in RULE.asks(reading, now, Demand(), 0)]

    pressed, calm_ = VmSample(psi_memory_some_permille=60), VmSample(memory_used_bytes=GIB)
    growth = (M, 2 * GIB * 5 // 4, True, "pressure")
    assert kinds({high}, pressed, memory_high=GIB) == [(high, UNLIMITED, True, "pressure"), growth]
    assert kinds({M}, pressed, memory_high=GIB) == [growth]
    assert kinds({high}, pressed, memory_high=UNLIMITED) == kinds({high}, pressed) == [growth]
    assert kinds({high}, calm_, memory_high=GIB) == []
    assert [k for k, *_ in kinds({high}, VmSample(cpu_used_millicores=900), memory_high=GIB)] == [Q]


def test_an_oom_asks_at_once_and_says_so() -> None:
    def asked(reading: VmSample, demand: Demand, **how: bool) -> list[tuple[StepKind, int, str]]:
        return [(a.kind, a.value, a.reason) for a in RULE.asks(reading, situation(), demand, 0, **how)]

    killed = VmSample(memory_used_bytes=GIB, guest_oom_kills=1)
    assert asked(killed, Demand()) == asked(killed, Demand(), sustained=True) == [(M, 2 * GIB * 5 // 4, "guest_oom")]
    assert asked(VmSample(memory_used_bytes=GIB, guest_oom_kills=0), Demand()) == []
    assert asked(VmSample(cpu_used_millicores=1000, guest_oom_kills=1), Demand(), sustained=True) == [(M, 2 * GIB * 5 // 4, "guest_oom")]


def test_alone_growth_needs_two_samples_in_a_row() -> None:
    demand = Demand()

    def asked(use: int, now_s: int, sustained: bool = True) -> list[StepKind]:
        return [a.kind for a in RULE.asks(VmSample(cpu_used_millicores=use), situation(), demand, now_s * NS_PER_S, sustained=sustained)]

    assert asked(900, 0) == [] and asked(900, 5) == [Q] and asked(900, 10) == [Q]
    assert asked(100, 15) == [] and asked(900, 20) == []  # one odd sample breaks the row
    assert asked(900, 25) == [Q]
    assert asked(100, 30, sustained=False) == [] and asked(900, 35, sustained=False) == [Q]
    assert asked(900, 40) == [Q]  # what was seen before the link went counts


@pytest.mark.parametrize("felt", [{"psi_memory_some_permille": 60}, {"memory_swap_bytes_per_s": MIB}, {"guest_oom_kills": 1}])
def test_alone_only_memory_that_is_felt_missing_comes_on_the_first_sample(felt: dict[str, int]) -> None:
    def asked(**reading: int) -> list[StepKind]:
        return [a.kind for a in RULE.asks(VmSample(**reading), situation(), Demand(), 0, sustained=True)]

    assert asked(memory_used_bytes=GIB, **felt) == [M]
    assert asked(memory_used_bytes=2 * GIB) == []  # much used, nothing missing
    assert asked(cpu_used_millicores=1000, cpu_throttled_permille=900, **felt) == [M]
    assert asked(net_tx_bits_per_s=100_000_000, net_tx_dropped_per_s=50) == []


def test_alone_shrinks_do_not_wait_for_a_second_sample() -> None:
    demand = Demand()
    calm(demand, 1795)
    reading = VmSample(cpu_used_millicores=300)
    assert [a.kind for a in RULE.asks(reading, situation(), demand, 1800 * NS_PER_S, sustained=True)] == [Q]


def test_the_climb_doubles_while_the_limit_is_felt_and_starts_again_after() -> None:
    demand, limit, seen = Demand(), 1000, []
    for n in range(4):
        _, limit = _quota(limit, demand, n)
        seen.append(limit)
    assert seen == [1250, 1875, 3750, 4000]
    assert asks(VmSample(cpu_used_millicores=300, cpu_throttled_permille=0), demand, 25) == []
    assert _quota(1000, demand, 6) == (Q, 1250)


def _quota(limit: int, demand: Demand, n: int) -> tuple[StepKind, int]:
    reading = VmSample(cpu_used_millicores=limit, cpu_throttled_permille=300)
    return next(ask for ask in asks(reading, demand, n * 5, cpu_quota=limit, vcpus=4) if ask[0] is Q)


def calm(demand: Demand, seconds: int, start_s: int = 0, use: int = 300, every_s: int = 5) -> list[tuple[StepKind, int]]:
    last: list[tuple[StepKind, int]] = []
    for now in range(start_s, start_s + seconds + 1, every_s):
        last = asks(VmSample(cpu_used_millicores=use), demand, now)
    return last


def test_a_shrink_needs_the_whole_window() -> None:
    assert calm(Demand(), 1795) == []
    assert calm(Demand(), 1800) == [(Q, 375)]


def test_a_peak_in_the_window_counts_and_then_passes() -> None:
    demand = Demand()
    calm(demand, 1800, use=700)
    assert calm(demand, 1700, start_s=1805) == [(Q, 875)]
    assert calm(demand, 300, start_s=3510) == [(Q, 375)]


def test_small_gains_are_left_alone() -> None:
    assert calm(Demand(), 3600, use=720) == []  # 720 x 1.25 = 900: not more than 10 % below 1000


@pytest.mark.parametrize("gap_s", [181, -60])
def test_a_gap_or_a_clock_set_back_restarts_the_evidence(gap_s: int) -> None:
    demand = Demand()
    calm(demand, 1790)
    start = 1790 + gap_s
    assert calm(demand, 1795, start_s=start) == []
    assert calm(demand, 5, start_s=start + 1800) == [(Q, 375)]


def test_a_censored_sample_is_a_demand_of_at_least_the_limit() -> None:
    demand = Demand()
    asks(VmSample(cpu_used_millicores=400, cpu_throttled_permille=300), demand)
    assert calm(demand, 1800, start_s=5) == []


def test_a_shrink_stops_at_the_floor_and_unknown_values_in_force_stop_everything() -> None:
    assert calm(Demand(), 1800, use=10) == [(Q, 100)]
    blind = Situation({}, BOUNDS, 4, 10**9)
    assert RULE.asks(VmSample(cpu_used_millicores=900, memory_used_bytes=GIB), blind, Demand(), 0) == []


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 1000)), min_size=1, max_size=200))
def test_the_sliding_maximum_is_the_maximum_of_the_window(steps: list[tuple[int, int]]) -> None:
    window = 1800 * NS_PER_S
    track, seen, now = Track(), [], 0
    for step_s, demand in steps:
        now += step_s * NS_PER_S
        track.observe(demand, window, now)
        seen.append((now, demand))
        peak = track.peak(window)
        if peak is not None:
            slot = window // SLOTS
            least = max(d for at, d in seen if at >= now - window)
            most = max(d for at, d in seen if at // slot >= now // slot - SLOTS)
            assert least <= peak <= most
        assert len(track._falling) <= SLOTS + 1
        assert all(a[1] > b[1] for a, b in pairwise(track._falling))


@given(st.integers(0, 10_000), st.sampled_from([0, 500]), st.integers(100, 4000), st.integers(1, 4))
def test_asks_stay_within_bounds_and_grow_when_they_say_so(use: int, throttled: int, quota: int, vcpus: int) -> None:
    reading = VmSample(cpu_used_millicores=use, cpu_throttled_permille=throttled)
    now = situation(cpu_quota=quota, vcpus=vcpus)
    asked: list[Ask] = RULE.asks(reading, now, Demand(), 0)
    for ask in asked:
        low, high = BOUNDS[ask.kind]
        assert low <= ask.value <= high and ask.grow and ask.value > now.in_force[ask.kind]


def whole(reading: VmSample, demand: Demand | None = None, now_s: int = 0, **in_force: int) -> list[Ask]:
    return RULE.asks(reading, situation(**in_force), demand or Demand(), now_s * NS_PER_S)


def test_an_ask_says_its_direction_and_its_reason() -> None:
    assert whole(VmSample(net_rx_bits_per_s=9 * 10**7)) == [Ask(RX, 112_500_000, True, "high_use")]
    assert whole(VmSample(cpu_used_millicores=500, cpu_throttled_permille=20)) == [Ask(Q, 1250, True, "pressure")]
    assert whole(VmSample(memory_used_bytes=GIB, guest_oom_kills=1)) == [Ask(M, 2 * GIB * 5 // 4, True, "guest_oom")]
    assert whole(VmSample(cpu_used_millicores=1900), cpu_quota=2000) == [Ask(V, 3, True, "high_use"), Ask(Q, 2375, True, "high_use")]
    demand = Demand()
    calm(demand, 1795, use=301)
    assert whole(VmSample(cpu_used_millicores=301), demand, 1800) == [Ask(Q, 376, False, "low_use")]  # whole millicores


@pytest.mark.parametrize(
    ("in_force", "use", "expected"),
    [
        ({Q: 1000}, 900, [(Q, 1125)]),  # vCPUs not known: the quota alone
        ({Q: UNLIMITED}, 900, []),  # nothing is known to run into
        ({Q: UNLIMITED, V: 2}, 1699, []),
        ({Q: UNLIMITED, V: 2}, 1700, [(V, 3)]),  # 85 % of two
        ({Q: 4000, V: 2}, 1699, []),
        ({Q: 4000, V: 2}, 1700, [(V, 3)]),
        ({V: 2}, 1700, [(V, 3)]),
        ({Q: 1800, V: 2}, 1600, [(Q, 2000)]),  # two are enough for that
        ({Q: 1800, V: 2}, 1601, [(V, 3), (Q, 2001)]),  # one millicore more is a third
    ],
)
def test_what_cpu_use_runs_into(in_force: dict[StepKind, int], use: int, expected: list[tuple[StepKind, int]]) -> None:
    now = Situation(in_force, BOUNDS, 4, 10**9)
    assert [(a.kind, a.value) for a in RULE.asks(VmSample(cpu_used_millicores=use), now, Demand(), 0)] == expected


def test_the_trigger_is_met_to_the_bit() -> None:
    assert asks(VmSample(net_rx_bits_per_s=84_999_999)) == []
    assert asks(VmSample(net_rx_bits_per_s=85_000_000)) == [(RX, 106_250_000)]


def test_at_the_ceiling_there_is_nothing_to_ask_for() -> None:
    assert asks(VmSample(memory_used_bytes=8 * GIB, psi_memory_some_permille=60), memory=8 * GIB) == []
    assert asks(VmSample(net_rx_bits_per_s=950_000_000), net_rx=UNLIMITED) == []
    assert asks(VmSample(memory_used_bytes=GIB), memory=0) == []  # no limit at all is none to judge by


@pytest.mark.parametrize(
    ("limit", "use", "expected"),
    [(10**8, 72_000_000, []), (10**8, 71_999_999, [(RX, 89_999_998)]), (UNLIMITED, 71_999_999, [(RX, 89_999_998)])],
)
def test_a_shrink_gains_more_than_a_tenth_and_an_unlimited_nic_counts_as_all_there_is(
    limit: int, use: int, expected: list[tuple[StepKind, int]]
) -> None:
    demand, last = Demand(), list[tuple[StepKind, int]]()
    for now in range(0, 1801, 5):
        last = asks(VmSample(net_rx_bits_per_s=use), demand, now, net_rx=limit)
    assert last == expected


@pytest.mark.parametrize(("pause_s", "kept"), [(0, True), (180, True), (181, False)])
def test_a_tenth_of_the_window_without_a_sample_is_no_gap_yet(pause_s: int, kept: bool) -> None:
    demand = Demand()
    calm(demand, 1800)
    assert calm(demand, 0, start_s=1800 + pause_s) == ([(Q, 375)] if kept else [])


def test_ever_smaller_demands_take_one_entry_a_slot() -> None:
    window, track = 1800 * NS_PER_S, Track()
    for second in range(3600):
        track.observe(10_000 - second, window, second * NS_PER_S)
        assert len(track._falling) <= SLOTS + 1
    assert track.peak(window) == 10_000 - 1740  # of the oldest slot that the window still touches


def test_a_shrink_that_would_be_a_turn_looks_at_a_longer_window() -> None:
    """Busy until minute 5, idle after it: a lever that shrank last follows after ten minutes, one that grew last after half an hour."""
    rule = ReactiveRule(ReactiveConfig(shrink_window_s=600, turn_window_s=1800))

    def first_shrink_s(growing: frozenset[StepKind]) -> int | None:
        demand = Demand()
        where = Situation(situation().in_force, BOUNDS, 4, 10**9, growing=growing)
        for now_s in range(0, 7200, 5):
            use = 800 if now_s < 300 else 200
            found = rule.asks(VmSample(cpu_used_millicores=use), where, demand, now_s * NS_PER_S)
            if found:
                assert [(a.kind, a.value, a.grow) for a in found] == [(Q, 250, False)]
                return now_s
        return None

    eager, patient = first_shrink_s(frozenset()), first_shrink_s(frozenset({Q}))
    assert eager is not None and 900 <= eager <= 940  # the window and at most two of its slots after the last busy sample
    assert patient is not None and 2100 <= patient <= 2220
    assert first_shrink_s(frozenset({M})) == eager


def test_a_turn_never_looks_at_less_than_any_shrink() -> None:
    rule, demand = ReactiveRule(ReactiveConfig(shrink_window_s=600, turn_window_s=60)), Demand()
    where = Situation(situation().in_force, BOUNDS, 4, 10**9, growing=frozenset({Q}))
    asked = [bool(rule.asks(VmSample(cpu_used_millicores=200), where, demand, s * NS_PER_S)) for s in range(0, 605, 5)]
    assert asked == [False] * 120 + [True]
