"""NetlinkShaper against the kernel: the contract, and what only it has (foreign qdiscs, sweeping, one dump). Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from memory_shaper import MemoryShaper
from shaper_contract import RX, TX, ShaperContract

from agent.adapters import shaping_netlink
from agent.adapters.netlink_shaper import NetlinkShaper
from agent.adapters.shaping_rates import client_handle
from agent.adapters.shaping_tree import SHARED_IFB
from agent.sampling.sampler import ShapingReading
from shared.errors import HostError, Refusal
from shared.model import Priority
from shared.refusal import RefusalCode
from shared.units import MBIT, UNLIMITED

TAP, OTHER = "tap-shaped", "tap-beside"


def classes(namespace: str) -> dict[str, str]:
    """Class of the shared device -> what tc says of it."""
    shown = run(f"tc -n {namespace} class show dev {SHARED_IFB}")
    return {line.split()[2]: line.split(None, 3)[3] for line in shown.splitlines()}


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


@pytest.fixture
def taps(namespace: str) -> Iterator[tuple[str, str]]:
    for name in (TAP, OTHER):
        run(f"ip -n {namespace} tuntap add mode tap {name}")
        run(f"ip -n {namespace} link set {name} up")
    yield TAP, OTHER
    left = run(f"ip -n {namespace} -o link")
    for name in (TAP, OTHER, SHARED_IFB):
        if f" {name}:" in left:
            run(f"ip -n {namespace} link del {name}")


class TestMemoryShaper(ShaperContract):
    @pytest.fixture
    def tap(self) -> str:
        return TAP

    @pytest.fixture
    def shaper(self, tap: str) -> MemoryShaper:
        return MemoryShaper({tap})


@pytest.mark.realhost
class TestNetlinkShaper(ShaperContract):
    @pytest.fixture
    def tap(self, taps: tuple[str, str]) -> str:
        return taps[0]

    @pytest.fixture
    def other(self, taps: tuple[str, str]) -> str:
        return taps[1]

    @pytest.fixture
    def shaper(self, namespace: str) -> Iterator[NetlinkShaper]:
        shaper = NetlinkShaper(f"/run/netns/{namespace}")
        yield shaper
        shaper.release(TAP)
        shaper.release(OTHER)
        shaper.close()

    def test_nothing_of_ours_is_left_after_release(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        before = run(f"tc -n {namespace} qdisc show"), run(f"ip -n {namespace} -o link").count("\n")
        shaper.set_ceiling(tap, RX, MBIT)
        shaper.set_ceiling(tap, TX, MBIT)
        assert SHARED_IFB in run(f"ip -n {namespace} -o link")
        shaper.release(tap)
        assert (run(f"tc -n {namespace} qdisc show"), run(f"ip -n {namespace} -o link").count("\n")) == before

    def test_a_new_process_finds_what_the_last_one_made(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        shaper.set_ceiling(tap, TX, 3 * MBIT)
        second = NetlinkShaper(f"/run/netns/{namespace}")
        assert second.ceiling(tap, TX) == 3 * MBIT
        second.set_ceiling(tap, TX, 4 * MBIT)
        second.close()
        idle = ShapingReading(ceiling_bits_per_s=4 * MBIT, rate_bits_per_s=0, dropped_total=0, overlimits_total=0, backlog_bytes=0)
        assert shaper.readings() == {(tap, TX): idle}

    @pytest.mark.parametrize(
        ("kind", "foreign"),
        [
            (RX, "qdisc add dev {tap} root handle 1: htb default 1"),
            (RX, "qdisc add dev {tap} root handle 8001: pfifo limit 10"),
            (TX, "qdisc add dev {tap} clsact"),
        ],
    )
    def test_foreign_shaping_is_refused_and_left_alone(self, shaper: NetlinkShaper, tap: str, namespace: str, kind, foreign: str) -> None:
        run(f"tc -n {namespace} {foreign.format(tap=tap)}")
        before = run(f"tc -n {namespace} qdisc show dev {tap}")
        with pytest.raises(Refusal) as refusal:
            shaper.set_ceiling(tap, kind, MBIT)
        assert refusal.value.code is RefusalCode.FOREIGN_SHAPING
        assert shaper.foreign(tap, kind) is not None
        shaper.release(tap)
        assert run(f"tc -n {namespace} qdisc show dev {tap}") == before

    def test_foreign_filter_on_ingress_is_refused_and_left_alone(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        run(f"tc -n {namespace} qdisc add dev {tap} ingress")
        assert shaper.foreign(tap, TX) is None, "an empty ingress limits nothing"
        run(f"tc -n {namespace} filter add dev {tap} parent ffff: prio 5 protocol all u32 match u32 0 0 flowid 1:1")
        with pytest.raises(Refusal, match="not ours"):
            shaper.set_ceiling(tap, TX, MBIT)
        shaper.release(tap)
        assert "pref 5" in run(f"tc -n {namespace} filter show dev {tap} parent ffff:")

    def test_libvirts_noqueue_is_no_shaping(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        run(f"tc -n {namespace} qdisc add dev {tap} root handle 8003: noqueue")
        shaper.set_ceiling(tap, RX, MBIT)
        assert shaper.ceiling(tap, RX) == MBIT

    def test_half_made_shaping_is_completed(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        run(f"tc -n {namespace} qdisc add dev {tap} root handle 7a10: htb default 10")
        run(f"ip -n {namespace} link add {SHARED_IFB} type ifb")
        for kind in (RX, TX):
            assert shaper.ceiling(tap, kind) == UNLIMITED
            shaper.set_ceiling(tap, kind, MBIT)
            assert shaper.ceiling(tap, kind) == MBIT

    def test_tap_of_a_restarted_vm_is_not_taken_for_shaped(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
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
    def test_redirect_to_a_deleted_ifb_is_mended(self, shaper: NetlinkShaper, tap: str, namespace: str, again: int) -> None:
        shaper.set_ceiling(tap, TX, MBIT)
        run(f"ip -n {namespace} link del {SHARED_IFB}")
        assert shaper.ceiling(tap, TX) == UNLIMITED
        shaper.set_ceiling(tap, TX, again)
        assert shaper.ceiling(tap, TX) == again
        target = SHARED_IFB if again == MBIT else ""
        shown = run(f"tc -n {namespace} filter show dev {tap} parent ffff:") if target else run(f"tc -n {namespace} qdisc show dev {tap}")
        assert (f"Redirect to device {target}" in shown) if target else ("ingress" not in shown)

    def test_sweep_takes_what_no_tap_leads_to(self, shaper: NetlinkShaper, tap: str, other: str, namespace: str) -> None:
        shaper.set_ceiling(tap, TX, MBIT)
        shaper.assign(other, "acme", Priority.HIGH)
        shaper.set_ceiling(other, TX, MBIT)
        assert shaper.sweep() == ()
        run(f"ip -n {namespace} link del {other}")
        assert len(shaper.sweep()) == 2, "the class of the VM and that of its client"
        assert shaper.ceiling(tap, TX) == MBIT
        run(f"ip -n {namespace} link del {tap}")
        assert len(shaper.sweep()) == 2
        assert SHARED_IFB not in run(f"ip -n {namespace} -o link")

    def test_one_tree_holds_clients_and_their_vms(self, shaper: NetlinkShaper, tap: str, other: str, namespace: str) -> None:
        for name, priority, rate in ((tap, Priority.LOW, 30 * MBIT), (other, Priority.CRITICAL, 10 * MBIT)):
            shaper.assign(name, "acme", priority)
            shaper.set_ceiling(name, TX, 90 * MBIT)
            shaper.set_rate(name, rate)
        shown = classes(namespace)
        client = f"7a10:{client_handle('acme') & 0xFFFF:x}"
        assert shown["7a10:1"].startswith("root") and "rate 10Gbit ceil 10Gbit" in shown["7a10:1"]
        assert "parent 7a10:1 " in shown[client] and "rate 40Mbit ceil 10Gbit" in shown[client]
        assert f"parent {client}" in shown["7a10:1010"] and "prio 3" in shown["7a10:1010"] and "rate 30Mbit" in shown["7a10:1010"]
        assert f"parent {client}" in shown["7a10:1020"] and "prio 0" in shown["7a10:1020"] and "rate 10Mbit" in shown["7a10:1020"]
        shaper.assign(other, "acme", Priority.LOW)
        assert "prio 3" in classes(namespace)["7a10:1030"], "a new class: the kernel would not let a busy one go to another prio"
        shaper.assign(other, "umbrella", Priority.LOW)
        shown = classes(namespace)
        assert "rate 30Mbit" in shown[client], "what the other took with it is no longer this client's"
        assert "7a10:1030" not in shown and f"7a10:{client_handle('umbrella') & 0xFFFF:x}" in shown["7a10:1020"]
        shaper.set_rate(tap, 0)
        assert "rate 1Mbit ceil 90Mbit" in classes(namespace)["7a10:1010"], "the least share"
        shaper.release(tap)
        assert client not in classes(namespace)
        assert (shaper.rate(other), shaper.ceiling(other, TX)) == (10 * MBIT, 90 * MBIT)

    def test_a_new_process_keeps_client_and_priority(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        shaper.assign(tap, "acme", Priority.CRITICAL)
        shaper.set_rate(tap, 3 * MBIT)
        second = NetlinkShaper(f"/run/netns/{namespace}")
        second.set_ceiling(tap, TX, 4 * MBIT)
        second.close()
        shown = classes(namespace)["7a10:1010"]
        assert "prio 0" in shown and "rate 3Mbit ceil 4Mbit" in shown and f"parent 7a10:{client_handle('acme') & 0xFFFF:x}" in shown

    def test_another_uplink_is_taken_over_by_the_next_change(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        shaper.set_rate(tap, 3 * MBIT)
        narrow = NetlinkShaper(f"/run/netns/{namespace}", uplink_bits_per_s=20 * MBIT)
        narrow.set_ceiling(tap, TX, 8 * MBIT)
        assert "rate 20Mbit ceil 20Mbit" in classes(namespace)["7a10:1"]
        assert (narrow.rate(tap), narrow.ceiling(tap, TX)) == (3 * MBIT, 8 * MBIT)
        tiny = NetlinkShaper(f"/run/netns/{namespace}", uplink_bits_per_s=2 * MBIT)
        tiny.set_ceiling(tap, TX, 7 * MBIT)
        assert tiny.rate(tap) == 3 * MBIT, "what was promised stays"
        tiny.set_rate(tap, MBIT)
        with pytest.raises(Refusal):
            tiny.set_rate(tap, 3 * MBIT)
        tiny.close()
        narrow.set_rate(tap, 0)
        assert "rate 20Kbit" in classes(namespace)["7a10:1010"], "a thousandth of the uplink"
        assert narrow.rate(tap) == 0
        narrow.close()

    def test_missing_names_what_somebody_else_deleted(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        shaper.set_ceiling(tap, RX, MBIT)
        shaper.set_ceiling(tap, TX, MBIT)
        assert shaper.missing() == ()
        run(f"tc -n {namespace} qdisc del dev {tap} ingress")
        assert shaper.missing() == ((tap, TX),)
        run(f"tc -n {namespace} qdisc del dev {tap} root")
        assert shaper.missing() == ((tap, RX), (tap, TX))
        run(f"ip -n {namespace} link del {tap}")
        assert shaper.missing() == (), "without a tap there is nothing to shape"

    def test_a_filter_beside_ours_stays_when_ours_goes(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        shaper.set_ceiling(tap, TX, MBIT)
        run(f"tc -n {namespace} filter add dev {tap} parent ffff: prio 5 protocol all u32 match u32 0 0 flowid 1:1")
        assert shaper.foreign(tap, TX) is not None
        assert shaper.ceiling(tap, TX) == MBIT, "ours is still in force"
        shaper.release(tap)
        shown = run(f"tc -n {namespace} filter show dev {tap} parent ffff:")
        assert "pref 5 " in shown and "mirred" not in shown

    def test_the_leaf_is_the_best_that_the_kernel_has(self, shaper: NetlinkShaper, tap: str, namespace: str) -> None:
        shaper.set_ceiling(tap, RX, 100 * MBIT)
        shaper.set_ceiling(tap, TX, 100 * MBIT)
        probe = subprocess.run(f"tc -n {namespace} qdisc add dev lo root fq_codel".split(), capture_output=True, check=False)
        expected = ("pfifo ", "limit 825p") if probe.returncode else ("fq_codel ",)
        for device, parent in ((tap, "7a10:10"), (SHARED_IFB, "7a10:1010")):
            leaf = next(line for line in run(f"tc -n {namespace} qdisc show dev {device}").splitlines() if f"parent {parent} " in line)
            assert all(text in leaf for text in expected)

    def test_who_finds_the_other_kind_of_redirect_keeps_it(
        self, shaper: NetlinkShaper, tap: str, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = shaping_netlink.load_marking_program
        for first, then in ((load, lambda target: None), (lambda target: None, load)):
            monkeypatch.setattr(shaping_netlink, "load_marking_program", first)
            shaper.set_ceiling(tap, TX, 2 * MBIT)
            before = run(f"tc -n {namespace} filter show dev {tap} parent ffff:")
            monkeypatch.setattr(shaping_netlink, "load_marking_program", then)
            shaper.set_ceiling(tap, TX, 3 * MBIT)
            assert run(f"tc -n {namespace} filter show dev {tap} parent ffff:") == before
            assert shaper.readings()[tap, TX].ceiling_bits_per_s == 3 * MBIT
            shaper.release(tap)
            assert "ingress" not in run(f"tc -n {namespace} qdisc show dev {tap}")


@pytest.mark.realhost
class TestWhereBpfIsNotAllowed(ShaperContract):
    @pytest.fixture(autouse=True)
    def no_bpf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shaping_netlink, "load_marking_program", lambda target: None)

    @pytest.fixture
    def tap(self, taps: tuple[str, str]) -> str:
        return taps[0]

    @pytest.fixture
    def shaper(self, namespace: str) -> Iterator[NetlinkShaper]:
        shaper = NetlinkShaper(f"/run/netns/{namespace}")
        yield shaper
        shaper.release(TAP)
        shaper.close()


@pytest.mark.realhost
class TestKilledChanges:
    """Killed after any number of netlink requests, the next process finds nothing or a whole class, and can go on."""

    @pytest.mark.parametrize(
        "change", ["set_ceiling(TAP, TX, 2_000_000)", "set_ceiling(TAP, RX, 2_000_000)", "release(TAP)", "assign(TAP, 'b', 0)"]
    )
    def test_every_place(self, namespace: str, taps: tuple[str, str], change: str) -> None:
        tap = taps[0]
        begun = change.startswith(("release", "assign"))
        for count in range(1, 20):
            shaper = NetlinkShaper(f"/run/netns/{namespace}")
            shaper.release(tap)
            if begun:
                shaper.set_ceiling(tap, TX, 3 * MBIT)
            code = KILLED.format(netns=namespace, tap=tap, change=change)
            ended = subprocess.run(
                [sys.executable, "-c", code], env=os.environ | {"TIDEGATE_FAILPOINT": f"shaper.between:{count}"}, check=False
            )
            found = shaper.ceiling(tap, RX if "RX" in change else TX)
            allowed = {UNLIMITED, 2 * MBIT} if not begun else {3 * MBIT} if "assign" in change else {3 * MBIT, UNLIMITED}
            assert found in allowed, f"killed at the {count}th place"
            shaper.sweep()
            shaper.set_ceiling(tap, TX, 4 * MBIT)
            assert shaper.ceiling(tap, TX) == 4 * MBIT
            assert len([name for name in classes(namespace) if len(name) == 9 and name.startswith("7a10:1")]) == 1
            shaper.release(tap)
            assert shaper.readings() == {}
            assert "7a10" not in run(f"tc -n {namespace} qdisc show")
            shaper.close()
            if ended.returncode == 0:
                break
            assert ended.returncode == -9
        assert count > 1, "no place was ever passed"


KILLED = """
from agent.adapters.netlink_shaper import NetlinkShaper
from shared.plan import StepKind
RX, TX, TAP = StepKind.NET_RX, StepKind.NET_TX, {tap!r}
NetlinkShaper("/run/netns/{netns}").{change}
"""


def test_a_namespace_that_does_not_exist_is_named() -> None:
    with pytest.raises(HostError, match="/run/netns/none-such"):
        NetlinkShaper("/run/netns/none-such")
