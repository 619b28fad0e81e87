"""What the manual page of tidegate-agent says beside its commands. Pure."""

from __future__ import annotations

from typing import Final

import click

from shared import manual
from shared.manual import commands

__all__ = ["EXIT_CODES", "FILES", "commands", "manual_page"]

EXIT_CODES: Final = (
    (0, "Done; doctor found nothing that fails."),
    (1, "Failed, or doctor found something."),
    (2, "The command line is wrong."),
    (3, "Refused by the agent; the message names the refusal code."),
    (4, "The agent cannot be reached."),
    (78, "The configuration is wrong; the message names the setting."),
    (130, "Interrupted."),
)
FILES: Final = (
    ("/etc/tidegate-agent/agent.toml", "Configuration, where it exists. Environment variables TIDEGATE_AGENT_SETTING override it."),
    ("/etc/tidegate-agent/PAUSE", "While this file exists, nothing is changed on this host (setting pause_file)."),
    ("/var/lib/tidegate-agent", "Journal, spool, pinned mode and kill switch (setting state_dir)."),
    ("/run/tidegate-agent/control.sock", "Where the commands reach the agent (setting socket_path)."),
)


def manual_page(root: click.Group, program: str, version: str) -> str:
    """The page in groff's man macros."""
    return manual.manual_page(root, program, version, section=8, exit_codes=EXIT_CODES, files=FILES)
