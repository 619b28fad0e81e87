"""`tidegate`'s operator commands over real HTTP: the service on a socket, the double's fleet behind it, the real desk."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from api_client import HASH, TOKEN
from click.testing import CliRunner
from fleet_double import FleetDouble

from coordinator import cli
from coordinator.service.app import HttpService
from coordinator.service.auth import TokenVerifier
from shared.errors import ConfigError, HostError, Refusal
from shared.refusal import RefusalCode

Tidegate = Callable[..., Any]


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of a running service."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    service = HttpService(FleetDouble(), TokenVerifier({HASH: "ops"}), port=0)

    async def serve() -> None:
        await service.start()
        ready.set()
        await stop.wait()
        await service.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    yield service.url
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


@pytest.fixture
def tidegate(served: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tidegate:
    """Runs a command; JSON parsed where --json is asked for. Known errors are raised as they are."""
    monkeypatch.setenv("TIDEGATE_URL", served)
    monkeypatch.setenv("TIDEGATE_TOKEN", TOKEN)
    monkeypatch.setenv("TIDEGATE_CLI_CONFIG", str(tmp_path / "none.toml"))

    def run(*words: str, text: str | None = None) -> Any:
        done = CliRunner().invoke(cli.cli, words, input=text, catch_exceptions=False, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return json.loads(done.output) if "--json" in words else done.output

    return run


def refused(run: Callable[[], Any]) -> RefusalCode:
    with pytest.raises(Refusal) as caught:
        run()
    return caught.value.code


def test_set_creates_then_changes_and_remove_ends_it(tidegate: Tidegate) -> None:
    made = tidegate("client", "set", "cli-1", "name=Cli One", "priority=high", "budget_permille=2.5", "--json")
    assert (made["name"], made["priority"], made["budget_permille"], made["record"]["version"]) == ("Cli One", "high", 2.5, 1)
    changed = tidegate("client", "set", "cli-1", "priority=", "contact=ops", "--json")
    assert (changed["priority"], changed["contact"], changed["name"], changed["record"]["version"]) == (None, "ops", "Cli One", 2)
    assert tidegate("client", "show", "cli-1", "--json") == changed
    assert "cli-1" in [each["id"] for each in tidegate("client", "list", "--json")]
    table = tidegate("client", "list").splitlines()
    assert table[0].split() == ["id", "name", "priority", "sla", "budget_permille", "vms"]
    assert any(line.split() == ["cli-1", "Cli", "One", "-", "-", "2.5", "0"] for line in table)
    assert "removed" in tidegate("client", "remove", "cli-1")
    assert refused(lambda: tidegate("client", "show", "cli-1")) is RefusalCode.INVALID_VALUE


def test_every_kind(tidegate: Tidegate, tmp_path: Path) -> None:
    objective = '[{"metric": "ready", "threshold_permille": 20, "share_permille": 995}]'
    assert tidegate("sla", "set", "cli-gold", "name=Gold", f"objectives={objective}", "--json")["objectives"][0]["period_s"] == 2_592_000
    tidegate("client", "set", "cli-2", "name=Two", "sla=cli-gold")
    assert refused(lambda: tidegate("sla", "remove", "cli-gold")) is RefusalCode.IN_USE
    fields = json.dumps({"client": "cli-2", "name": "Shop", "workload_class": "web"})
    assert tidegate("app", "set", "cli-shop", "--file", "-", "--json", text=fields)["workload_class"] == "web"
    assert tidegate("policy", "set", "client/cli-2", "cpu_floor_millicores=500", "--json")["cpu_floor_millicores"] == 500
    calendar = tmp_path / "one.ics"
    lines = ("BEGIN:VCALENDAR", "VERSION:2.0", "BEGIN:VEVENT", "UID:u1", "DTSTART:20261201T020000Z", "DURATION:PT1H", "END:VEVENT")
    calendar.write_text("\r\n".join([*lines, "END:VCALENDAR", ""]))
    assert "UID:u1" in tidegate("event", "set", "cli-night", "name=Night", "--ical", str(calendar), "--json")["ical"]
    told = tidegate("event", "trigger", "name=Launch", "factor=3", "duration_s=600", "client=cli-2", "reference=cli", "--json")
    assert told["id"] == "trigger-cli"
    for words in (("app", "cli-shop"), ("policy", "client/cli-2"), ("event", "cli-night"), ("event", "trigger-cli"), ("client", "cli-2")):
        assert tidegate(words[0], "remove", words[1], "--json") == {"removed": words[1]}
    tidegate("sla", "remove", "cli-gold")


def test_vms_hosts_and_migrations(tidegate: Tidegate) -> None:
    assert len(tidegate("vm", "list", "--json")) == 24
    assert {vm["host_id"] for vm in tidegate("vm", "list", "--host", "kvm-01", "--json")} == {"kvm-01"}
    assert tidegate("vm", "show", "vm-01-00", "--json")["id"] == "vm-01-00"
    assert tidegate("vm", "policy", "vm-01-00", "--json")["vm_id"] == "vm-01-00"
    assert tidegate("vm", "profile", "vm-01-00", "--json")["resources"][0]["kind"] == "daily"
    assert tidegate("client", "profile", "aurora").splitlines()[1].split()[:2] == ["cpu_millicores", "daily"]
    assert tidegate("vm", "adjust", "vm-01-00", "--vcpus", "2", "--dry-run", "--json")["dry_run"] is True
    assert [host["id"] for host in tidegate("host", "list", "--json")] == ["kvm-01", "kvm-02", "kvm-03", "kvm-04"]
    assert tidegate("host", "show", "kvm-01", "--json")["id"] == "kvm-01"
    assert tidegate("host", "mode", "kvm-01", "observe", "--json")["mode"] == "observe"
    assert tidegate("host", "pause", "fleet", "--json")["fleet"] is True
    assert tidegate("host", "pause", "fleet", "--resume", "--json")["fleet"] is False
    assert refused(lambda: tidegate("host", "mode", "kvm-02", "observe")) is RefusalCode.LOCALLY_PINNED
    assert "plan" in tidegate("migration", "show", "--json")
    assert isinstance(tidegate("migration", "list", "--json"), list)


def test_who_cannot_be_asked_says_so(tidegate: Tidegate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(HostError, match="is `tidegate run` there"):
            tidegate("vm", "list", "--url", f"http://127.0.0.1:{closed.getsockname()[1]}")
    for url in ("ftp://x", "nonsense", "http://"):
        with pytest.raises(ConfigError, match="url"):
            tidegate("vm", "list", "--url", url)
    monkeypatch.delenv("TIDEGATE_TOKEN")
    assert refused(lambda: tidegate("client", "set", "x", "name=X")) is RefusalCode.UNAUTHORIZED
    with pytest.raises(ConfigError, match="token file"):
        tidegate("vm", "list", "--token-file", str(tmp_path / "no"))


def test_the_settings_file(tidegate: Tidegate, served: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TIDEGATE_URL", "TIDEGATE_TOKEN"):
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text(TOKEN + "\n")
    settings = tmp_path / "cli.toml"
    monkeypatch.setenv("TIDEGATE_CLI_CONFIG", str(settings))
    settings.write_text(f'url = "{served}"\ntoken_file = "{tmp_path / "token"}"\n')
    assert tidegate("client", "set", "cli-3", "name=Three", "--json")["id"] == "cli-3"
    tidegate("client", "remove", "cli-3")
    for text, said in (("url = 1", "url = 1"), ("colour = 'red'", "colour"), ("url", "cli.toml")):
        settings.write_text(text)
        with pytest.raises(ConfigError, match=said):
            tidegate("vm", "list")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("client", "set", "x", "name"), "FIELD=VALUE"),
        (("policy", "show", "hosts/x"), "allowed fleet, client/ID or vm/ID"),
        (("client", "set", "x", "--file", "/nonexistent.json"), "No such file"),
    ],
)
def test_a_wrong_command_line(tidegate: Tidegate, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(click.UsageError, match=said):
        tidegate(*words)


def test_exit_codes_of_the_program(served: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TIDEGATE_URL", served)
    monkeypatch.delenv("TIDEGATE_TOKEN", raising=False)
    for words, code, said in (
        (["vm", "show", "nobody"], 3, "unknown_vm"),
        (["vm", "list", "--url", "ftp://x"], 78, "url"),
        (["vm", "list", "--url", "http://127.0.0.1:1"], 69, "127.0.0.1:1"),
        (["policy", "show", "x"], 78, "LEVEL"),
    ):
        monkeypatch.setattr("sys.argv", ["tidegate", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, said in capsys.readouterr().err) == (code, True), words


def test_completion_and_the_manual_page(tidegate: Tidegate) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_TIDEGATE_COMPLETE" in tidegate("completion", shell)
    page = tidegate("man")
    assert page.startswith(".TH TIDEGATE 1 ") and '"tidegate policy set LEVEL [FIELD=VALUE]..."' in page
    checked = (
        subprocess.run(["man", "--warnings", "-l", "-"], input=page, text=True, capture_output=True, check=False)
        if shutil.which("man")
        else None
    )
    assert checked is None or (checked.returncode, checked.stderr) == (0, "")
