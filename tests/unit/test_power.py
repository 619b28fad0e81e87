"""Power switches: magic packets on a real socket, real programs without a shell, secrets that nobody sees."""

from __future__ import annotations

import asyncio
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from coordinator.power import CommandSwitch, SimulatedSwitch, WakeOnLanSwitch, open_power
from coordinator.power.wake_on_lan import magic_packet
from shared.config import PowerConfig
from shared.errors import ConfigError, HostError

MAC = "52:54:00:Ab:34:56"
SECRET = "correct horse"


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def test_a_magic_packet_arrives_on_a_real_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(5)
        switch = WakeOnLanSwitch({"h1": MAC}, broadcast="127.0.0.1", port=listener.getsockname()[1])
        asyncio.run(switch.wake("h1"))
        received = {listener.recv(1024) for _ in range(3)}
    assert received == {b"\xff" * 6 + bytes([0x52, 0x54, 0x00, 0xAB, 0x34, 0x56]) * 16}


@pytest.mark.parametrize("mac", ["", "52:54:00:12:34", "52:54:00:12:34:5g", "525400123456", "52:54:00:12:34:56:78"])
def test_what_is_no_mac(mac: str) -> None:
    with pytest.raises(ConfigError, match=r"power\.macs"):
        magic_packet(mac)


def test_a_packet_that_cannot_be_sent_is_told() -> None:
    with pytest.raises(HostError, match=r"magic packet to 256\.0\.0\.1"):
        asyncio.run(WakeOnLanSwitch({"h1": MAC}, broadcast="256.0.0.1").wake("h1"))
    with pytest.raises(HostError, match=r"not among power\.macs"):
        asyncio.run(WakeOnLanSwitch({"h1": MAC}).wake("h2"))


def test_wake_on_lan_sleeps_by_its_command() -> None:
    sleeper = CommandSwitch(python("pass"), (), {})
    assert WakeOnLanSwitch({"h1": MAC}).cannot("h1") == "power.sleep_command is not set"
    both = WakeOnLanSwitch({"h1": MAC}, sleeper)
    assert both.cannot("h1") is None
    assert both.cannot("h2") == "h2 is not among power.macs"
    asyncio.run(both.sleep("h1"))
    with pytest.raises(HostError, match="puts nobody to sleep"):
        asyncio.run(WakeOnLanSwitch({"h1": MAC}).sleep("h1"))


def test_a_command_gets_its_words_and_no_shell(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(repr(sys.argv[2:]))"
    words = python(code, str(out), "power on {host}; rm -rf $HOME", "-H", "{address}", "`id`")
    switch = CommandSwitch((), words, {"h1": "10.0.0.5"})
    asyncio.run(switch.wake("h1"))
    assert out.read_text() == repr(["power on h1; rm -rf $HOME", "-H", "10.0.0.5", "`id`"])
    assert switch.cannot("h1") == "power.sleep_command is not set"
    with pytest.raises(HostError, match=r"not among power\.addresses"):
        asyncio.run(switch.wake("h2"))


def test_a_command_that_fails_or_hangs_is_told_in_time() -> None:
    failing = CommandSwitch((), python("print('chassis is busy'); raise SystemExit(3)"), {})
    with pytest.raises(HostError, match=r"ended with 3: chassis is busy"):
        asyncio.run(failing.wake("h1"))
    hanging = CommandSwitch((), python("import time; time.sleep(600)"), {}, timeout_s=0.5)
    begun = time.monotonic()
    with pytest.raises(HostError, match=r"did not end within 0\.5 s"):
        asyncio.run(hanging.wake("h1"))
    assert time.monotonic() - begun < 30
    with pytest.raises(HostError, match="No such file"):
        asyncio.run(CommandSwitch((), ("/nowhere/ipmitool",), {}).wake("h1"))
    talking = CommandSwitch((), python("print('x' * 10_000_000)"), {})
    asyncio.run(talking.wake("h1"))  # a full pipe holds nobody up


def test_the_secret_goes_by_the_environment_and_is_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "secret", tmp_path / "out"
    file.write_text(SECRET + "\n")
    file.chmod(stat.S_IRUSR)
    monkeypatch.setenv("TIDEGATE_COORDINATOR_TOKEN", "ours")
    code = "import os, sys; open(sys.argv[1], 'w').write(repr(dict(os.environ))); print(os.environ['IPMI_PASSWORD']); sys.exit(1)"
    words = python(code, str(out))
    switch = CommandSwitch((), words, {}, secret_env="IPMI_PASSWORD", secret_file=str(file))
    with pytest.raises(HostError) as told:
        asyncio.run(switch.wake("h1"))
    assert SECRET not in str(told.value)
    assert "***" in str(told.value)
    given = out.read_text()
    assert f"'IPMI_PASSWORD': '{SECRET}'" in given
    assert "ours" not in given
    file.unlink()
    with pytest.raises(HostError, match="secret_file cannot be read: FileNotFoundError"):
        asyncio.run(switch.wake("h1"))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (PowerConfig(switch="command", wake_command=("x", "{mac}")), "power.wake_command: '{mac}': {mac} is not known"),
        (PowerConfig(switch="command", sleep_command=("x", "{")), "power.sleep_command: '{'"),
        (PowerConfig(switch="command", sleep_command=("{host}",)), "may not depend on the host"),
        (PowerConfig(switch="command", secret_env="X"), "both or none"),
        (PowerConfig(switch="command", addresses=("h1=a", "h1=b")), "power.addresses: h1 is named twice"),
        (PowerConfig(switch="wake_on_lan"), "power.macs: empty"),
        (PowerConfig(switch="wake_on_lan", macs=("h1=x",)), "power.macs: 'x'"),
    ],
)
def test_settings_that_are_wrong_are_named(config: PowerConfig, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_power(config)
    assert why in str(error.value)


def test_the_switch_of_the_settings() -> None:
    assert open_power(PowerConfig()) is None
    assert isinstance(open_power(PowerConfig(switch="simulated")), SimulatedSwitch)
    command = open_power(PowerConfig(switch="command", sleep_command=("a",), wake_command=("b", "{address}"), addresses=("h1=10.0.0.1",)))
    assert command is not None
    assert (command.cannot("h1"), command.cannot("h2")) == (None, "h2 is not among power.addresses")
    lan = open_power(PowerConfig(switch="wake_on_lan", macs=(f"h1={MAC}",), sleep_command=("a",)))
    assert lan is not None
    assert lan.cannot("h1") is None


def test_the_simulated_switch() -> None:
    told: list[tuple[str, bool]] = []
    switch = SimulatedSwitch(lambda host_id, wake: told.append((host_id, wake)))
    asyncio.run(switch.sleep("h1"))
    switch.broken.add("h1")
    with pytest.raises(HostError):
        asyncio.run(switch.wake("h1"))
    assert (told, switch.orders) == ([("h1", False)], [("h1", False), ("h1", True)])
    assert switch.cannot("h1") is None
