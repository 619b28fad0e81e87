"""What the operator's tools are made of: manual page, completion, top's screen, reload, pause file, bounded calls, doctor's checks."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from agent.cli import cli
from agent.cli.door import Door, table
from agent.cli.manual import EXIT_CODES, commands, manual_page
from agent.cli.top import screen
from agent.doctor.agent import certificates, journal, state
from agent.doctor.finding import Finding, Level
from agent.service import calls as calls_module
from agent.service.calls import ACTING_THREADS, THREAD_CAP, BoundedCalls
from agent.service.pausing import PauseFile
from agent.service.reloading import reload
from coordinator.pki import create_ca, issue_host
from shared.config import AgentConfig, GuardConfig, SamplingConfig, TlsConfig
from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode
from shared.units import GIB, UNLIMITED

# Manual and completion


def test_the_manual_names_every_command_option_and_exit_code() -> None:
    page = manual_page(cli, "tidegate-agent", "1.2.3").replace("\\-", "-")
    paths = [path for path, _ in commands(cli, "tidegate-agent")]
    assert {f"tidegate-agent {name}" for name in ("run", "top", "undo", "config check", "config show", "doctor", "man")} <= set(paths)
    for path, command in commands(cli, "tidegate-agent"):
        part = page.split(f'.SS "{path}', 1)[1].split("\n.S", 1)[0]
        for option in command.params:
            if option.param_type_name == "option":
                assert all(name in part for name in option.opts), (path, option.name)
    for code, _ in EXIT_CODES:
        assert f"\n.B {code}\n" in page


@pytest.mark.skipif(shutil.which("groff") is None and shutil.which("man") is None, reason="neither groff nor man is installed")
def test_groff_has_nothing_to_say(tmp_path: Path) -> None:
    page = tmp_path / "tidegate-agent.8"
    page.write_text(manual_page(cli, "tidegate-agent", "1.2.3"))
    command = ["groff", "-man", "-Tutf8", "-ww", str(page)] if shutil.which("groff") else ["man", "--warnings", "-l", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "MANPAGER": "cat"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "EXIT STATUS" in re.sub(".\x08", "", done.stdout)


@pytest.mark.parametrize("words", ["tidegate-agent pa", "tidegate-agent mode pre", "tidegate-agent config sh"])
def test_the_shell_completes(words: str) -> None:
    env = {**os.environ, "_TIDEGATE_AGENT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-c", "from agent.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert {"pa": "plain,pause\n", "pre": "plain,predictive\n", "sh": "plain,show\n"}[words.rsplit(" ", 1)[1]] == done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    command = [sys.executable, "-c", "from agent.cli import main; main()", "completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert f"_TIDEGATE_AGENT_COMPLETE={shell}_complete" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True, timeout=60)


def test_commands_start_without_what_only_the_agent_needs() -> None:
    script = "import sys, agent.cli; print(sorted({'asyncio.events', 'websockets', 'pyroute2', 'psutil', 'libvirt'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert set(eval(done.stdout)) <= {"asyncio.events"}, "asyncio comes with structlog and click; the others are heavy"


# Tables and screens


def test_tables_align_and_unknown_is_a_dash() -> None:
    assert table(("name", "n"), [("a", 5), ("longer", None), ("", 1000)]) == [
        "name       n",
        "a          5",
        "longer     -",
        "-       1000",
    ]


def answer(**changes: Any) -> dict[str, Any]:
    status = {
        "host_id": "h1",
        "mode": "predictive",
        "mode_pinned": False,
        "paused_by": [],
        "link_up": True,
        "vms": 3,
        "steps_in_flight": 1,
        "sampling_period_s": 5.0,
        "sampling_failures": {},
        "vms_quarantined": ["c"],
    }
    rows = [
        vm("a", cpu_used_millicores=900, cpu_throttled_permille=100, cpu_quota_millicores=1000),
        vm("b", cpu_used_millicores=1500, cpu_quota_millicores=UNLIMITED, in_flight=["cpu_quota"]),
        vm("c", name="\x1b[2Jevil"),
    ]
    host, capacity = {"cpu_used_millicores": 2500}, {"cpu_millicores": 8000, "memory_bytes": 64 * GIB}
    return {"status": status | changes, "host": host, "capacity": capacity, "vms": rows}


def vm(vm_id: str, **fields: Any) -> dict[str, Any]:
    row = {"vm_id": vm_id, "name": vm_id, "running": True, "excluded": False, "in_flight": [], "backing_off_until_ns": {}}
    return row | {"yielded_until_ns": 0, "now_ns": 50, "capabilities": {}} | fields


def test_screen_sorts_marks_censored_demand_and_fits() -> None:
    lines = screen(answer(), "cpu", 200, 50)
    assert [line.split()[0] for line in lines[3:]] == ["b", "a", "?[2Jevil"]
    assert lines[4].split()[1:4] == [">1.00", "0.90", "1.00"], "90 % of the time it used 0.9 cores: it asked for at least 1.00"
    assert lines[3].split()[3] == "max" and lines[3].endswith("*") and lines[5].endswith("Q")
    assert lines[5].split()[1:4] == ["-", "-", "-"], "unknown is no zero"
    small = screen(answer(), "name", 40, 5)
    assert len(small) == 5 and all(len(line) <= 40 for line in small) and small[-1].startswith("... 2 more VMs")
    assert "PAUSED by owner" in screen(answer(paused_by=["owner"]), "net", 200, 50)[0]
    left = answer(vms=1) | {"vms": [vm("a", yielded_until_ns=51), vm("b", yielded_until_ns=50)]}
    assert [line[-1] for line in screen(left, "name", 200, 50)[3:]] == ["y", "-"] and "  1 VM  " in screen(left, "name", 200, 50)[0]


def test_screen_shows_details_where_there_is_room() -> None:
    detail = {"memory_current_bytes": 2**25, "net_rx_packets_per_s": 3, "net_tx_packets_per_s": 4, "instructions_per_kilocycle": 1250}
    one = answer() | {"vms": [vm("a", in_flight=["cpu_quota"], detail=detail)]}
    header, line = screen(one, "cpu", 200, 50)[2:]
    assert header.split()[-6:] == ["GROUP", "PKT/s", "DROP/s", "CTX/s", "IPC", "FLAGS"]
    assert line.split()[-6:] == ["32M", "7", "-", "-", "1.25", "*"]
    header, line = screen(one, "cpu", 110, 50)[2:]
    assert "IPC" not in header and header.split()[-1] == "FLAGS" and line.split()[-2:] == ["-", "*"]


def test_vms_shows_figures_for_people_and_what_each_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        vm("a", vcpus=2, cpu_quota_millicores=1500, cpu_used_millicores=80, memory_allocated_bytes=112 * 2**20, in_flight=["memory"]),
        vm("b", cpu_quota_millicores=UNLIMITED, yielded_until_ns=51, capabilities={"balloon": None, "dimm": "no slots", "migrate": "vfio"}),
        vm("c", name="e\x1bvil", running=False, excluded=True),
    ]
    monkeypatch.setattr(Door, "ask", lambda *_: rows)
    header, *lines = CliRunner().invoke(cli, ["vms"]).output.splitlines()
    assert header.split() == ["vm_id", "name", "vcpus", "quota", "cpu", "memory", "used", "state", "cannot"]
    assert [re.split(r" {2,}", line.strip()) for line in lines] == [
        ["a", "a", "2", "1.50", "0.08", "112M", "-", "changing memory", "-"],
        ["b", "b", "-", "max", "-", "-", "-", "left to somebody else", "dimm, migrate"],
        ["c", "e?vil", "-", "-", "-", "-", "-", "stopped; excluded", "-"],
    ]


def test_status_lines_show_lists_and_what_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": None, "b": "", "c": [], "d": ["x", "y"], "e": {"nic": "gone", "psi": "no"}, "f": 1.23456, "g": True, "h": 0, "i": {}}
    monkeypatch.setattr(Door, "ask", lambda *_: found)
    lines = CliRunner().invoke(cli, ["status"]).output.splitlines()
    assert lines == ["a: -", "b: -", "c: -", "d: x; y", "e: nic: gone; psi: no", "f: 1.235", "g: True", "h: 0", "i: -"]


# Reload


def test_reload_takes_over_what_can_change_and_names_the_rest() -> None:
    old = AgentConfig(host_id="h1")
    new = msgspec.structs.replace(
        old,
        host_id="h2",
        log_level="debug",
        guard=GuardConfig(step_timeout_s=45),
        sampling=SamplingConfig(subsample_s=2, perf=False),
    )
    taken = reload(old, new)
    assert taken.changed == ("log_level", "sampling.subsample_s", "guard.step_timeout_s")
    assert taken.waiting == ("host_id", "sampling.perf")
    assert (taken.config.host_id, taken.config.guard.step_timeout_s, taken.config.log_level) == ("h1", 45, "debug")
    assert (taken.config.sampling.subsample_s, taken.config.sampling.perf) == (2, True)
    assert reload(old, old).changed == reload(old, old).waiting == ()


# Pause file


def test_pause_file_tells_changes_once_and_doubt_is_a_pause(tmp_path: Path) -> None:
    told: list[bool] = []
    path = tmp_path / "folder" / "PAUSE"
    where = [path]
    file = PauseFile(lambda: where[0], told.append)
    file.look()
    path.parent.mkdir()
    path.touch()
    file.look()
    file.look()
    path.unlink()
    file.look()
    assert told == [False, True, False]
    where[0] = Path("x" * 5000)  # ENAMETOOLONG stands for every error that says neither yes nor no
    file.look()
    assert told == [False, True, False, True]


# Bounded calls


def test_a_stuck_vm_is_quarantined_others_are_not_and_threads_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "CALL_DEADLINE_S", 0.1)
    release = threading.Event()

    async def scenario() -> None:
        calls = BoundedCalls()
        with pytest.raises(TimeoutError):
            await calls.of_vm("a", release.wait, 30)
        assert calls.stuck == {"a"}
        with pytest.raises(Refusal) as refused:
            await calls.of_vm("a", int)
        assert refused.value.code is RefusalCode.QUARANTINED
        assert await calls.of_vm("b", int) == 0
        for name in "cde":
            with pytest.raises(TimeoutError):
                await calls.of_vm(name, release.wait, 30)
        with pytest.raises(HostError, match="not begun"):
            await calls.of_vm("f", int)
        assert sum(thread.name.startswith("acting") for thread in threading.enumerate()) == ACTING_THREADS < THREAD_CAP
        release.set()
        while calls.stuck:  # noqa: ASYNC110  # the threads end when they end; nobody sets an event
            await asyncio.sleep(0.005)
        assert await calls.of_vm("a", int) == 0
        calls.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


# Doctor


def levels(findings: Any) -> list[Level]:
    found: list[Finding] = list(findings)
    assert all(finding.mend or finding.level is not Level.FAIL for finding in found), "a failure without a way to mend it"
    return [finding.level for finding in found]


def test_certificates_are_judged_as_the_coordinator_would(tmp_path: Path) -> None:
    create_ca(tmp_path)
    create_ca(tmp_path / "other")

    def config(host_id: str, files: Any) -> AgentConfig:
        tls = TlsConfig(ca=str(files.ca), certificate=str(files.certificate), key=str(files.key))
        return AgentConfig(host_id=host_id, coordinator_urls=("wss://c:1",), tls=tls)

    assert levels(certificates(AgentConfig(host_id="h1"))) == [Level.OK]
    assert levels(certificates(config("h1", issue_host(tmp_path, "h1")))) == [Level.OK]
    assert levels(certificates(config("h2", issue_host(tmp_path, "h1")))) == [Level.FAIL, Level.OK]
    assert levels(certificates(config("h3", issue_host(tmp_path, "h3", valid_days=3)))) == [Level.WARN]
    stranger = issue_host(tmp_path / "other", "h1")
    mixed = msgspec.structs.replace(config("h1", stranger), tls=TlsConfig(
        ca=str(tmp_path / "ca.pem"), certificate=str(stranger.certificate), key=str(stranger.key)))  # fmt: skip
    (found,) = certificates(mixed)
    assert found.level is Level.FAIL and "tidegate pki host" in found.mend
    absent = TlsConfig(ca=str(tmp_path / "none.pem"), certificate="x", key="y")
    assert levels(certificates(msgspec.structs.replace(mixed, tls=absent))) == [Level.FAIL]


def test_an_expired_certificate_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import coordinator.pki as pki  # noqa: PLC0415

    class Past(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(UTC) - timedelta(days=30)

    create_ca(tmp_path)
    monkeypatch.setattr(pki, "datetime", Past)
    files = issue_host(tmp_path, "h1", valid_days=10)
    tls = TlsConfig(ca=str(files.ca), certificate=str(files.certificate), key=str(files.key))
    (found,) = certificates(AgentConfig(host_id="h1", coordinator_urls=("wss://c:1",), tls=tls))
    assert found.level is Level.FAIL and "expired" in found.says


def test_state_folder_and_journal(tmp_path: Path) -> None:
    config = AgentConfig(host_id="h1", state_dir=str(tmp_path / "state"), spool_max_bytes=1 << 20)
    assert levels(state(config)) == [Level.WARN]
    (tmp_path / "state" / "journal").mkdir(parents=True)
    (tmp_path / "state").chmod(0o700)
    assert levels(state(config)) == [Level.OK]
    assert levels(state(msgspec.structs.replace(config, spool_max_bytes=1 << 40))) == [Level.WARN]
    (tmp_path / "state").chmod(0o777)
    assert levels(state(config))[0] is Level.WARN
    assert levels(journal(config)) == [Level.OK]
    (tmp_path / "state" / "journal" / "journal.jsonl").write_bytes(b"00000000 {}\n")
    (found,) = journal(config)
    assert found.level is Level.WARN and "1 damaged" in found.says


def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    async def scenario() -> None:
        swallowed = asyncio.Event()

        async def stubborn() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await asyncio.wait_for(calls_module.cancel([task]), 10)
        assert swallowed.is_set() and task.cancelled()

    asyncio.run(scenario())
