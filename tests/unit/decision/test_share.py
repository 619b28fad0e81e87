"""Host capacity by priority."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.sizing.share import Claim, share_capacity, spare_grants


def claim(priority: int, floor: float, need: float, target: float, hold: float | None = None, base: float | None = None) -> Claim:
    base = floor if base is None else base
    return Claim(priority=priority, base=base, floor=floor, need=need, target=target, hold=target if hold is None else hold)


def test_with_room_everybody_gets_the_target_and_keeps_what_it_holds() -> None:
    claims = [claim(1, 100, 500, 800), claim(0, 100, 200, 300, hold=600)]
    assert share_capacity(claims, 1400, strict_from=3, granule=10) == [800, 600]


def test_holdings_without_need_go_first() -> None:
    claims = [claim(0, 100, 500, 800), claim(2, 100, 200, 300, hold=900)]
    assert share_capacity(claims, 1200, strict_from=3, granule=10) == [800, 400]


def test_higher_priority_gets_its_headroom_and_the_lower_class_shares_what_is_left() -> None:
    claims = [claim(2, 100, 500, 1000), claim(1, 100, 400, 800), claim(1, 100, 400, 1200)]
    assert share_capacity(claims, 2350, strict_from=3, granule=10) == [1000, 580, 760]  # 550 for asks of 400 and 800, rounded down


def test_means_of_the_low_come_before_headroom_of_the_high_but_not_of_strict_classes() -> None:
    claims = [claim(3, 0, 500, 1000), claim(2, 0, 500, 1000), claim(0, 0, 400, 800)]
    assert share_capacity(claims, 2000, strict_from=3, granule=10) == [1000, 600, 400]
    assert share_capacity(claims, 2000, strict_from=0, granule=10) == [1000, 1000, 0]
    assert share_capacity(claims, 2000, strict_from=4, granule=10) == [1000, 600, 400]


def test_nobody_loses_its_floor_but_growing_to_it_goes_by_priority() -> None:
    assert share_capacity([claim(0, 700, 900, 900), claim(3, 700, 900, 900)], 1000, strict_from=3, granule=10) == [700, 700]
    claims = [claim(0, 700, 900, 900, base=200), claim(3, 700, 900, 900, base=500)]
    assert share_capacity(claims, 1000, strict_from=3, granule=10) == [300, 700]


def test_spare_room_goes_out_in_proportion_and_not_past_the_top() -> None:
    assert spare_grants([100, 300], [1000, 350], 400, 10) == [200, 350]
    assert spare_grants([100, 300], [1000, 350], 0, 10) == [100, 300]


multiples = st.integers(0, 400).map(lambda n: 10.0 * n)
claims_st = st.lists(
    st.tuples(st.integers(0, 3), st.lists(multiples, min_size=4, max_size=4).map(sorted)).map(
        lambda t: claim(t[0], t[1][0], t[1][1], t[1][2], t[1][3])
    ),
    max_size=12,
)


@given(claims_st, multiples, st.integers(0, 4))
def test_sums_floors_and_tops_hold(claims: list[Claim], capacity: float, strict_from: int) -> None:
    grants = share_capacity(claims, capacity, strict_from=strict_from, granule=10)
    assert sum(grants) <= max(capacity, sum(c.base for c in claims)) + 1e-6
    assert all(c.base <= g <= c.hold for c, g in zip(claims, grants, strict=True))


@given(claims_st, multiples, st.integers(0, 4), st.lists(multiples, min_size=4, max_size=4).map(sorted))
def test_the_same_claim_gets_no_less_at_a_higher_priority(claims: list[Claim], capacity: float, strict_from: int, own: list[float]) -> None:
    grants = []
    for priority in range(4):
        mine = claim(priority, own[0], own[1], own[2], own[3])
        grants.append(share_capacity([*claims, mine], capacity, strict_from=strict_from, granule=10)[-1])
    assert grants == sorted(grants)


@given(claims_st, multiples, st.integers(0, 4))
def test_of_two_equal_claims_the_higher_priority_gets_no_less(claims: list[Claim], capacity: float, strict_from: int) -> None:
    pair = [claim(p, 100, 300, 700, 900) for p in (1, 2)]
    low, high = share_capacity([*claims, *pair], capacity, strict_from=strict_from, granule=10)[-2:]
    assert low <= high
