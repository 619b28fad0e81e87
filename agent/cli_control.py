"""Commands that change what the agent does: mode, pause and resume, undo."""

from __future__ import annotations

from typing import Any

import click

from agent.cli_door import Door, show, with_door
from shared.model import Mode


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
