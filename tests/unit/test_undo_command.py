"""`tidegate-agent undo` on the command line: what it says of levers that stay as they are, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli import cli
from agent.cli import control as cli_control
from agent.cli.door import Door
from shared.refusal import DESCRIPTIONS, RefusalCode

Run = Callable[..., Result]
LEVERS = [
    {"vm_id": "vm-1", "name": "web", "kind": "cpu_quota", "in_force": 2000, "value": 1000, "step_ids": ["s1", "s4"]},
    {"vm_id": "vm-2", "name": "", "kind": "memory", "in_force": 9, "value": 8, "step_ids": ["s2"]},
]


def line(lever: int, verdict: str, code: str = "", detail: str = "") -> dict[str, Any]:
    return {"vm_id": LEVERS[lever]["vm_id"], "kind": LEVERS[lever]["kind"], "verdict": verdict, "code": code, "detail": detail}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(line...)`: an undo of LEVERS that ends with these lines."""
    monkeypatch.setattr(cli_control, "UNDO_WAIT_S", 0.0)

    def invoke(*lines: dict[str, Any], options: tuple[str, ...] = ()) -> Result:
        answers = {"undo": {"dry_run": False, "since_ns": 1, "levers": LEVERS}, "undone": {"ended": list(lines), "open": 0}}
        monkeypatch.setattr(Door, "ask", lambda _door, command, *_arguments, **_options: answers[command])
        return CliRunner().invoke(cli, ["undo", "--since", "1h", *options])

    return invoke


PRESSED = (0, "refused", "pressure_veto", "the quota holds the VM back")


def test_all_taken_back_is_success_and_says_nothing_more(run: Run) -> None:
    done = run(line(0, "verified"), line(1, "refused", "nothing_to_do", "memory is 8 already"))
    assert done.exit_code == 0 and "stays as it is" not in done.output


def test_all_refused_is_code_3_and_says_which_lever_stays_why_and_how_to_try_again(run: Run) -> None:
    done = run(line(*PRESSED), line(1, "refused", "precondition_changed", "memory was changed by somebody else"))
    assert done.exit_code == 3
    first, second = done.output.splitlines()[-2:]
    why = DESCRIPTIONS[RefusalCode.PRESSURE_VETO]
    assert first.startswith(f"web: cpu_quota stays as it is ({why}): `tidegate-agent undo s1` tries it again")
    assert second.startswith("vm-2: memory stays as it is (") and second.endswith("set it by hand where you want it")
    assert "--force" not in done.output


def test_some_refused_or_failed_is_code_1(run: Run) -> None:
    assert run(line(*PRESSED), line(1, "verified")).exit_code == 1
    failed = run(line(*PRESSED), line(1, "failed"))
    assert failed.exit_code == 1 and "vm-2: memory stays as it is: `tidegate-agent undo s2`" in failed.output
    silent = run(line(*PRESSED))
    assert silent.exit_code == 1 and "nothing was heard" in silent.output


def test_json_carries_the_same_code(run: Run) -> None:
    done = run(line(*PRESSED), line(1, "refused", "after_oom"), options=("--json",))
    assert done.exit_code == 3
    assert json.loads(done.output)["not_undone"] == 2


@pytest.mark.parametrize("code", sorted(cli_control.FINAL))
def test_what_time_does_not_heal_is_not_to_be_tried_again(run: Run, code: RefusalCode) -> None:
    done = run(line(0, "refused", code), line(1, "verified"))
    assert cli_control.FINAL[code] in done.output and "tries it again" not in done.output
