"""The numbers of our traffic classes: bursts, turns, leaves, and that a class says what it was made for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.shaping_rates import (
    FIRST_CLIENT,
    FRAME,
    LEAST_BITS_PER_S,
    MOST_VMS,
    NO_CEILING,
    ROOT_HANDLE,
    alone,
    ceiling_of,
    client_handle,
    codel_target_us,
    fifo_limit,
    guarantee_of,
    least_share,
    node_of,
    of_client,
    of_vm,
    prio_of,
    priority_of,
    vm_handle,
)
from shared.model import Priority
from shared.units import MBIT, UNLIMITED

UPLINK = 10_000 * MBIT // 8


@pytest.mark.parametrize(
    ("mbit", "burst", "quantum"), [(2, 15_140, 1_514), (100, 62_500, 12_500), (560, 350_000, 70_000), (10_000, 6_250_000, 70_000)]
)
def test_a_lone_class(mbit: int, burst: int, quantum: int) -> None:
    setting, rate = alone(mbit * MBIT), mbit * MBIT // 8
    assert (setting.rate, setting.ceil, setting.burst, setting.cburst, setting.quantum) == (rate, rate, burst, burst, quantum)


@given(st.integers(LEAST_BITS_PER_S, 2**50))
def test_turns_never_make_the_kernel_warn(bits: int) -> None:
    for setting in (alone(bits), of_vm(bits, 0, Priority.LOW, UPLINK), of_client([bits // 8], bits // 8)):
        assert 1_000 <= setting.quantum <= 200_000
        assert min(setting.burst, setting.cburst) >= 10 * FRAME


@given(
    st.one_of(st.just(UNLIMITED), st.integers(LEAST_BITS_PER_S, NO_CEILING)),
    st.one_of(st.just(0), st.integers(LEAST_BITS_PER_S, 2**40)),
    st.sampled_from(Priority),
    st.integers(MBIT // 8, UPLINK * 10),
)
def test_a_class_says_what_it_was_made_for(ceiling: int, guarantee: int, priority: Priority, uplink: int) -> None:
    setting = of_vm(ceiling, guarantee, priority, uplink)
    assert ceiling_of(setting.ceil) == (ceiling if ceiling == UNLIMITED else ceiling // 8 * 8)
    assert guarantee_of(setting.rate, setting.quantum) == guarantee // 8 * 8
    assert priority_of(setting.prio) is priority


def test_who_goes_first() -> None:
    assert [prio_of(priority) for priority in Priority] == [3, 2, 1, 0]
    assert priority_of(7) is Priority.LOW, "the kernel knows eight"


@pytest.mark.parametrize(("uplink_mbit", "kbit"), [(10_000, 1_000), (1_000, 1_000), (100, 100), (20, 20), (1, 8)])
def test_least_share(uplink_mbit: int, kbit: int) -> None:
    assert least_share(uplink_mbit * MBIT // 8) * 8 == kbit * 1000


def test_least_share_stays_below_the_ceiling() -> None:
    assert of_vm(16_000, 0, Priority.NORMAL, UPLINK).rate == 2_000


def test_a_client_is_promised_what_its_vms_are() -> None:
    setting = of_client([5_000, 7_000], UPLINK)
    assert (setting.rate, setting.ceil) == (12_000, UPLINK)
    assert of_client([], UPLINK).rate == 1_000


@given(st.text(max_size=40))
def test_a_clients_class_is_no_vms(client: str) -> None:
    handle = client_handle(client)
    assert vm_handle(MOST_VMS) < FIRST_CLIENT <= handle < ROOT_HANDLE + 0xFFFF
    assert node_of(handle) is None
    assert handle == client_handle(client)


def test_leaves() -> None:
    assert [fifo_limit(mbit * MBIT // 8) for mbit in (2, 100, 1000)] == [50, 825, 1000]
    assert codel_target_us(MBIT // 8) == 18_168
    assert codel_target_us(100 * MBIT // 8) == 5_000


@given(st.integers(1, MOST_VMS))
def test_a_vms_class_and_its_entry(node: int) -> None:
    assert node_of(vm_handle(node)) == node
    assert vm_handle(node) & 0xF == 0, "an ordinary priority to queues that look at its lowest bits"
    assert node_of(vm_handle(node) + 1) is None
