"""Commands about this installation, which work without a running agent: doctor, config check and show, completion, man."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import click
import msgspec

from agent.cli.door import CONFIG_OPTION, EXIT_FAILED, JSON_OPTION, PROGRAM, chosen_config, read_config, show, show_table
from shared.config import AGENT_PREFIX, AgentConfig
from shared.config_file import load_with_origins, settings


@click.command()
@CONFIG_OPTION
@JSON_OPTION
def doctor(config_path: Path | None, as_json: bool) -> None:
    """Check kernel, libvirt, cgroups, tc, certificates, clock, state folder and settings; say how to mend what is wrong."""
    from agent.doctor import examine  # noqa: PLC0415  # the other commands start fast without it
    from agent.doctor.finding import Level  # noqa: PLC0415

    findings = examine(chosen_config(config_path), os.environ)
    worst = max(finding.level for finding in findings)
    if as_json:
        rows = [msgspec.to_builtins(finding) | {"level": finding.level.name.lower()} for finding in findings]
        show({"healthy": worst < Level.FAIL, "findings": rows}, True)
    else:
        for finding in findings:
            click.echo(f"{finding.level.name.lower():<4}  {finding.check:<12}  {finding.says}")
            if finding.mend:
                click.echo(f"{'':<20}-> {finding.mend}")
    if worst >= Level.FAIL:
        raise click.exceptions.Exit(EXIT_FAILED)


@click.group()
def config() -> None:
    """Check and show the configuration."""


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@JSON_OPTION
def check(file: Path | None, as_json: bool) -> None:
    """Is FILE (else the default one) with this environment a valid configuration? Exit code 78 and the reason where not."""
    path = chosen_config(file)
    read_config(path)
    result = {"valid": True, "file": str(path or "")}
    if as_json:
        show(result, True)
    else:
        click.echo(f"{path or 'built-in defaults'}: valid")


@config.command(name="show")
@CONFIG_OPTION
@click.option("--origin", is_flag=True, help="Also where each value comes from: default, file or environment variable.")
@JSON_OPTION
def show_settings(config_path: Path | None, origin: bool, as_json: bool) -> None:
    """Every setting and its value, as `run` would use them."""
    loaded, origins = load_with_origins(chosen_config(config_path), AgentConfig, os.environ, AGENT_PREFIX)
    rows = []
    for setting in settings(AgentConfig):
        value: object = loaded
        for part in setting.key.split("."):
            value = getattr(value, part)
        rows.append((setting.key, value, origins.get(setting.key, "default")))
    if as_json:
        show({key: {"value": value, "origin": whence} if origin else value for key, value, whence in rows}, True)
        return
    texts = [(key, msgspec.json.encode(value).decode(), whence) for key, value, whence in rows]
    if origin:
        show_table(("setting", "value", "origin"), texts)
    else:
        show_table(("setting", "value"), [row[:2] for row in texts])


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL, e.g. for /etc/bash_completion.d/tidegate-agent."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    kind = get_completion_class(shell)
    assert kind is not None, shell
    root = click.get_current_context().find_root().command
    script = kind(root, {}, PROGRAM, "_TIDEGATE_AGENT_COMPLETE")
    # not source(): that runs the shell to ask for its version
    click.echo(script.source_template % script.source_vars())


@click.command()
def man() -> None:
    """Print the manual page: `tidegate-agent man | man -l -`."""
    from agent.cli.manual import manual_page  # noqa: PLC0415

    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    click.echo(manual_page(root, PROGRAM, version("tidegate")), nl=False)
