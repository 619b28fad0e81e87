"""Commands that only show: status, vms, top, plan, history, why, caps, dirty-rate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from agent.cli.door import EXIT_FAILED, Door, complete_vm, show, show_table, with_door
from agent.cli.figures import cores, size
from shared.units import NS_PER_S

DIRTY_WAIT_S: Final = 30.0  # two measurements that get no result, and then ours
DIRTY_POLL_S: Final = 0.2


@click.command()
@with_door
def status(door: Door, as_json: bool) -> None:
    """Mode, link, spool, sampling and step counters."""
    show(door.ask("status"), as_json)


@click.command()
@with_door
def vms(door: Door, as_json: bool) -> None:
    """The VMs of this host: allocation in force, use, state, and what each cannot do (`caps` says why)."""
    rows = door.ask("vms")
    if as_json:
        show(rows, True)
    else:
        show_table(("vm_id", "name", "vcpus", "quota", "cpu", "memory", "used", "state", "cannot"), [_vm(row) for row in rows])


def _vm(row: Mapping[str, Any]) -> list[object]:
    """Quota and use in CPUs."""
    yielded = row["yielded_until_ns"] > row["now_ns"]
    states = (
        ("stopped", not row["running"]),
        ("excluded", row["excluded"]),
        ("left to somebody else", yielded),
        (f"changing {', '.join(row['in_flight'])}", bool(row["in_flight"])),
    )
    return [
        row["vm_id"],
        row["name"],
        row.get("vcpus"),
        cores(row.get("cpu_quota_millicores")),
        cores(row.get("cpu_used_millicores")),
        size(row.get("memory_allocated_bytes")),
        size(row.get("memory_used_bytes")),
        "; ".join(name for name, holds in states if holds) or "running",
        ", ".join(name for name, reason in row["capabilities"].items() if reason is not None),
    ]


@click.command()
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=2.0, help="Seconds between two looks.")
@click.option("--count", type=click.IntRange(1, 1_000_000), help="End after this many looks.")
@click.option("--once", is_flag=True, help="One look, no screen control.")
@click.option("--sort", type=click.Choice(["cpu", "ready", "memory", "disk", "net", "name"]), default="cpu", help="Column to sort by.")
@with_door
def top(door: Door, as_json: bool, *, interval: float, count: int | None, once: bool, sort: str) -> None:
    """Live view: per VM demand, use, ready, pressure, memory, disk, net and what is in flight. Keys: q quits, c r m d n s sort.

    Flags: * a step in flight, b backing off, x excluded by policy, y left to somebody else, Q quarantined, - not running.
    """
    from agent.cli.top import watch  # noqa: PLC0415  # the other commands start fast without it

    if as_json:
        show(door.ask("top"), True)
    else:
        watch(door, interval_s=interval, count=1 if once else count, sort=sort)


@click.command()
@with_door
def plan(door: Door, as_json: bool) -> None:
    """The newest plan taken and its open steps: what is in flight, and what each of the others waits for."""
    result = door.ask("plan")
    if as_json:
        show(result, True)
        return
    if not result["epoch"]:
        click.echo("no plan was taken yet")
        return
    now_ns = result["now_ns"]
    left_s = (result["deadline_ns"] - now_ns) / NS_PER_S
    state = f"live for {left_s:.0f} s" if result["live"] else f"void for {-left_s:.0f} s"
    click.echo(f"plan {result['epoch']}.{result['sequence']}: {state}, {len(result['steps'])} steps open")
    rows = [
        [
            line["step"]["id"],
            line["name"] or line["step"]["vm_id"],
            line["step"]["kind"],
            line["step"].get("before"),
            line["step"]["value"],
            "in flight" if line["flying"] else _waits(line, now_ns),
        ]
        for line in result["steps"]
    ]
    if rows:
        show_table(("step", "vm", "lever", "from", "to", "state"), rows)


def _waits(line: Mapping[str, Any], now_ns: int) -> str:
    seconds = max(0, line["retry_ns"] - now_ns) / NS_PER_S
    reason = ": ".join(part for part in (line["code"], line["detail"]) if part)
    when = f"in {seconds:.0f} s" if seconds else "next"
    return f"waits, {when}" + (f" ({reason})" if reason else "")


@click.command()
@click.option("--vm", help="Of one VM only (id or name).", shell_complete=complete_vm)
@click.option("-n", "lines", type=click.IntRange(1, 1000), default=50, help="Lines, the newest [default: 50].")
@with_door
def history(door: Door, as_json: bool, vm: str | None, lines: int) -> None:
    """What was done on this host lately, oldest first: submitted, verified, refused, undone, and by whose wish."""
    result = door.ask("history", n=str(lines), vm=vm)
    if as_json:
        show(result, True)
        return
    rows = [[line["name"] or line["vm_id"], *_decision(line)] for line in result["history"]]
    if not rows:
        click.echo("nothing was decided yet")
        return
    show_table(("vm", "time", "lever", "from", "to", "origin", "verdict", "code", "step", "reason"), rows)


def _decision(line: Mapping[str, Any]) -> list[object]:
    reason = ": ".join(part for part in (line["reason"], line["detail"]) if part)
    values = [line["kind"], line["from_value"], line["to_value"], line["origin"], line["verdict"], line["code"], line["step_id"], reason]
    return [_time(line["at_ns"]), *values]


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@click.command()
@click.argument("vm", shell_complete=complete_vm)
@with_door
def why(door: Door, as_json: bool, vm: str) -> None:
    """What was done to VM (id or name) lately, what was refused, and why."""
    result = door.ask("why", vm)
    if as_json:
        show(result, True)
        return
    for entry in result["story"]:
        click.echo("  ".join(f"{key}={value}" for key, value in entry.items() if value not in (None, "")))
    if not result["story"]:
        click.echo(f"{vm}: nothing was decided yet")


@click.command()
@click.argument("vm", shell_complete=complete_vm)
@with_door
def caps(door: Door, as_json: bool, vm: str) -> None:
    """What VM (id or name) can do, and why it cannot do the rest."""
    result = door.ask("caps", vm)
    if as_json:
        show(result, True)
        return
    rows = [[name, "yes" if entry["able"] else "no", entry["reason"]] for name, entry in result["capabilities"].items()]
    show_table(("capability", "able", "reason"), rows)


@click.command("dirty-rate")
@click.argument("vm", shell_complete=complete_vm)
@click.option("--last", is_flag=True, help="Measure nothing, show the newest figure.")
@with_door
def dirty_rate(door: Door, as_json: bool, vm: str, *, last: bool) -> None:
    """Measure how fast VM (id or name) rewrites its memory: what a live migration has to outrun. Costs it page faults for a second."""
    result = door.ask("dirty-rate", vm, measure=str(not last).lower())
    deadline = time.monotonic() + DIRTY_WAIT_S
    while result["measuring"] and not last and time.monotonic() < deadline:
        time.sleep(DIRTY_POLL_S)
        result = door.ask("dirty-rate", vm)
    if result["measuring"] and not last:
        result["failure"] = f"no result within {DIRTY_WAIT_S:g} s"
    if as_json:
        show(result, True)
    else:
        rate, name = result["bytes_per_s"], result["name"] or vm
        click.echo(
            f"{name}: never measured" if rate is None else f"{name}: {rate / 1e6:.1f} MB/s, measured {result['age_ms'] / 1000:.0f} s ago"
        )
        if result["failure"]:
            click.echo(f"{name}: not measured now: {result['failure']}", err=True)
    if result["failure"] and not last:
        raise click.exceptions.Exit(EXIT_FAILED)
