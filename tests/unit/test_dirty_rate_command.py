"""`tidegate-agent dirty-rate`: from the command line through the control socket's answers to a measurement and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from plain_host import plain_capacity

from agent.cli import cli
from agent.cli import show as cli_show
from agent.cli.door import Door
from agent.core import AgentCore
from agent.link.spool import Spool
from agent.sampling.dirty import DirtyRates
from agent.service.answers import Answers
from agent.service.calls import BoundedCalls
from agent.service.picture import Picture
from shared.clock import SystemClock
from shared.config import AgentConfig
from shared.control import Request
from shared.errors import HostError, Refusal
from shared.model import Domain
from shared.refusal import RefusalCode
from shared.units import GIB

Run = Callable[..., Result]


class Source:
    """Measures `rate` at once; None = never."""

    def __init__(self) -> None:
        self.rate: int | None = 28_500_000
        self.started: list[str] = []
        self.error: HostError | None = None

    def start(self, vm_id: str, seconds: int) -> None:
        assert seconds == 1
        if self.error is not None:
            raise self.error
        self.started.append(vm_id)

    def result(self, vm_id: str) -> int | None:
        return self.rate


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def run(source: Source, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on an agent that measures by `source`."""
    clock, domains = (
        SystemClock(),
        tuple(
            Domain(vm_id=f"vm-{name}", name=name, vcpus_max=4, memory_max_bytes=4 * GIB, running=name != "off") for name in ("web", "off")
        ),
    )
    core = AgentCore(host_id="h1", boot_id="b1", capacity=plain_capacity())
    calls, spool = BoundedCalls(), Spool(tmp_path / "spool", 1 << 20)
    rates = DirtyRates(source, clock, poll_s=0.001)
    for close in (calls.close, spool.close, lambda: rates.close(10)):
        request.addfinalizer(close)
    picture = Picture(config=AgentConfig(host_id="h1"), clock=clock, core=core, calls=calls, spool=spool, domains=domains)
    answers = Answers(picture, lambda _event: None, dirty_rates=rates)

    def ask(_door: Door, command: str, argument: str | None = None, **options: str | None) -> Any:
        given = {name: text for name, text in options.items() if text is not None}
        return json.loads(json.dumps(asyncio.run(answers.answer(Request(command=command, argument=argument, options=given)))))

    monkeypatch.setattr(Door, "ask", ask)
    monkeypatch.setattr(cli_show, "DIRTY_POLL_S", 0.001)
    return lambda *arguments: CliRunner().invoke(cli, ["dirty-rate", *arguments])


def refusal(result: Result) -> RefusalCode:
    assert isinstance(result.exception, Refusal)
    return result.exception.code


def test_it_measures_waits_and_says_how_old_the_figure_is(run: Run, source: Source) -> None:
    assert run("web", "--last").output == "web: never measured\n"
    assert source.started == []
    done = run("web")
    assert (done.exit_code, done.output) == (0, "web: 28.5 MB/s, measured 0 s ago\n")
    source.rate = 0
    assert json.loads(run("vm-web", "--json").output) | {"age_ms": 0} == {
        "vm_id": "vm-web",
        "name": "web",
        "measuring": False,
        "bytes_per_s": 0,
        "age_ms": 0,
        "failure": "",
    }
    assert source.started == ["vm-web", "vm-web"]
    assert run("web", "--last").output.startswith("web: 0.0 MB/s") and len(source.started) == 2


def test_a_measurement_that_fails_is_said_and_the_older_figure_stays(run: Run, source: Source) -> None:
    assert run("web").exit_code == 0
    source.error = HostError("this libvirt measures no dirty rate (it takes 7.2)")
    done = run("web")
    assert done.exit_code == 1 and "web: 28.5 MB/s" in done.output and "not measured now: this libvirt measures no" in done.output
    source.error = None
    assert run("web").exit_code == 0


def test_who_waits_in_vain_is_told(run: Run, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_show, "DIRTY_WAIT_S", 0.01)
    source.rate = None
    done = run("web")
    assert done.exit_code == 1 and "no result within 0.01 s" in done.output
    assert run("web", "--last").exit_code == 0


def test_what_cannot_be_measured_is_refused_with_its_code(run: Run) -> None:
    assert refusal(run("nobody")) is RefusalCode.UNKNOWN_VM
    assert refusal(run("off")) is RefusalCode.VM_NOT_RUNNING
    assert run("off", "--last").exit_code == 0
    assert run().exit_code == 2
