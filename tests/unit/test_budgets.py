"""Budgets: turns, growth without a plan, cuts of memory, VMs cut at a time, failures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.acting.budgets import HOUR_NS, MINUTE_NS, BlastRadius, Circuit, GrowthBudget, MemoryCuts, Turns
from shared.plan import StepKind
from shared.units import NS_PER_S

Q, M = StepKind.CPU_QUOTA, StepKind.MEMORY
S = NS_PER_S


def test_only_a_shrink_after_a_growth_is_a_turn() -> None:
    turns = Turns()
    assert not turns.would_turn(Q)
    turns.shrank(Q, 1, 100)
    assert turns.within(Q, 0) == ()
    turns.grew(Q)
    turns.grew(Q)
    assert turns.would_turn(Q) and not turns.would_turn(M) and turns.within(Q, 0) == ()
    turns.shrank(Q, 2, 100)
    turns.shrank(Q, 3, 100)
    assert turns.within(Q, 0) == (2,) and not turns.would_turn(Q)
    assert turns.within(M, 0) == ()


def test_turns_leave_the_window() -> None:
    turns = Turns()
    for at in (10, 20, 30):
        turns.grew(Q)
        turns.shrank(Q, at, 15)
    assert turns.within(Q, 0) == (20, 30)  # 10 was forgotten when 30 came
    assert turns.within(Q, 20) == (30,) and turns.within(Q, 19) == (20, 30)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=60))
def test_turns_are_the_falls_after_rises(changes: list[tuple[bool, int]]) -> None:
    turns, now, last, expected = Turns(), 0, None, []
    for growth, wait in changes:
        now += wait
        if growth:
            turns.grew(Q)
        else:
            turns.shrank(Q, now, 100)
            if last is True:
                expected.append(now)
        last = growth
        assert turns.within(Q, now - 100) == tuple(at for at in expected if at > now - 100)


def test_the_growth_budget_is_of_what_the_vm_began_with_or_of_the_windows_start_where_that_is_more() -> None:
    budget = GrowthBudget()
    assert budget.base(Q, 700, 0, 100) == 700 and budget.began(Q) is None
    budget.began_with(Q, 1000)
    budget.began_with(Q, 9000)  # too late
    assert budget.began(Q) == 1000
    assert budget.base(Q, 700, 0, 100) == 1000 and budget.base(Q, 3000, 0, 100) == 3000
    assert budget.ends_ns(Q, 0, 100) is None
    budget.grew(Q, 3000, 10, 100)
    budget.grew(Q, 4000, 50, 100)  # within the same window
    assert budget.ends_ns(Q, 109, 100) == 110 and budget.ends_ns(Q, 10, 100) == 110
    assert budget.base(Q, 6000, 109, 100) == 3000
    assert budget.ends_ns(Q, 110, 100) is None and budget.base(Q, 6000, 110, 100) == 6000
    assert budget.ends_ns(Q, 9, 100) is None  # the clock was set back
    budget.grew(Q, 6000, 110, 100)
    assert budget.base(Q, 9999, 111, 100) == 6000
    assert budget.ends_ns(M, 111, 100) is None and budget.base(M, 5, 111, 100) == 5


def test_memory_cuts_remember_the_hours_largest_sum() -> None:
    cuts = MemoryCuts()
    assert cuts.peak(0) is None
    cuts.cut(800, 1 * S)
    cuts.cut(700, 2 * S)
    assert cuts.peak(3 * S) == (1 * S, 800)
    cuts.cut(900, 4 * S)
    assert cuts.peak(5 * S) == (4 * S, 900)
    cuts.cut(900, 6 * S)
    assert cuts.peak(7 * S) == (6 * S, 900)
    cuts.cut(100, 8 * S)
    assert cuts.peak(6 * S + HOUR_NS - 1) == (6 * S, 900)
    assert cuts.peak(6 * S + HOUR_NS) == (8 * S, 100)
    assert cuts.peak(8 * S + HOUR_NS) is None


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 1800)), max_size=50))
def test_the_hours_largest_sum_is_its_maximum(seen: list[tuple[int, int]]) -> None:
    cuts, now, all_of_them = MemoryCuts(), 0, []
    for size, wait_s in seen:
        now += wait_s * S
        cuts.cut(size, now)
        all_of_them.append((now, size))
        peak = cuts.peak(now)
        assert peak is not None and peak[1] == max(size for at, size in all_of_them if at > now - HOUR_NS)


def test_the_blast_radius_counts_other_vms_of_the_last_minute() -> None:
    radius = BlastRadius()
    assert radius.others("a", 0) == () and not radius.recently("a", 0)
    radius.cut("a", 1)
    radius.cut("b", 2)
    radius.cut("a", 3)  # again: newest time, one VM
    assert radius.others("c", 4) == (2, 3) and radius.others("a", 4) == (2,) and radius.others("b", 4) == (3,)
    assert radius.recently("a", 4) and not radius.recently("c", 4)
    assert radius.others("c", 2 + MINUTE_NS - 1) == (2, 3) and radius.others("c", 2 + MINUTE_NS) == (3,)
    assert radius.recently("a", 3 + MINUTE_NS - 1) and not radius.recently("a", 3 + MINUTE_NS)


def test_the_circuit_opens_at_the_failures_of_a_window_and_counts_anew() -> None:
    circuit = Circuit()

    def fail(now_ns: int) -> int:
        circuit.failed(now_ns, failures=3, window_ns=100, open_ns=1000)
        return circuit.open_until_ns

    assert [fail(1), fail(50), fail(101)] == [0, 0, 0]  # the first has left the window
    assert fail(149) == 1149
    assert [fail(150), fail(151)] == [1149, 1149]
    assert fail(152) == 1152


def test_an_open_circuit_is_never_shortened() -> None:
    circuit = Circuit()
    circuit.failed(500, failures=1, window_ns=10, open_ns=1000)
    circuit.failed(100, failures=1, window_ns=10, open_ns=1000)  # the clock was set back
    assert circuit.open_until_ns == 1500


def test_what_began_with_nothing_and_has_nothing_has_nothing_to_take_a_share_of() -> None:
    budget = GrowthBudget()
    assert budget.base(StepKind.DIMM, 0, 5 * NS_PER_S, NS_PER_S) == 0
    assert budget.ends_ns(StepKind.DIMM, 5 * NS_PER_S, NS_PER_S) is None
