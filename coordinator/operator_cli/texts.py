"""`tidegate completion` and `tidegate man`: texts made of the tree of commands itself."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

import click

from shared.manual import manual_page

PROGRAM: Final = "tidegate"
EXIT_CODES: Final = (
    (0, "Done."),
    (1, "Failed."),
    (3, "Refused by the coordinator; the message names the refusal code."),
    (69, "The coordinator cannot be reached, or a store failed."),
    (78, "The command line or the configuration is wrong; the message names what."),
    (130, "Interrupted."),
)
FILES: Final = (
    (
        "/etc/tidegate/coordinator.toml",
        "Configuration of `run`, where it exists. Environment variables TIDEGATE_COORDINATOR_SETTING override it.",
    ),
    (
        "~/.config/tidegate/cli.toml",
        "url, token_file and ca of the coordinator that commands speak with (TIDEGATE_CLI_CONFIG: another file).",
    ),
    ("/var/lib/tidegate", "Registry, history and logs of frames (setting state_dir)."),
)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL, e.g. for /etc/bash_completion.d/tidegate."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415  # no other command needs it

    kind = get_completion_class(shell)
    assert kind is not None, shell
    script = kind(click.get_current_context().find_root().command, {}, PROGRAM, "_TIDEGATE_COMPLETE")
    # not source(): that runs the shell to ask for its version
    click.echo(script.source_template % script.source_vars())


@click.command()
def man() -> None:
    """Print the manual page: `tidegate man | man -l -`."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    click.echo(page(root), nl=False)


def page(root: click.Group) -> str:
    """The manual page, as committed in docs/tidegate.1."""
    return manual_page(root, PROGRAM, version("tidegate"), section=1, exit_codes=EXIT_CODES, files=FILES)
