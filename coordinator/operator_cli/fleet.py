"""`tidegate vm|host|migration`: the fleet as the coordinator sees it, and an operator's word on it."""

from __future__ import annotations

from typing import Any, Final

import click

from coordinator.operator_cli.door import Door, quoted, show, with_door
from shared.model import Mode

VM_COLUMNS: Final = ("id", "name", "host_id", "client", "priority", "mode", "allocation.cpu_quota_millicores", "allocation.memory_bytes")
PROFILE_COLUMNS: Final = ("resource", "kind", "mean", "highest", "day_strength", "week_strength", "predictability", "recommended")
HOST_COLUMNS: Final = ("id", "alive", "mode", "mode_pinned", "paused", "silent_reason")


def show_profile(profile: Any, as_json: bool) -> None:
    """A workload profile: as JSON, or a line for each resource."""
    show(profile if as_json else profile["resources"], as_json, PROFILE_COLUMNS)


@click.group()
def vm() -> None:
    """VMs of the fleet."""


@vm.command("list")
@with_door
@click.option("--host", help="Only of this host.")
@click.option("--client", help="Only of this client.")
def vm_list(door: Door, as_json: bool, host: str | None, client: str | None) -> None:
    """Every VM, by id."""
    show(list(door.pages("vms", host=host, client=client)), as_json, VM_COLUMNS)


@vm.command("show")
@with_door
@click.argument("id")
def vm_show(door: Door, as_json: bool, id: str) -> None:
    """One VM: allocation, demand, forecast model, policy in force."""
    show(door.ask("GET", f"vms/{quoted(id)}").body, as_json)


@vm.command("policy")
@with_door
@click.argument("id")
def vm_policy(door: Door, as_json: bool, id: str) -> None:
    """What is in force for a VM, and which level each field is from."""
    show(door.ask("GET", f"vms/{quoted(id)}/policy").body, as_json)


@vm.command("profile")
@with_door
@click.argument("id")
@click.option("--days", type=click.IntRange(1, 28), default=14, show_default=True, help="Days back.")
def vm_profile(door: Door, as_json: bool, id: str, days: int) -> None:
    """How a VM uses what it has: seasons, peaks, class, recommended size."""
    show_profile(door.ask("GET", f"vms/{quoted(id)}/profile?days={days}").body, as_json)


@vm.command("adjust")
@with_door
@click.argument("id")
@click.option("--vcpus", type=int, help="vCPUs.")
@click.option("--memory-bytes", type=int, help="Memory.")
@click.option("--cpu-quota-millicores", type=int, help="CPU quota.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
def vm_adjust(door: Door, as_json: bool, id: str, **asked: Any) -> None:
    """Give a VM vCPUs, memory or CPU quota now."""
    body = {name: value for name, value in asked.items() if value is not None}
    show(door.ask("POST", f"vms/{quoted(id)}/resources", body).body, as_json)


@click.group()
def host() -> None:
    """Hosts of the fleet."""


@host.command("list")
@with_door
def host_list(door: Door, as_json: bool) -> None:
    """Every host, by id."""
    show(door.ask("GET", "hosts").body, as_json, HOST_COLUMNS)


@host.command("show")
@with_door
@click.argument("id")
def host_show(door: Door, as_json: bool, id: str) -> None:
    """One host: mode, capacity, what is committed of it."""
    show(door.ask("GET", f"hosts/{quoted(id)}").body, as_json)


@host.command("mode")
@with_door
@click.argument("id")
@click.argument("mode", type=click.Choice([str(mode) for mode in Mode]))
def host_mode(door: Door, as_json: bool, id: str, mode: str) -> None:
    """Order a host into a control mode; a pin on the host itself wins."""
    show(door.ask("PUT", f"hosts/{quoted(id)}/mode", {"mode": mode}).body, as_json)


@host.command("pause")
@with_door
@click.argument("id")
@click.option("--resume", is_flag=True, help="Take the pause back.")
def host_pause(door: Door, as_json: bool, id: str, resume: bool) -> None:
    """The kill switch of one host; of the whole fleet where ID is `fleet`."""
    path = "fleet/pause" if id == "fleet" else f"hosts/{quoted(id)}/pause"
    show(door.ask("PUT", path, {"paused": not resume}).body, as_json)


@click.group()
def migration() -> None:
    """The plan of live migrations."""


@migration.command("show")
@with_door
def migration_show(door: Door, as_json: bool) -> None:
    """The newest plan, with the phase of each move."""
    show(door.ask("GET", "migration").body, as_json)


@migration.command("list")
@with_door
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="At most so many.")
def migration_list(door: Door, as_json: bool, limit: int) -> None:
    """Plans as they ended or are, newest first."""
    show(door.ask("GET", f"migrations?limit={limit}").body, as_json, ("id", "status", "created_ns", "why"))


@migration.command("approve")
@with_door
@click.argument("plan")
def migration_approve(door: Door, as_json: bool, plan: str) -> None:
    """Let PLAN run: its id is in `show`."""
    show(door.ask("PUT", f"migrations/{quoted(plan)}", {"action": "approve"}).body, as_json)


@migration.command("abort")
@with_door
@click.argument("plan")
def migration_abort(door: Door, as_json: bool, plan: str) -> None:
    """Leave out what has not begun of PLAN; what is under way ends by itself."""
    show(door.ask("PUT", f"migrations/{quoted(plan)}", {"action": "abort"}).body, as_json)
