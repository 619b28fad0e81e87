"""Shaping on real paths: what arrives under a ceiling, a guarantee and a priority, measured in datagrams. Needs root, no libvirt."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from agent.adapters import shaping_netlink
from agent.adapters.netlink_shaper import NetlinkShaper
from agent.adapters.shaping_tree import SHARED_IFB
from bench.shaping_lab import ShapingLab, kept, rates, run
from shared.model import Priority
from shared.plan import StepKind
from shared.units import MBIT, UNLIMITED

RX, TX = StepKind.NET_RX, StepKind.NET_TX
UPLINK = 20 * MBIT
pytestmark = pytest.mark.realhost


@pytest.fixture(scope="module")
def lab() -> Iterator[ShapingLab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        with ShapingLab(3) as lab:
            yield lab
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted: {error}")


@pytest.fixture
def shaper(lab: ShapingLab) -> Iterator[NetlinkShaper]:
    shaper = NetlinkShaper(lab.namespace(), UPLINK)
    yield shaper
    for i in range(lab.guests):
        lab.guest_sends(i, 0)
        shaper.release(lab.tap(i))
    shaper.close()


@pytest.mark.parametrize(("kind", "first", "second"), [(TX, 8, 3), (RX, 8, 12)])
def test_ceiling_holds_within_2_percent_and_changes_in_place(
    lab: ShapingLab, shaper: NetlinkShaper, kind: StepKind, first: int, second: int
) -> None:
    arrivals = lab.from_guest(0) if kind is TX else lab.to_guest(0)
    shaper.set_ceiling(lab.tap(0), kind, first * MBIT)
    (lab.guest_sends if kind is TX else lab.host_sends)(0, 25 * MBIT)
    assert kept([arrivals], [first * MBIT])[0] == pytest.approx(first * MBIT, rel=0.02)
    arrivals.longest_gap_s()
    shaper.set_ceiling(lab.tap(0), kind, second * MBIT)
    assert kept([arrivals], [second * MBIT])[0] == pytest.approx(second * MBIT, rel=0.02)
    assert arrivals.longest_gap_s() < 2, "traffic never stopped"
    assert (shaper.dropped_total(lab.tap(0), kind) or 0) > 0
    shaper.set_ceiling(lab.tap(0), kind, UNLIMITED)
    assert rates([arrivals], seconds=1)[0] > 20 * MBIT, "free again"


@pytest.mark.parametrize("bpf", [True, False])
def test_the_class_on_the_packet_and_the_entry_for_its_interface_each_suffice(
    lab: ShapingLab, shaper: NetlinkShaper, monkeypatch: pytest.MonkeyPatch, bpf: bool
) -> None:
    if not bpf:
        monkeypatch.setattr(shaping_netlink, "load_marking_program", lambda target: None)
    arrivals = [lab.from_guest(i) for i in range(2)]
    for i in range(2):
        shaper.set_ceiling(lab.tap(i), TX, (2 + 3 * i) * MBIT)
        lab.guest_sends(i, 15 * MBIT)
    shown = run(f"tc -n {lab.host} filter show dev {lab.tap(0)} parent ffff:")
    if bpf and " bpf " not in shown:
        pytest.skip("no bpf here")
    assert (" bpf " in shown) is bpf
    if bpf:
        run(f"tc -n {lab.host} filter del dev {SHARED_IFB} parent 7a10:")
    assert kept(arrivals, [2 * MBIT, 5 * MBIT]) == pytest.approx([2 * MBIT, 5 * MBIT], rel=0.02)


def test_guarantee_holds_within_2_percent_of_a_full_uplink(lab: ShapingLab, shaper: NetlinkShaper) -> None:
    """The other VM may take all that is left, by its priority: then the guaranteed one gets its guarantee, no more and no less."""
    arrivals = [lab.from_guest(i) for i in range(2)]
    shaper.assign(lab.tap(0), "a", Priority.LOW)
    shaper.assign(lab.tap(1), "b", Priority.HIGH)
    shaper.set_rate(lab.tap(0), 14 * MBIT)
    shaper.set_ceiling(lab.tap(1), TX, 30 * MBIT)
    for i in range(2):
        lab.guest_sends(i, 25 * MBIT)
    guaranteed, other = kept(arrivals, [14 * MBIT, 6 * MBIT])
    assert guaranteed == pytest.approx(14 * MBIT, rel=0.02)
    assert other == pytest.approx(6 * MBIT, rel=0.02), "the uplink is full and not more than full"
    lab.guest_sends(0, 0)
    assert kept(arrivals[1:], [UPLINK])[0] == pytest.approx(UPLINK, rel=0.02), "what nobody uses is lent"


def test_priority_decides_who_gets_what_is_left(lab: ShapingLab, shaper: NetlinkShaper) -> None:
    arrivals = [lab.from_guest(i) for i in range(2)]
    for i, priority in enumerate((Priority.LOW, Priority.CRITICAL)):
        shaper.assign(lab.tap(i), "a", priority)
        shaper.set_ceiling(lab.tap(i), TX, 30 * MBIT)
        lab.guest_sends(i, 25 * MBIT)
    low, critical = rates(arrivals)
    assert critical == pytest.approx(UPLINK * 0.999, rel=0.02)
    assert low == pytest.approx(UPLINK / 1000, rel=0.5), "its least share, about two datagrams a second"
    arrivals[1].longest_gap_s()
    shaper.assign(lab.tap(1), "a", Priority.LOW)
    low, equal = kept(arrivals, [UPLINK / 2, UPLINK / 2])
    assert arrivals[1].longest_gap_s() < 2, "traffic never stopped"
    assert low == pytest.approx(UPLINK / 2, rel=0.02)
    assert equal == pytest.approx(UPLINK / 2, rel=0.02)


def test_a_client_lends_to_its_own_vms_first(lab: ShapingLab, shaper: NetlinkShaper) -> None:
    """VM 0 is guaranteed 10 and sends 2: its 8 go to its sibling 1 before the stranger 2 sees any. Without clients both would get 9.

    Of the 10 that are left beyond that each gets a part; HTB does not say how large.
    """
    arrivals = [lab.from_guest(i) for i in range(3)]
    for i, client in enumerate(("a", "a", "b")):
        shaper.assign(lab.tap(i), client, Priority.NORMAL)
        shaper.set_ceiling(lab.tap(i), TX, 30 * MBIT)
    shaper.set_rate(lab.tap(0), 10 * MBIT)
    for i, mbit in enumerate((2, 25, 25)):
        lab.guest_sends(i, mbit * MBIT)
    owner, sibling, stranger = rates(arrivals)
    assert owner == pytest.approx(2 * MBIT, rel=0.03)
    assert sibling > 9.8 * MBIT
    assert stranger < 8.3 * MBIT
    assert owner + sibling + stranger == pytest.approx(UPLINK, rel=0.02)


def test_a_guest_that_forges_its_address_stays_in_its_class(lab: ShapingLab, shaper: NetlinkShaper) -> None:
    run(f"ip -n {lab.host}g0 link set eth0 down")
    stolen = run(f"ip -n {lab.host}g1 -br link show eth0").split()[2]
    honest = run(f"ip -n {lab.host}g0 -br link show eth0").split()[2]
    run(f"ip -n {lab.host}g0 link set eth0 address {stolen} up")
    try:
        arrivals = lab.from_guest(0)
        shaper.set_ceiling(lab.tap(0), TX, 2 * MBIT)
        shaper.set_ceiling(lab.tap(1), TX, 10 * MBIT)
        lab.guest_sends(0, 15 * MBIT)
        assert kept([arrivals], [2 * MBIT])[0] == pytest.approx(2 * MBIT, rel=0.02)
        assert shaper.dropped_total(lab.tap(1), TX) == 0
    finally:
        lab.guest_sends(0, 0)
        run(f"ip -n {lab.host}g0 link set eth0 address {honest}")
