"""What the ledger charges to the host: promises, what is in flight, and what a restart must count."""

from __future__ import annotations

import msgspec
import pytest
from ledger_scene import ALLOCATION, T0, K, S, domain, ledger

from agent.acting.levers import FIELDS, Promise
from shared.plan import StepKind
from shared.units import GIB, MIB, UNLIMITED


@pytest.mark.parametrize(
    ("promise", "known", "unknown", "limit"),
    [
        (Promise.CPU, 1000, 4000, 16_000),
        (Promise.MEMORY, 3 * GIB + GIB // 2, 11 * GIB, 60 * GIB),
        (Promise.NET_RX, 10**8, 10**9, 10**10),
        (Promise.NET_TX, 2 * 10**8, 10**9, 10**10),
        (Promise.NET_TX_RATE, 10**6, 10**9, 10**10),
    ],
)
def test_room_is_the_limit_less_what_every_vm_is_promised(promise: Promise, known: int, unknown: int, limit: int) -> None:
    assert ledger().room(promise) == limit - 2 * known
    assert ledger(read=False).room(promise) == limit - 2 * unknown
    assert ledger(domain("a"), domain("b", running=False)).room(promise) == limit - known


@pytest.mark.parametrize(
    ("kind", "promise", "before", "more", "less"),
    [
        (K.CPU_QUOTA, Promise.CPU, 1000, 1500, 800),
        (K.MEMORY, Promise.MEMORY, 2 * GIB, 3 * GIB, GIB),
        (K.VIRTIO_MEM, Promise.MEMORY, GIB, 2 * GIB, 0),
        (K.DIMM, Promise.MEMORY, GIB // 2, GIB, 0),
        (K.NET_RX, Promise.NET_RX, 10**8, 2 * 10**8, 10**7),
        (K.NET_TX_RATE, Promise.NET_TX_RATE, 10**6, 10**7, 0),
    ],
)
def test_in_flight_the_larger_of_both_values_is_charged(kind: StepKind, promise: Promise, before: int, more: int, less: int) -> None:
    book = ledger()
    room = book.room(promise)
    book.begun("a", kind, before, more, T0)
    assert book.room(promise) == room - (more - before)
    book.ended("a", kind, growth=True, failed=False, now_ns=T0)
    assert book.room(promise) == room  # not read back yet
    book.begun("a", kind, before, less, T0)
    assert book.room(promise) == room  # a shrink frees nothing before it is seen
    book.ended("a", kind, growth=False, failed=False, now_ns=T0)
    book.note_allocation("a", msgspec.structs.replace(ALLOCATION, **{FIELDS[kind][0]: less}), T0 + 1)
    assert book.room(promise) == room + before - less


def test_cpu_is_scarce_while_less_than_a_fifth_of_the_limit_is_left() -> None:
    book = ledger()  # 16,000 to promise
    book.note_samples({}, T0)
    situation = book.vms["a"].situation
    assert not situation.scarce
    for quota, scarce in ((5900, False), (7000, True), (5900, False)):
        for vm_id in "ab":
            book.note_allocation(vm_id, msgspec.structs.replace(ALLOCATION, cpu_quota_millicores=quota, vcpus=8), T0 + 1)
        book.note_samples({}, T0 + 5 * S)
        assert (K.CPU_QUOTA in situation.scarce) is scarce


def test_a_vcpu_on_its_way_out_frees_nothing_before_it_is_gone() -> None:
    book = ledger()
    free = msgspec.structs.replace(ALLOCATION, cpu_quota_millicores=UNLIMITED, vcpus=3)
    book.note_allocation("a", free, T0 + 1)
    room = book.room(Promise.CPU)
    book.begun("a", K.VCPUS, 3, 1, T0)
    assert book.vms["a"].vcpus == 3 and book.room(Promise.CPU) == room
    book.ended("a", K.VCPUS, growth=False, failed=True, now_ns=T0)
    assert book.room(Promise.CPU) == room
    book.note_allocation("a", msgspec.structs.replace(free, vcpus=1), T0 + 2)
    assert book.room(Promise.CPU) == room + 2000
    book.begun("a", K.VCPUS, 1, 4, T0)
    assert book.vms["a"].vcpus == 4 and book.room(Promise.CPU) == room - 1000


def test_vcpus_need_room_only_where_the_quota_is_not_what_is_promised() -> None:
    book = ledger()
    assert book.view("a", K.VCPUS, T0).room is None
    assert book.view("a", K.CPU_QUOTA, T0).room == 14_000
    book.hold("a", K.CPU_QUOTA, 1000, UNLIMITED)
    assert book.view("a", K.VCPUS, T0).room == 13_000
    book.note_allocation("b", msgspec.structs.replace(ALLOCATION, cpu_quota_millicores=UNLIMITED), T0 + 1)
    assert book.view("b", K.VCPUS, T0).room == 12_000
    assert book.view("b", K.CPU_SHARES, T0).room is None and book.view("b", K.DISK_BYTES, T0).room is None


def test_the_sum_before_a_restart_is_at_least_what_was_cut_from() -> None:
    book = ledger(read=False)
    book.restore_change("a", K.MEMORY, 5 * GIB, 4 * GIB, T0)
    assert book.view("a", K.MEMORY, T0 + S).memory_peak == (T0, 5 * GIB)


def test_the_sum_before_a_restart_counts_the_devices() -> None:
    book = ledger(read=False)
    book.restore_change("a", K.MEMORY, 5 * GIB, 4 * GIB, T0, memory_bytes=7 * GIB)
    assert book.view("a", K.MEMORY, T0 + S).memory_peak == (T0, 7 * GIB)


def test_a_growth_is_charged_whole_when_its_last_percent_is_still_to_come() -> None:
    book = ledger()
    asked, shown = 4 * GIB, 4 * GIB - 40 * MIB  # what counts as shown
    before = book.room(Promise.MEMORY)

    def shows(value: int, at_ns: int) -> int:
        book.note_allocation("a", msgspec.structs.replace(ALLOCATION, memory_bytes=value), at_ns)
        return before - book.room(Promise.MEMORY)

    book.begun("a", K.MEMORY, 2 * GIB, asked, T0)
    shows(shown, T0 + S)
    book.ended("a", K.MEMORY, growth=True, failed=False, now_ns=T0 + S)
    assert before - book.room(Promise.MEMORY) == 2 * GIB
    assert shows(asked, T0 + 2 * S) == 2 * GIB
    assert shows(3 * GIB, T0 + 3 * S) == GIB  # somebody took it back: it is not owed any more
    assert shows(shown, T0 + 4 * S) == 2 * GIB
    book.begun("a", K.MEMORY, shown, 3 * GIB, T0 + 5 * S)  # the next step is what counts
    shows(3 * GIB, T0 + 6 * S)
    book.ended("a", K.MEMORY, growth=False, failed=False, now_ns=T0 + 6 * S)
    assert before - book.room(Promise.MEMORY) == GIB
    assert shows(shown, T0 + 7 * S) == 2 * GIB - 40 * MIB


def test_unlimited_values_count_for_what_there_is() -> None:
    book = ledger(read=False)
    book.began_with("a", K.CPU_QUOTA, UNLIMITED)
    book.note_allocation("a", ALLOCATION, T0)
    assert book.view("a", K.CPU_QUOTA, T0).budget_base == 4000  # all of its vCPUs: none had been counted yet
    room = book.room(Promise.NET_RX)
    book.hold("a", K.NET_RX, 10**8, UNLIMITED)
    assert book.room(Promise.NET_RX) == room - 9 * 10**8
