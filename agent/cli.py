"""`tidegate-agent`: run the agent, or talk to the running one over its local socket."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from shared.config import AGENT_PREFIX, AgentConfig, load
from shared.errors import EXIT_CONFIG, ConfigError, HostError, Refusal
from shared.model import Mode

EXIT_HOST = 69  # EX_UNAVAILABLE
EXIT_REFUSED = 77  # EX_NOPERM

DEFAULT_CONFIG = Path("/etc/tidegate-agent/agent.toml")
CONFIG_OPTION = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help=f"Configuration file [default: {DEFAULT_CONFIG} where it exists]."
)
SOCKET_OPTION = click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Control socket of the agent.")
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
@click.version_option(package_name="tidegate")
def cli() -> None:
    """The Tidegate agent of one hypervisor."""


@cli.command()
@CONFIG_OPTION
@click.option("--hypervisor", type=click.Choice(["libvirt", "simulated"]), help="Overrides the configuration.")
@click.option("--workload", type=click.Path(path_type=Path), help="Workload file of a simulated host.")
@click.option("--mode", type=click.Choice([m.value for m in Mode]), help="Mode when none is pinned or ordered.")
def run(config_path: Path | None, hypervisor: str | None, workload: Path | None, mode: str | None) -> None:
    """Run the agent in the foreground until SIGTERM or SIGINT."""
    from agent.service import run_agent  # noqa: PLC0415  # the other commands start fast without it

    config = _config(config_path)
    changes: dict[str, Any] = {}
    if hypervisor:
        changes["hypervisor"] = hypervisor
    if workload:
        changes["workload"] = str(workload)
    if mode:
        changes["default_mode"] = Mode(mode)
    asyncio.run(run_agent(msgspec.structs.replace(config, **changes)))


@cli.command()
@CONFIG_OPTION
@SOCKET_OPTION
@JSON_OPTION
def status(config_path: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """Mode, link, spool, sampling and step counters."""
    _show(_ask(config_path, socket_path, "status"), as_json)


@cli.command()
@click.argument("mode", required=False, type=click.Choice([m.value for m in Mode] + ["unpin"]))
@CONFIG_OPTION
@SOCKET_OPTION
@JSON_OPTION
def mode(mode: str | None, config_path: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """Show the control mode, or pin it (survives restarts, wins over the API). `unpin` gives it back to the API."""
    _show(_ask(config_path, socket_path, "mode", mode), as_json)


@cli.command()
@CONFIG_OPTION
@SOCKET_OPTION
@JSON_OPTION
def vms(config_path: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """The VMs of this host: allocation in force, use, capabilities."""
    rows = _ask(config_path, socket_path, "vms")
    if as_json:
        _show(rows, True)
        return
    columns = ("vm_id", "name", "vcpus", "cpu_quota_millicores", "cpu_used_millicores", "memory_allocated_bytes", "memory_used_bytes")
    click.echo("  ".join(columns))
    for row in rows:
        click.echo("  ".join(str(row.get(name, "")) if row.get(name) is not None else "-" for name in columns))


@cli.command()
@click.argument("vm")
@CONFIG_OPTION
@SOCKET_OPTION
@JSON_OPTION
def why(vm: str, config_path: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """What was done to VM (id or name) lately, what was refused, and why."""
    result = _ask(config_path, socket_path, "why", vm)
    if as_json:
        _show(result, True)
        return
    for entry in result["story"]:
        click.echo("  ".join(f"{key}={value}" for key, value in entry.items() if value not in (None, "")))
    if not result["story"]:
        click.echo(f"{vm}: nothing was decided yet")


def main() -> NoReturn:
    """Entry point: known errors end with a sentence and their own exit code, bugs with a traceback."""
    code = 0
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = EXIT_CONFIG if isinstance(error, click.UsageError) else 1
    except ConfigError as error:
        click.echo(f"tidegate-agent: {error}", err=True)
        code = EXIT_CONFIG
    except Refusal as error:
        click.echo(f"tidegate-agent: refused: {error}", err=True)
        code = EXIT_REFUSED
    except HostError as error:
        click.echo(f"tidegate-agent: {error}", err=True)
        code = EXIT_HOST
    _leave(code)


def _leave(code: int) -> NoReturn:
    """The interpreter waits for its threads, for ever when one hangs in libvirt; systemd is to start us anew now."""
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _config(path: Path | None) -> AgentConfig:
    chosen = path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    return load(chosen, AgentConfig, os.environ, AGENT_PREFIX)


def _ask(config_path: Path | None, socket_path: Path | None, command: str, argument: str | None = None) -> Any:
    from shared.control import ask  # noqa: PLC0415  # not needed for --help

    return ask(socket_path or Path(_config(config_path).socket_path), command, argument)


def _show(result: Any, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
        return
    for key, value in result.items():
        click.echo(f"{key}: {value}")
