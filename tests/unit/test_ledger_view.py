"""What the ledger shows of one lever, field by field, and what it keeps within bounds. What it counts and charges: test_ledger."""

from __future__ import annotations

from plain_host import plain_capacity

from agent.acting.budgets import MINUTE_NS
from agent.acting.ledger import STORY_LENGTH, Ledger
from agent.events import Decision
from shared.config import GuardConfig
from shared.model import Allocation, Domain, VmSample
from shared.plan import StepKind
from shared.units import GIB, NS_PER_S

S = NS_PER_S
T0 = 1_000_000 * S
K = StepKind
CONFIG = GuardConfig()


def ledger(*vm_ids: str) -> Ledger:
    book = Ledger(CONFIG, plain_capacity())
    book.define(tuple(Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=8 * GIB) for vm_id in vm_ids))
    for vm_id in vm_ids:
        book.note_allocation(vm_id, Allocation(vcpus=2, cpu_quota_millicores=1000, memory_bytes=2 * GIB), T0)
    return book


def test_when_a_lever_shrank_last_is_shown_for_that_lever_alone() -> None:
    book = ledger("a")
    book.begun("a", K.CPU_QUOTA, 1000, 900, T0 + S)
    book.begun("a", K.CPU_QUOTA, 900, 800, T0 + 2 * S)
    assert book.view("a", K.CPU_QUOTA, T0 + 3 * S).shrunk_at_ns == T0 + 2 * S
    assert book.view("a", K.MEMORY, T0 + 3 * S).shrunk_at_ns is None


def test_a_vms_own_cut_is_none_of_another() -> None:
    book = ledger("a", "b")
    book.begun("a", K.CPU_QUOTA, 1000, 900, T0)
    assert book.view("a", K.MEMORY, T0 + S).cuts_at_ns == () and book.view("b", K.MEMORY, T0 + S).cuts_at_ns == (T0,)


def test_a_growth_within_the_window_of_another_leaves_it_open_and_one_after_it_opens_the_next() -> None:
    book, window = ledger("a"), CONFIG.growth_budget_window_s * S
    for at_ns, ends_ns in ((T0, T0 + window), (T0 + window - 1, T0 + window), (T0 + window, T0 + 2 * window)):
        book.begun("a", K.CPU_QUOTA, 1000, 1100, at_ns, unplanned=True)
        assert book.view("a", K.CPU_QUOTA, at_ns).budget_ends_ns == ends_ns


def test_a_vm_of_which_nothing_was_read_has_no_sample() -> None:
    book = Ledger(CONFIG, plain_capacity())
    book.define((Domain(vm_id="a", name="a", vcpus_max=4, memory_max_bytes=8 * GIB),))
    view = book.view("a", K.MEMORY, T0)
    assert (view.reading, view.reading_at_ns, view.in_force, view.budget_base, view.vcpus, view.vms) == (None, 0, None, None, 4, 1)
    book.note_samples({"a": VmSample()}, T0)  # a sample without a figure is one
    assert book.view("a", K.MEMORY, T0).reading_at_ns == T0 and book.view("a", K.MEMORY, T0).in_force is None


def test_the_story_of_a_vm_keeps_its_newest() -> None:
    story = ledger("a").vms["a"].story
    for n in range(STORY_LENGTH + 5):
        story.append(Decision(at_ns=n, kind=K.MEMORY, verdict="done", origin="plan", from_value=None, to_value=None))
    assert [decision.at_ns for decision in story] == list(range(5, STORY_LENGTH + 5))


def test_rates_are_of_the_last_minute() -> None:
    book = ledger("a")
    book.begun("a", K.CPU_QUOTA, 1000, 1100, T0)
    assert book.view("a", K.CPU_QUOTA, T0 + MINUTE_NS - 1).vm_steps == 1 and book.view("a", K.CPU_QUOTA, T0 + MINUTE_NS).vm_steps == 0


def test_memory_that_was_never_read_counts_nothing_of_the_sum() -> None:
    book = ledger("a")
    assert book.view("a", K.MEMORY, T0).memory_sum_bytes == 2 * GIB
    book.hold("a", K.CPU_QUOTA, 1000, 1100)
    assert book.view("a", K.MEMORY, T0).memory_sum_bytes == 2 * GIB
    book.hold("a", K.DIMM, 0, GIB)
    assert book.view("a", K.MEMORY, T0).memory_sum_bytes == 3 * GIB
