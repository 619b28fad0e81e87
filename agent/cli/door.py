"""What the agent's commands share: options, exit codes, the way to the running agent, and how a result is shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from shared.config import AGENT_PREFIX, AgentConfig, load
from shared.errors import ConfigError, HostError, Refusal

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_UNREACHABLE: Final = 4

PROGRAM: Final = "tidegate-agent"
DEFAULT_CONFIG: Final = Path("/etc/tidegate-agent/agent.toml")
COMPLETION_TIMEOUT_S: Final = 1.0  # a shell waits for it

Command = Callable[..., Any]

CONFIG_OPTION = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help=f"Configuration file [default: {DEFAULT_CONFIG} where it exists]."
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Door:
    """The way to the running agent: its socket, as given or as configured."""

    def __init__(self, config_path: Path | None, socket_path: Path | None) -> None:
        self.config_path, self._socket_path = config_path, socket_path

    @property
    def socket(self) -> Path:
        """Path of the control socket."""
        return self._socket_path or Path(read_config(self.config_path).socket_path)

    def ask(self, command: str, argument: str | None = None, **options: str | None) -> Any:
        """One request. Raises Unreachable, Refusal, HostError or ConfigError."""
        from shared.control import ask  # noqa: PLC0415  # not needed for --help

        return ask(self.socket, command, argument, options={name: text for name, text in options.items() if text is not None})


def with_door(command: Command) -> Command:
    """Adds --config, --socket and --json; the command gets `door: Door` and `as_json: bool` as its first arguments."""
    socket = click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Control socket of the agent.")

    def called(config_path: Path | None, socket_path: Path | None, as_json: bool, **given: Any) -> Any:
        return command(Door(config_path, socket_path), as_json, **given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    # arguments that the command declared below this decorator
    called.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return CONFIG_OPTION(socket(JSON_OPTION(called)))


def chosen_config(path: Path | None) -> Path | None:
    """The file that is read: as given, else the default one where it exists; None = built-in defaults only."""
    return path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)


def read_config(path: Path | None) -> AgentConfig:
    """The configuration as `run` would use it. Raises ConfigError."""
    return load(chosen_config(path), AgentConfig, os.environ, AGENT_PREFIX)


def complete_vm(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names and ids of the running agent's VMs, for the shell; none where it cannot be asked."""
    from shared.control import ask  # noqa: PLC0415

    door = Door(context.params.get("config_path"), context.params.get("socket_path"))
    try:
        rows = ask(door.socket, "vms", timeout_s=COMPLETION_TIMEOUT_S)
    except (HostError, Refusal, ConfigError):
        return []
    words = {row[key] for row in rows for key in ("name", "vm_id")}
    return sorted(word for word in words if word.startswith(incomplete))


def show(result: Any, as_json: bool) -> None:
    """A mapping as JSON, or as lines `key: value`."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
        return
    for key, value in result.items():
        click.echo(f"{key}: {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}: {entry}" for name, entry in value.items()]
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    if value is None or value == "":
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows in aligned columns under a line of headings; None is "-"."""
    for line in table(columns, rows):
        click.echo(line)


def printable(line: str) -> str:
    """A VM's name is its owner's text: it must not steer this terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of an aligned table: numbers to the right, text to the left."""
    cells = [["-" if value is None or value == "" else printable(str(value)) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows) for i in range(len(columns))]
    return [
        "  ".join(line[i].rjust(widths[i]) if right[i] else line[i].ljust(widths[i]) for i in range(len(columns))).rstrip()
        for line in [list(columns), *cells]
    ]
