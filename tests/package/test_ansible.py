"""Both roles, run for real against a folder of this machine: what they put there, and that a second run changes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import AGENT_PREFIX, COORDINATOR_PREFIX, AgentConfig, CoordinatorConfig, load
from shared.model import Mode

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "deploy" / "ansible"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
BOTH = ("tidegate_coordinators", "tidegate_agents")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the coordinator brings more than a gigabyte


def play(
    base: Path, wheel: Path, groups: tuple[str, ...] = ("tidegate_coordinators", "tidegate_agents"), **changes: object
) -> tuple[str, int, int]:
    """Run the site playbook against `base`/root: (output, tasks changed, tasks failed)."""
    tls = {name: str(base / f"{name}-source.pem") for name in ("ca", "certificate", "key")}
    for path in tls.values():
        Path(path).write_text(f"PEM of {path}\n")
    given = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "tidegate_become": False,
        "tidegate_root": str(base / "root"),
        "tidegate_python": sys.executable,
        "tidegate_manage_service": False,
        "tidegate_manage_owner": False,
        "tidegate_wheel": str(wheel),
        "tidegate_agent_libvirt": "none",
        "tidegate_agent_tls": tls,
        "tidegate_agent_settings": {
            "host_id": "kvm-7",
            "coordinator_urls": ["wss://tidegate.example:7443"],
            "network_namespace": "/run/netns/taps",
            "guard": {"step_timeout_s": 45},
        },
        "tidegate_coordinator_tls": tls,
        "tidegate_coordinator_settings": {"ray": False, "sizing": {"shrink_evidence_buckets": 4, "size_quantile": {
            "low": 0.75, "normal": 0.9, "high": 0.95, "critical": 0.99}}},
        **changes,
    }  # fmt: skip
    inventory = base / "inventory.json"
    inventory.write_text(json.dumps({group: {"hosts": {"localhost": None}} for group in groups}))
    done = subprocess.run(
        [str(PLAYBOOK), "-i", str(inventory), "-e", json.dumps(given), str(ANSIBLE / "playbooks" / "site.yml")],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_HOME": str(base / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
            "PIP_NO_COMPILE": "1",  # half of the time of a large installation
        },
    )
    recap = re.search(r"changed=(\d+) .*failed=(\d+)", done.stdout)
    assert recap, done.stdout + done.stderr
    return done.stdout, int(recap[1]), int(recap[2])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ansible")
    yield folder
    shutil.rmtree(folder / "root" / "opt", ignore_errors=True)  # more than a gigabyte, of no use to who reads a failure


@pytest.fixture(scope="module")
def root(base: Path, wheel: Path) -> Path:
    """The root folder after the first run."""
    output, changed, failed = play(base, wheel)
    assert failed == 0, output
    assert changed > 0
    return base / "root"


def test_programs_are_installed(root: Path) -> None:
    for program in ("opt/tidegate-agent/bin/tidegate-agent", "opt/tidegate/bin/tidegate"):
        done = subprocess.run([str(root / program), "--help"], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "run" in done.stdout


def test_configurations_are_valid_and_hold_what_was_asked(root: Path) -> None:
    agent = load(root / "etc/tidegate-agent/agent.toml", AgentConfig, {}, AGENT_PREFIX)
    assert agent.default_mode is Mode.OBSERVE
    assert (agent.host_id, agent.guard.step_timeout_s) == ("kvm-7", 45)
    assert agent.state_dir == str(root / "var/lib/tidegate-agent")
    assert agent.tls.key == str(root / "etc/tidegate-agent/key.pem")
    coordinator = load(root / "etc/tidegate/coordinator.toml", CoordinatorConfig, {}, COORDINATOR_PREFIX)
    assert (coordinator.ray, coordinator.sizing.shrink_evidence_buckets, coordinator.sizing.size_quantile.low) == (False, 4, 0.75)
    assert coordinator.listen_http.host == "127.0.0.1"


@pytest.mark.parametrize("folder", ["etc/tidegate-agent", "etc/tidegate"])
def test_nobody_else_reads_keys_and_configuration(root: Path, folder: str) -> None:
    files = list((root / folder).iterdir())
    assert {path.name for path in files} >= {"ca.pem", "certificate.pem", "key.pem"}
    assert (root / folder / "key.pem").read_text().endswith("key-source.pem\n")
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((root / folder).stat().st_mode) == 0o700


@pytest.mark.parametrize(("unit", "command"), [("tidegate-agent.service", "tidegate-agent"), ("tidegate.service", "tidegate")])
def test_units_start_what_was_installed(root: Path, unit: str, command: str) -> None:
    text = (root / "etc/systemd/system" / unit).read_text()
    program, *arguments = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1].split()  # type: ignore[index]
    assert Path(program) == root / "opt" / command / "bin" / command
    assert arguments[:2] == ["run", "--config"]
    assert Path(arguments[2]).is_relative_to(root)
    assert Path(arguments[2]).is_file()
    for line in ("Type=notify", "NoNewPrivileges=yes", "ProtectSystem=strict", "WatchdogSec=", "CapabilityBoundingSet="):
        assert f"\n{line}" in text


def test_manual_page_and_completion_are_installed(root: Path) -> None:
    assert (root / "usr/local/share/man/man8/tidegate-agent.8").read_text().startswith(".TH TIDEGATE\\-AGENT 8")
    assert "_TIDEGATE_AGENT_COMPLETE=bash_complete" in (root / "etc/bash_completion.d/tidegate-agent").read_text()


def test_the_agent_s_sandbox_allows_what_it_does(root: Path) -> None:
    text = (root / "etc/systemd/system/tidegate-agent.service").read_text()
    for line in (
        "ExecReload=/bin/kill -HUP $MAINPID",
        "RestartPreventExitStatus=2 78",
        "CapabilityBoundingSet=CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
        "SystemCallFilter=@system-service bpf perf_event_open",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    ):
        assert f"\n{line}\n" in text


def test_namespace_drop_in_comes_with_the_setting(root: Path) -> None:
    assert "CAP_SYS_ADMIN" in (root / "etc/systemd/system/tidegate-agent.service.d/namespace.conf").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("unit", ["tidegate-agent.service", "tidegate.service"])
def test_systemd_understands_the_units(root: Path, unit: str) -> None:
    path = root / "etc/systemd/system" / unit
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)], check=False, capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if str(path) in line or unit in line] == []


def test_second_run_changes_nothing(root: Path, base: Path, wheel: Path) -> None:
    output, changed, failed = play(base, wheel)
    assert (changed, failed) == (0, 0), output


def test_a_wrong_setting_never_replaces_a_good_file(root: Path, base: Path, wheel: Path) -> None:
    path = root / "etc/tidegate-agent/agent.toml"
    before = path.read_text()
    output, _, failed = play(base, wheel, ("tidegate_agents",), tidegate_agent_settings={"samle_period_s": 5})
    assert failed == 1
    assert "sample_period_s" in output
    assert path.read_text() == before
