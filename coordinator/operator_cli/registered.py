"""`tidegate client|app|sla|policy|event list|show|set|remove`: the same four commands for everything that is registered.

`set` reads first: what is there is changed field by field in the version that was read, what is not is created. Two who set at once cannot
overwrite each other: the later one is refused (version_changed).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from coordinator.operator_cli.door import ApiRefusal, Door, quoted, show, with_door
from coordinator.operator_cli.fleet import show_profile


class Registered(NamedTuple):
    """How one kind is spoken of."""

    noun: str
    path: str
    metavar: str
    columns: tuple[str, ...]
    example: str


KINDS: Final = {
    "client": Registered(
        "client", "clients", "ID", ("id", "name", "priority", "sla", "budget_permille", "vms"), 'name="Acme" priority=high'
    ),
    "app": Registered(
        "application", "applications", "ID", ("id", "client", "name", "workload_class", "vms"), "client=acme name=Shop workload_class=web"
    ),
    "sla": Registered(
        "SLA",
        "slas",
        "ID",
        ("id", "name", "objectives", "clients"),
        """name=Gold 'objectives=[{"metric": "ready", "threshold_permille": 20, "share_permille": 995}]'""",
    ),
    "policy": Registered(
        "policy",
        "policies",
        "LEVEL",
        ("id", "priority", "mode", "excluded", "size_quantile", "record.changed_by"),
        "cpu_floor_millicores=500 mode=reactive",
    ),
    "event": Registered(
        "event",
        "events",
        "ID",
        ("id", "name", "category", "client", "application", "next_start_s", "problem"),
        'name="Nightly backup" start_s=1795262400 duration_s=3600 rrule=FREQ=DAILY effect=disk=x3',
    ),
}


def groups() -> list[click.Group]:
    """One group of commands for each kind."""
    return [_group(name, kind) for name, kind in KINDS.items()]


def _group(name: str, kind: Registered) -> click.Group:
    group = click.Group(name, help=f"Registered {kind.path}: list, show, set, remove.")

    @with_door
    def list_(door: Door, as_json: bool) -> None:
        show(list(door.pages(kind.path)), as_json, kind.columns)

    @with_door
    def show_(door: Door, as_json: bool, id: str) -> None:
        show(door.ask("GET", _path(kind, id)).body, as_json)

    @with_door
    def set_(door: Door, as_json: bool, *, id: str, fields: Sequence[str], file: Path | None, ical: Path | None = None) -> None:
        asked = _fields(fields, file)
        if ical is not None:
            asked["ical"] = _read(ical)
        show(_set(door, _path(kind, id), asked), as_json)

    @with_door
    def remove_(door: Door, as_json: bool, id: str) -> None:
        found = door.ask("GET", _path(kind, id))
        door.ask("DELETE", _path(kind, id), headers={"If-Match": found.etag})
        show({"removed": id}, as_json)

    argument = click.argument("id", metavar=kind.metavar)
    noun = f"the {kind.noun}" if kind.metavar == "ID" else "the policy of LEVEL (fleet, client/ID or vm/ID)"
    options = [
        click.option("--file", type=click.Path(path_type=Path), help="JSON object with fields; - reads it from standard input."),
        click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]..."),
        argument,
    ]
    if name == "event":
        options.insert(0, click.option("--ical", type=click.Path(path_type=Path), help="Upload this iCalendar file."))
    for option in options:
        option(set_)
    argument(show_)
    argument(remove_)
    group.command("list", help=f"Every {kind.noun}, by id.")(list_)
    group.command("show", help=f"Show {noun}.")(show_)
    group.command(
        "set", help=f"Create {noun}, or change fields of it.\n\nVALUE is JSON or text; nothing takes a field back. Example: {kind.example}"
    )(set_)
    group.command("remove", help=f"Remove {noun}, if nothing names it any more.")(remove_)
    if name == "event":
        group.command("trigger")(trigger)
    if name == "client":
        group.command("profile")(profile)
    return group


@with_door
@click.argument("fields", nargs=-1, metavar="FIELD=VALUE...")
def trigger(door: Door, as_json: bool, fields: Sequence[str]) -> None:
    """Say what is about to happen, e.g. name=Launch factor=3 duration_s=7200 client=acme."""
    show(door.ask("POST", "events/trigger", _fields(fields, None)).body, as_json)


@with_door
@click.argument("id")
@click.option("--days", type=click.IntRange(1, 28), default=14, show_default=True, help="Days back.")
def profile(door: Door, as_json: bool, id: str, days: int) -> None:
    """How a client's VMs together use what they have: seasons, peaks, class, recommended size."""
    show_profile(door.ask("GET", f"clients/{quoted(id)}/profile?days={days}").body, as_json)


def _set(door: Door, path: str, asked: dict[str, Any]) -> Any:
    try:
        found = door.ask("GET", path)
    except ApiRefusal as error:
        if error.status != 404:
            raise
        fresh = {name: value for name, value in asked.items() if value is not None}
        return door.ask("PUT", path, fresh, {"If-None-Match": "*"}).body
    return door.ask("PATCH", path, asked, {"If-Match": found.etag}).body


def _path(kind: Registered, id_: str) -> str:
    if kind.path != "policies":
        return f"{kind.path}/{quoted(id_)}"
    level, slash, of = id_.partition("/")
    if (level == "fleet" and not slash) or (level in ("client", "vm") and of):
        return f"{kind.path}/{level}" + (f"/{quoted(of)}" if of else "")
    raise click.UsageError(f"LEVEL {id_!r}: allowed fleet, client/ID or vm/ID")


def _fields(words: Sequence[str], file: Path | None) -> dict[str, Any]:
    """FIELD=VALUE words over the fields of a file."""
    fields: dict[str, Any] = {}
    if file is not None:
        try:
            fields = json.loads(_read(file))
        except ValueError as error:
            raise click.UsageError(f"--file {file}: {error}") from error
        if not isinstance(fields, dict):
            raise click.UsageError(f"--file {file}: allowed a JSON object")
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{word!r}: allowed FIELD=VALUE")
        fields[name] = _value(text)
    return fields


def _value(text: str) -> Any:
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
