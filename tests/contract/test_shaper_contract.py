"""Pyroute2Shaper against the kernel: the contract, and what only it has (foreign qdiscs, sweeping, one dump). Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from shaper_contract import RX, TX, ShaperContract

from agent.adapters.pyroute2_shaper import LEAST_BITS_PER_S, Pyroute2Shaper, class_parameters, ifb_name
from agent.sampling.sampler import ShapingReading
from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode
from shared.units import GIB, MBIT, UNLIMITED

TAP = "tap-shaped"


def run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"tgs{os.getpid()}"
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        run(f"ip netns add {name}")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted: {error}")
    yield name
    run(f"ip netns del {name}")


@pytest.mark.realhost
class TestPyroute2Shaper(ShaperContract):
    @pytest.fixture
    def tap(self, namespace: str) -> Iterator[str]:
        run(f"ip -n {namespace} tuntap add mode tap {TAP}")
        run(f"ip -n {namespace} link set {TAP} up")
        yield TAP
        if TAP in run(f"ip -n {namespace} -o link"):
            run(f"ip -n {namespace} link del {TAP}")

    @pytest.fixture
    def shaper(self, namespace: str) -> Iterator[Pyroute2Shaper]:
        shaper = Pyroute2Shaper(f"/run/netns/{namespace}")
        yield shaper
        shaper.release(TAP)
        shaper.close()

    def test_nothing_of_ours_is_left_after_release(self, shaper: Pyroute2Shaper, tap: str, namespace: str) -> None:
        before = run(f"tc -n {namespace} qdisc show"), run(f"ip -n {namespace} -o link").count("\n")
        shaper.set_ceiling(tap, RX, MBIT)
        shaper.set_ceiling(tap, TX, MBIT)
        assert ifb_name(tap) in run(f"ip -n {namespace} -o link")
        shaper.release(tap)
        assert (run(f"tc -n {namespace} qdisc show"), run(f"ip -n {namespace} -o link").count("\n")) == before

    def test_a_new_process_finds_what_the_last_one_made(self, shaper: Pyroute2Shaper, tap: str, namespace: str) -> None:
        shaper.set_ceiling(tap, TX, 3 * MBIT)
        second = Pyroute2Shaper(f"/run/netns/{namespace}")
        assert second.ceiling(tap, TX) == 3 * MBIT
        second.set_ceiling(tap, TX, 4 * MBIT)
        second.close()
        assert shaper.readings() == {(tap, TX): ShapingReading(ceiling_bits_per_s=4 * MBIT, dropped_total=0)}

    @pytest.mark.parametrize(
        ("kind", "foreign"),
        [
            (RX, "qdisc add dev {tap} root handle 1: htb default 1"),
            (RX, "qdisc add dev {tap} root handle 8001: pfifo limit 10"),
            (TX, "qdisc add dev {tap} clsact"),
        ],
    )
    def test_foreign_shaping_is_refused_and_left_alone(self, shaper: Pyroute2Shaper, tap: str, namespace: str, kind, foreign: str) -> None:
        run(f"tc -n {namespace} {foreign.format(tap=tap)}")
        before = run(f"tc -n {namespace} qdisc show dev {tap}")
        with pytest.raises(Refusal) as refusal:
            shaper.set_ceiling(tap, kind, MBIT)
        assert refusal.value.code is RefusalCode.FOREIGN_SHAPING
        assert shaper.foreign(tap, kind) is not None
        shaper.release(tap)
        assert run(f"tc -n {namespace} qdisc show dev {tap}") == before

    def test_foreign_filter_on_ingress_is_refused_and_left_alone(self, shaper: Pyroute2Shaper, tap: str, namespace: str) -> None:
        run(f"tc -n {namespace} qdisc add dev {tap} ingress")
        assert shaper.foreign(tap, TX) is None, "an empty ingress limits nothing"
        run(f"tc -n {namespace} filter add dev {tap} parent ffff: prio 5 protocol all u32 match u32 0 0 flowid 1:1")
        with pytest.raises(Refusal, match="not ours"):
            shaper.set_ceiling(tap, TX, MBIT)
        shaper.release(tap)
        assert "pref 5" in run(f"tc -n {namespace} filter show dev {tap} parent ffff:")

    def test_libvirts_noqueue_is_no_shaping(self, shaper: Pyroute2Shaper, tap: str, namespace: str) -> None:
        run(f"tc -n {namespace} qdisc add dev {tap} root handle 8003: noqueue")
        shaper.set_ceiling(tap, RX, MBIT)
        assert shaper.ceiling(tap, RX) == MBIT

    def test_half_made_shaping_is_completed(self, shaper: Pyroute2Shaper, tap: str, namespace: str) -> None:
        run(f"tc -n {namespace} qdisc add dev {tap} root handle 7a10: htb default 10")
        run(f"ip -n {namespace} link add {ifb_name(tap)} type ifb")
        for kind in (RX, TX):
            assert shaper.ceiling(tap, kind) == UNLIMITED
            shaper.set_ceiling(tap, kind, MBIT)
            assert shaper.ceiling(tap, kind) == MBIT

    def test_tap_of_a_restarted_vm_is_not_taken_for_shaped(self, shaper: Pyroute2Shaper, tap: str, namespace: str) -> None:
        shaper.set_ceiling(tap, TX, MBIT)
        run(f"ip -n {namespace} link del {tap}")
        assert shaper.ceiling(tap, TX) == UNLIMITED
        run(f"ip -n {namespace} tuntap add mode tap {tap}")
        run(f"ip -n {namespace} link set {tap} up")
        assert shaper.ceiling(tap, TX) == UNLIMITED
        assert shaper.readings() == {}
        shaper.set_ceiling(tap, TX, 2 * MBIT)
        assert shaper.ceiling(tap, TX) == 2 * MBIT

    @pytest.mark.parametrize("again", [MBIT, UNLIMITED])
    def test_redirect_to_a_deleted_ifb_is_mended(self, shaper: Pyroute2Shaper, tap: str, namespace: str, again: int) -> None:
        shaper.set_ceiling(tap, TX, MBIT)
        run(f"ip -n {namespace} link del {ifb_name(tap)}")
        assert shaper.ceiling(tap, TX) == UNLIMITED
        shaper.set_ceiling(tap, TX, again)
        assert shaper.ceiling(tap, TX) == again
        target = ifb_name(tap) if again == MBIT else ""
        shown = run(f"tc -n {namespace} filter show dev {tap} parent ffff:") if target else run(f"tc -n {namespace} qdisc show dev {tap}")
        assert (f"Redirect to device {target}" in shown) if target else ("ingress" not in shown)

    def test_sweep_takes_only_our_orphans(self, shaper: Pyroute2Shaper, tap: str, namespace: str) -> None:
        shaper.set_ceiling(tap, TX, MBIT)
        run(f"ip -n {namespace} link add tgiforeign type ifb")
        assert shaper.sweep() == ()
        run(f"ip -n {namespace} link del {tap}")
        assert shaper.sweep() == (ifb_name(tap),)
        assert "tgiforeign" in run(f"ip -n {namespace} -o link")
        run(f"ip -n {namespace} link del tgiforeign")


def test_a_namespace_that_does_not_exist_is_named() -> None:
    with pytest.raises(HostError, match="/run/netns/none-such"):
        Pyroute2Shaper("/run/netns/none-such")


@pytest.mark.parametrize(("mbit", "burst", "quantum"), [(2, 15_000, 2_500), (100, 62_500, 60_000), (10_000, 6_250_000, 60_000)])
def test_class_parameters(mbit: int, burst: int, quantum: int) -> None:
    rate = mbit * MBIT // 8
    assert class_parameters(mbit * MBIT) == {"rate": rate, "ceil": rate, "burst": burst, "cburst": burst, "quantum": quantum}
    assert class_parameters(LEAST_BITS_PER_S)["rate"] == 1000
    assert class_parameters(GIB)["quantum"] <= 200_000


def test_ifb_name_fits_the_kernel() -> None:
    assert len(ifb_name("tap-" + "x" * 11)) == 13
    assert ifb_name("a") != ifb_name("b")
