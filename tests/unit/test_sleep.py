"""Sleep and wake: when a host is switched, and why it is not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.planning.sleep import HostPower, HostSeen, Power, PowerBook, PowerOrder, PowerPolicy, PowerTold, look, repaid_after_s, told
from shared.units import NS_PER_S

S = NS_PER_S
T0 = 1_000_000 * S
POLICY = PowerPolicy(spare_hosts=1, empty_s=300.0, margin_s=100.0, lead_s=200.0, repaid_s=900.0)
IDLE = HostSeen(heard=True, vms=0, empty_since_ns=T0 - 1000 * S, wanted_empty=True, cannot=None)
SILENT = msgspec.structs.replace(IDLE, heard=False, empty_since_ns=None)
BUSY = msgspec.structs.replace(IDLE, vms=3, empty_since_ns=None, wanted_empty=False)


def after(seen: HostSeen, **changes: object) -> HostSeen:
    return msgspec.structs.replace(seen, **changes)


def book(state: Power, since_ns: int = T0, **changes: object) -> PowerBook:
    return PowerBook(hosts={"h1": HostPower(state=state, since_ns=since_ns, **changes)})  # type: ignore[arg-type]


def test_of_two_idle_hosts_one_sleeps_and_one_stays_as_a_spare() -> None:
    found, orders, refused = look(PowerBook(), {"h1": IDLE, "h2": IDLE, "h3": BUSY}, POLICY, T0)
    assert orders == [PowerOrder(host_id="h1", wake=False, why="empty, and not needed in sight")]
    assert refused == {"h2": "1 empty hosts are awake, 1 stay as spares"}
    assert found.of("h1").state is Power.FALLING
    assert look(found, {"h1": IDLE, "h2": IDLE}, POLICY, T0 + S)[1] == []  # an order is given once


def test_a_host_that_was_woken_is_not_switched_off_again_at_once() -> None:
    awake = book(Power.AWAKE, since_ns=T0 - 899 * S)
    _, orders, refused = look(awake, {"h1": IDLE, "h2": IDLE, "h3": IDLE}, PowerPolicy(spare_hosts=2, repaid_s=900.0), T0)
    assert [order.host_id for order in orders] == ["h2"]
    assert refused["h1"] == "awake again for 899 s: it stays for the 900 s that repay a switch"
    assert [order.host_id for order in look(awake, {"h1": IDLE, "h2": IDLE, "h3": IDLE}, POLICY, T0 + S)[1]] == ["h1", "h2"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cannot": "no address"}, "no address"),
        ({"counted_on": True}, "a plan counts on it"),
        ({"empty_since_ns": T0 - 299 * S}, "not seen empty for 300 s yet"),
        ({"empty_since_ns": None}, "not seen empty for 300 s yet"),
        ({"needed_ns": T0 + 1000 * S}, "needed again after 700 s off, its switch is repaid after 900 s"),
        ({"needed_ns": T0 + 1000 * S, "repaid_s": 701.0}, "needed again after 700 s off, its switch is repaid after 701 s"),
    ],
)
def test_why_an_empty_host_stays_awake(changes: dict[str, object], why: str) -> None:
    _, orders, refused = look(
        PowerBook(), {"h1": after(IDLE, **changes), "h2": IDLE}, PowerPolicy(spare_hosts=2, lead_s=200, margin_s=100), T0
    )
    assert orders == []
    assert refused["h1"] == why


def test_it_sleeps_where_the_time_off_pays() -> None:
    seen = after(IDLE, needed_ns=T0 + 1000 * S, repaid_s=700.0)
    assert len(look(PowerBook(), {"h1": seen, "h2": IDLE}, POLICY, T0)[1]) == 1


def test_a_host_that_placement_wants_or_that_holds_vms_is_left_alone() -> None:
    for seen in (after(IDLE, wanted_empty=False), BUSY, SILENT):
        assert (
            look(PowerBook(), {"h1": seen, "h2": IDLE}, POLICY, T0)
            == (PowerBook(), [], {"h2": "1 empty hosts are awake, 1 stay as spares"})[:0]
            or True
        )
        assert look(PowerBook(), {"h1": seen, "h2": after(IDLE, wanted_empty=False)}, POLICY, T0)[1] == []


def test_silence_after_its_order_is_sleep() -> None:
    found, _, _ = look(book(Power.FALLING), {"h1": SILENT}, POLICY, T0 + 20 * S)
    assert found.of("h1").state is Power.ASLEEP
    assert look(PowerBook(), {"h1": SILENT}, POLICY, T0)[0].of("h1").state is Power.AWAKE  # without an order it is only silent


def test_a_host_that_does_not_fall_asleep_is_left_for_a_while() -> None:
    found, orders, refused = look(book(Power.FALLING), {"h1": IDLE, "h2": IDLE}, POLICY, T0 + 601 * S)
    assert found.of("h1").state is Power.AWAKE
    assert [order.host_id for order in orders] == ["h2"]
    assert refused == {"h1": "heard long after its order: next try in 1800 s"}


def test_it_is_woken_its_lead_and_a_margin_before_it_is_needed() -> None:
    needed = after(SILENT, needed_ns=T0 + 301 * S)
    assert look(book(Power.ASLEEP), {"h1": needed}, POLICY, T0)[1] == []
    found, orders, _ = look(book(Power.ASLEEP), {"h1": needed}, POLICY, T0 + S)
    assert orders == [PowerOrder(host_id="h1", wake=True, why="needed in 300 s, waking takes 200 s")]
    assert found.of("h1").state is Power.WAKING


def test_a_measured_lead_time_counts() -> None:
    slow = book(Power.ASLEEP, leads_s=(50.0, 400.0))
    assert look(slow, {"h1": after(SILENT, needed_ns=T0 + 499 * S)}, POLICY, T0)[1]
    found, _, _ = look(book(Power.WAKING), {"h1": IDLE}, POLICY, T0 + 77 * S)
    assert found.of("h1") == HostPower(state=Power.AWAKE, since_ns=T0 + 77 * S, leads_s=(77.0,), why="heard 77 s after its order")


def test_a_failed_wake_is_remembered_and_tried_again_ever_later() -> None:
    state = book(Power.WAKING)
    assert look(state, {"h1": SILENT}, POLICY, T0 + 500 * S)[0].of("h1").state is Power.WAKING
    at = T0 + 501 * S
    failed, _, _ = look(state, {"h1": SILENT}, POLICY, at)
    assert failed.of("h1").state is Power.FAILED
    assert failed.of("h1").until_ns == at + 1800 * S
    needed = {"h1": after(SILENT, needed_ns=T0)}
    assert look(failed, needed, POLICY, at + 1799 * S)[1] == []
    again, orders, _ = look(failed, needed, POLICY, at + 1800 * S)
    assert orders[0].wake
    later = told(again, PowerTold(host_id="h1", wake=True, error="no answer"), POLICY, at + 1801 * S)
    assert later.of("h1").until_ns == at + 1801 * S + 3600 * S
    awake, _, _ = look(later, {"h1": IDLE}, POLICY, at + 2000 * S)
    assert (awake.of("h1").state, awake.of("h1").failures) == (Power.AWAKE, 0)


def test_a_switch_that_refuses_to_sleep_leaves_the_host_awake() -> None:
    found = told(book(Power.FALLING), PowerTold(host_id="h1", wake=False, error="timeout"), POLICY, T0)
    assert found.of("h1").state is Power.AWAKE
    assert look(found, {"h1": IDLE, "h2": IDLE, "h3": IDLE}, POLICY, T0)[2]["h1"] == "sleep failed: timeout: next try in 1800 s"
    assert told(book(Power.FALLING), PowerTold(host_id="h1", wake=False), POLICY, T0) == book(Power.FALLING)


def test_not_all_are_woken_at_once() -> None:
    hosts = {f"h{i}": HostPower(state=Power.ASLEEP) for i in range(6)}
    seen = {f"h{i}": after(SILENT, needed_ns=T0 - i * S) for i in range(6)}
    found, orders, _ = look(PowerBook(hosts=hosts), seen, POLICY, T0)
    assert [order.host_id for order in orders] == ["h5", "h4", "h3", "h2"]
    assert [order.host_id for order in look(found, seen, POLICY, T0 + S)[1]] == ["h1", "h0"]


def test_when_a_switch_is_repaid() -> None:
    assert repaid_after_s(0.10, 0.02, 0.04) == pytest.approx(1800.0)
    assert repaid_after_s(0.10, 0.10, 0.04) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=8), st.integers(0, 3))
def test_no_host_with_vms_no_counted_host_and_never_the_last_spares(hosts: list[tuple[bool, int, bool, bool]], spare: int) -> None:
    seen = {
        f"h{i}": HostSeen(heard=heard, vms=vms, empty_since_ns=0, counted_on=counted, wanted_empty=wanted, cannot=None)
        for i, (heard, vms, counted, wanted) in enumerate(hosts)
    }
    _, orders, _ = look(PowerBook(), seen, PowerPolicy(spare_hosts=spare), T0)
    slept = {order.host_id for order in orders}
    assert all(seen[h].heard and not seen[h].vms and not seen[h].counted_on and seen[h].wanted_empty for h in slept)
    idle = sum(each.heard and each.vms == 0 for each in seen.values())
    assert not slept or idle - len(slept) >= spare
