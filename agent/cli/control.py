"""Commands that change what the agent does: mode, pause and resume, undo."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import click

from agent.cli.door import EXIT_FAILED, EXIT_REFUSED, PROGRAM, Door, complete_vm, show, show_table, with_door
from shared.model import Mode
from shared.plan import OutcomeState
from shared.refusal import DESCRIPTIONS, RefusalCode

UNDO_WAIT_S: Final = 75.0  # a batch ends within 60 s of the agent's clock; then its last outcome is told
UNDO_POLL_S: Final = 0.2
UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DONE: Final = (OutcomeState.VERIFIED, OutcomeState.PARTIAL)
# Refusals that time does not heal: what the owner can do instead of trying again.
FINAL: Final = {
    RefusalCode.PRECONDITION_CHANGED: "set it by hand where you want it",
    RefusalCode.NOT_CAPABLE: "`caps` says why",
    RefusalCode.BELOW_FLOOR: "what was in force before is outside the bounds of today; change the VM's policy, or leave it",
    RefusalCode.ABOVE_CEILING: "what was in force before is outside the bounds of today; change the VM's policy, or leave it",
    RefusalCode.UNKNOWN_VM: "it is gone from this host",
    RefusalCode.VM_NOT_RUNNING: "it begins with its defined limits when it is started",
}


@click.command()
@click.argument("mode", required=False, type=click.Choice([m.value for m in Mode] + ["unpin"]))
@with_door
def mode(door: Door, as_json: bool, mode: str | None) -> None:
    """Show the control mode, or pin it (survives restarts, wins over the API). `unpin` gives it back to the API."""
    show(door.ask("mode", mode), as_json)


@click.command()
@with_door
def pause(door: Door, as_json: bool) -> None:
    """Change nothing more on this host, at once and after restarts, until `resume`. Sampling goes on."""
    _tell(door.ask("pause"), as_json)


@click.command()
@with_door
def resume(door: Door, as_json: bool) -> None:
    """Take back `pause`. The pause file and the coordinator hold their own."""
    _tell(door.ask("resume"), as_json)


def _tell(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(result, True)
        return
    holders = result["paused_by"]
    click.echo(f"paused by {', '.join(holders)}" if holders else f"not paused; mode {result['mode']}")


@click.command()
@click.argument("step", required=False)
@click.option("--since", metavar="TIME", help="Take back every step begun within the last TIME: 90s, 10m, 2h or 1d.")
@click.option("--vm", help="Only of this VM (id or name).", shell_complete=complete_vm)
@click.option("--dry-run", is_flag=True, help="Only say what would be set.")
@with_door
def undo(door: Door, as_json: bool, *, step: str | None, since: str | None, vm: str | None, dry_run: bool) -> None:
    """Take back STEP (an id of `history`), or all since a time: levers go to what was in force before. Waits for the outcome.

    Exit code 3 when all were refused, 1 when some were not taken back; what stays, and what can be done, is said.
    """
    since_s = None if since is None else str(_seconds(since))
    begun = door.ask("undo", step, since_s=since_s, vm=vm, dry_run=str(dry_run).lower())
    if dry_run:
        _show_levers(begun, as_json)
        return
    wanted = {(lever["vm_id"], lever["kind"]) for lever in begun["levers"]}
    deadline = time.monotonic() + UNDO_WAIT_S
    while True:
        told = door.ask("undone", str(begun["since_ns"]))
        ended = {(line["vm_id"], line["kind"]): line for line in told["ended"]}
        if (wanted <= ended.keys() and not told["open"]) or time.monotonic() >= deadline:
            break
        time.sleep(UNDO_POLL_S)
    stays = [lever for lever in begun["levers"] if not _undone(ended.get((lever["vm_id"], lever["kind"])))]
    failed = len(stays)
    if as_json:
        show({"undone": len(wanted) - failed, "not_undone": failed, "levers": begun["levers"], "outcomes": told["ended"]}, True)
    else:
        rows = [[*_lever(lever), *_end(ended, lever)] for lever in begun["levers"]]
        show_table(("vm", "lever", "from", "to", "outcome", "why"), rows)
        for lever in stays:
            click.echo(_advice(lever, ended.get((lever["vm_id"], lever["kind"]))), err=True)
    if failed:
        refused = all((line := ended.get(key)) is not None and line["verdict"] == OutcomeState.REFUSED for key in wanted)
        raise click.exceptions.Exit(EXIT_REFUSED if refused else EXIT_FAILED)


def _lever(lever: Mapping[str, Any]) -> tuple[object, ...]:
    return lever["name"] or lever["vm_id"], lever["kind"], lever["in_force"], lever["value"]


def _end(ended: Mapping[tuple[str, str], Mapping[str, Any]], lever: Mapping[str, Any]) -> tuple[str, str]:
    line = ended.get((lever["vm_id"], lever["kind"]))
    if line is None:
        return "open", f"nothing was heard within {UNDO_WAIT_S:g} s"
    return line["verdict"], ": ".join(part for part in (line["code"], line["detail"]) if part)


def _undone(line: Mapping[str, Any] | None) -> bool:
    """The lever is where the undo wants it, by its doing or already."""
    return line is not None and (line["verdict"] in DONE or line["code"] == RefusalCode.NOTHING_TO_DO)


def _advice(lever: Mapping[str, Any], line: Mapping[str, Any] | None) -> str:
    """Which lever stays, why, and what its owner can do: no undo goes past a limit of safety, but most of them pass."""
    code = RefusalCode(line["code"]) if line is not None and line["code"] else None
    why = "" if code is None else f" ({DESCRIPTIONS[code]})"
    again = f"`{PROGRAM} undo {lever['step_ids'][0]}` tries it again; an undo never goes past what keeps the VM and the host safe"
    return f"{lever['name'] or lever['vm_id']}: {lever['kind']} stays as it is{why}: {FINAL.get(code, again) if code else again}"


def _show_levers(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(result, True)
        return
    rows = [[*_lever(lever), ", ".join(lever["step_ids"]), lever["detail"]] for lever in result["levers"]]
    show_table(("vm", "lever", "from", "to", "takes back", "forbidden by"), rows)


def _seconds(text: str) -> int:
    unit = UNITS_S.get(text[-1:], 0)
    number = text[:-1]
    if not unit or not (number.isascii() and number.isdigit() and len(number) <= 6) or int(number) == 0:
        raise click.BadParameter(f"{text!r}: allowed is a number with s, m, h or d, as in 10m", param_hint="--since")
    return int(number) * unit
