"""What an operator sees on a real libvirt host, and a guest that reboots under the agent: `tidegate-agent run` as a process.

The guest's balloon stands below its maximum and its quota is small. When it reboots inside its QEMU, the balloon jumps to full and its
driver fills it again: nobody's change, so the agent goes on at once, and gives the booting guest the CPU that it asks for.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_host import Guest, RealHost, wait_for

from shared.control import ask
from shared.units import MIB

pytestmark = [pytest.mark.realhost, pytest.mark.slow, pytest.mark.timeout(300)]

NAME, ADDRESS = "shown", "10.77.40.2/24"
MEMORY_MIB, MEMORY_MAX_MIB = 112, 160
QUOTA_US = 50_000  # of 100,000
FEW_SAMPLES_S = 60.0  # and steps, on a machine that may give the process an eighth of a core


class Program:
    """The agent's process, and its commands on it."""

    def __init__(self, host: RealHost, folder: Path) -> None:
        self.socket, self.config = host.directory / "operator.sock", folder / "agent.toml"
        settings = {
            "host_id": "operator-1",
            "state_dir": str(folder / "state"),
            "socket_path": str(self.socket),
            "pause_file": str(folder / "PAUSE"),
            "libvirt_uri": host.uri,
            "network_namespace": host.netns,
            "default_mode": "reactive",
            "sample_period_s": 1,
        }
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        self.config.write_text(text + "[sampling]\nstarved_permille = 1000\n")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            command = self._command("run", "--config", str(self.config))
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-c", "from agent.cli import main; main()", *arguments]

    def run(self, *arguments: str, code: int = 0) -> str:
        """Standard output of one command."""
        environment = os.environ | {"COLUMNS": "160"}
        command = self._command(*arguments, "--config", str(self.config))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def vm(self) -> dict[str, Any]:
        """The newest figures of the only VM; empty before there are any."""
        rows = ask(self.socket, "vms") if self.socket.exists() else []
        return rows[0] if rows and rows[0].get("cpu_used_millicores") is not None else {}

    def history(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(self.socket, "history")["history"]
        return found

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-2000:]


@pytest.fixture(scope="module")
def guest(real_host: RealHost) -> Iterator[Guest]:
    """One that may reboot, with less memory than its maximum."""
    xml = real_host.domain_xml(NAME, memory_mib=MEMORY_MIB, memory_max_mib=MEMORY_MAX_MIB, ip=ADDRESS)
    guest = Guest(real_host, NAME, xml.replace("<on_reboot>destroy<", "<on_reboot>restart<"), ADDRESS)
    real_host.guests.append(guest)
    real_host.connect_tap(guest.tap, guest.host_address)
    guest.wait_until_up()
    guest.domain.setSchedulerParametersFlags({"vcpu_quota": QUOTA_US}, real_host.libvirt.VIR_DOMAIN_AFFECT_LIVE)
    wait_for(lambda: guest.domain.memoryStats()["actual"] <= (MEMORY_MIB + 1) * 1024, "the balloon to be where it was defined")
    yield guest
    guest.close()


@pytest.fixture(scope="class")
def program(real_host: RealHost, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(real_host, tmp_path_factory.mktemp("operator"))
    wait_for(lambda: program.process.poll() is not None or program.vm(), "the first complete sample", 60)
    assert program.process.poll() is None, program.log.read_text()[-2000:]
    # libvirt shows the defined size from the start, and what QEMU has of it only as the guest fills its balloon
    wait_for(lambda: program.vm().get("memory_allocated_bytes", 0) <= (MEMORY_MIB + 1) * MIB, "a sample of the balloon at rest", 60)
    yield program
    program.close()


class TestTheOnlyHand:
    """Nobody else touches the guest's limits."""

    def test_every_view_shows_the_guest(self, program: Program, guest: Guest) -> None:
        def settled() -> bool:
            """A test that reboots the guest may have come first: a sample shows its own figures and the balloon where libvirt has it."""
            newest = program.vm()
            return bool(newest.get("memory_used_bytes")) and newest["memory_allocated_bytes"] == guest.domain.memoryStats()["actual"] * 1024

        wait_for(settled, "the guest's own memory figures", FEW_SAMPLES_S)
        status = dict(line.split(": ", 1) for line in program.run("status").splitlines())
        assert (status["hypervisor"], status["vms"], status["sampling_failures"], status["settings_error"]) == ("libvirt", "1", "-", "-")
        # the agent acts: what libvirt says is what must be shown
        vcpus = guest.domain.info()[3]
        quota = f"{guest.domain.schedulerParameters()['vcpu_quota'] * vcpus / 100_000:.2f}"
        memory = f"{guest.domain.memoryStats()['actual'] // 1024}M"
        (_, row) = program.run("vms").splitlines()
        cells = re.split(r" {2,}", row)
        assert cells[:4] == [guest.vm_id, NAME, str(vcpus), quota] and cells[5] == memory and cells[6].endswith("M"), row
        assert cells[7] == "running" and "vcpu_unplug" in cells[8]
        *_, header, shown = program.run("top", "--once").splitlines()
        seen = dict(zip(header.replace("PSI c/m/i", "PSI").split(), shown.split(), strict=False))
        assert (seen["NAME"], seen["QUOTA"], seen["MEM"]) == (NAME, quota, memory) and float(seen["CPU"]) >= 0, shown
        able = {line.split()[0]: line.split()[1] for line in program.run("caps", NAME).splitlines()[1:]}
        assert able["balloon"] == able["cpu_quota"] == able["shape_rx"] == "yes" and able["guest_agent"] == "no"
        decided = {entry["vm_id"] for entry in program.history()}
        assert decided == {guest.vm_id} if decided else program.run("history") == "nothing was decided yet\n"

    def test_doctor_finds_nothing_wrong_with_this_host(self, program: Program) -> None:
        """Exit code 0. What it warns of is this machine's: no hardware counters, perhaps no fq_codel; each says what to do or why not."""
        report = json.loads(program.run("doctor", "--json"))
        levels: dict[str, set[str]] = {}
        for finding in report["findings"]:
            levels.setdefault(finding["check"], set()).add(finding["level"])
        assert report["healthy"] and all(
            levels[check] == {"ok"} for check in ("config", "kernel", "psi", "cgroup", "libvirt", "agent", "state")
        )
        assert levels.keys() >= {"shaping", "perf", "journal", "pause"}
        says = " ".join(finding["says"] for finding in report["findings"])
        assert "1 domain" in says and "1 domains" not in says

    def test_the_agent_costs_next_to_nothing_beside_a_real_guest(self, program: Program) -> None:
        """Per round, because these tests sample every second: 1 % of a core at the default period of 5 s is 50 ms a round."""
        process, first = psutil.Process(program.process.pid), ask(program.socket, "status")["sampling_rounds"]
        before = process.cpu_times()
        with pytest.raises(subprocess.TimeoutExpired):
            program.process.wait(15)  # it goes on, and nobody asks it anything meanwhile
        after, rounds = process.cpu_times(), ask(program.socket, "status")["sampling_rounds"] - first
        spent_s = after.user + after.system - before.user - before.system
        assert rounds >= 8
        assert spent_s / rounds <= 0.05
        assert process.memory_info().rss <= 64 * MIB

    def test_the_dirty_rate_is_measured_on_request(self, program: Program) -> None:
        assert program.run("dirty-rate", NAME, "--last") == f"{NAME}: never measured\n"
        assert re.fullmatch(rf"{NAME}: \d+\.\d MB/s, measured \d+ s ago\n", program.run("dirty-rate", NAME))

    def test_a_guest_that_reboots_is_gone_on_with_at_once(self, program: Program, guest: Guest) -> None:
        """The balloon is full while the driver fills it, which libvirt shows for a second at least: two boots to see it in."""
        assert program.vm()["memory_allocated_bytes"] <= (MEMORY_MIB + 1) * MIB
        for boots in (2, 3, 4):
            guest.sh("(sleep 1; reboot -f) > /dev/null 2>&1 &")
            guest.hang_up()
            shown = {0}

            def filled_again(boots: int = boots, shown: set[int] = shown) -> bool:
                shown.add(program.vm().get("memory_allocated_bytes") or 0)
                up = guest.console.read_bytes().count(b"TIDEGATE-GUEST-UP") == boots
                return up and program.vm()["memory_allocated_bytes"] <= (MEMORY_MIB + 1) * MIB

            wait_for(filled_again, "the guest to be up again and its balloon filled", 120)
            if max(shown) > (MEMORY_MIB + 10) * MIB:
                break
        else:
            pytest.fail("no sample ever showed the full balloon")
        assert "guest_rebooted" in program.log.read_text()

        def grown() -> bool:
            return any(line["kind"] == "cpu_quota" and line["verdict"] == "verified" for line in program.history())

        guest.cpu(900)
        wait_for(grown, "the quota to grow", FEW_SAMPLES_S)
        assert not [line for line in program.history() if line["verdict"] == "foreign"]
        assert ask(program.socket, "status")["vms_yielded"] == 0


class TestSomebodyElse:
    """An agent of its own: what it yields stays yielded for long."""

    def test_a_disk_weight_that_somebody_changes_is_seen_in_the_next_samples(self, program: Program, guest: Guest) -> None:
        """libvirt has no event for it."""
        rounds = ask(program.socket, "status")["sampling_rounds"]
        guest.domain.setBlkioParameters({"weight": 300}, guest.host.libvirt.VIR_DOMAIN_AFFECT_LIVE)

        def foreign() -> list[tuple[int, int]]:
            return [(line["from_value"], line["to_value"]) for line in program.history() if line["verdict"] == "foreign"]

        assert wait_for(foreign, "the change to be seen", FEW_SAMPLES_S) == [(100, 300)]
        assert ask(program.socket, "status")["sampling_rounds"] <= rounds + 5  # one, and what passes between two questions
        assert "left to somebody else" in program.run("vms")
