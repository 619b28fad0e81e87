"""`tidegate-agent`: run the agent, or talk to the running one over its local socket.

Exit codes: 0 done, 1 failed (or doctor found something), 2 usage, 3 refused, 4 unreachable, 78 configuration.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from agent.cli.control import mode, pause, resume, undo
from agent.cli.door import CONFIG_OPTION, EXIT_FAILED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE, PROGRAM, read_config
from agent.cli.host import completion, config, doctor, man
from agent.cli.show import caps, dirty_rate, history, plan, status, top, vms, why
from shared.config import AgentConfig
from shared.errors import EXIT_CONFIG, ConfigError, HostError, Refusal
from shared.model import Mode


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
    """Run the agent in the foreground until SIGTERM or SIGINT; SIGHUP reads the configuration anew."""
    from agent.service import run_agent  # noqa: PLC0415  # the other commands start fast without it

    changes: dict[str, Any] = {}
    if hypervisor:
        changes["hypervisor"] = hypervisor
    if workload:
        changes["workload"] = str(workload)
    if mode:
        changes["default_mode"] = Mode(mode)

    def read() -> AgentConfig:
        return msgspec.structs.replace(read_config(config_path), **changes)

    asyncio.run(run_agent(read(), read))


for command in (status, mode, vms, top, plan, history, why, caps, dirty_rate, pause, resume, undo, doctor, config, completion, man):
    cli.add_command(command)


def main() -> NoReturn:
    """Entry point: known errors end with a sentence and their own exit code, bugs with a traceback."""
    code = 0
    try:
        ended = cli.main(prog_name=PROGRAM, complete_var="_TIDEGATE_AGENT_COMPLETE", standalone_mode=False)
        code = ended if isinstance(ended, int) else 0
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_FAILED
    except ConfigError as error:
        code = _end(str(error), EXIT_CONFIG)
    except Refusal as error:
        code = _end(f"refused: {error}", EXIT_REFUSED)
    except HostError as error:
        from shared.control import Unreachable  # noqa: PLC0415  # not needed for --help

        code = _end(str(error), EXIT_UNREACHABLE if isinstance(error, Unreachable) else EXIT_FAILED)
    except BrokenPipeError:
        # `| head` has seen enough; the interpreter must not complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(code)


def _end(text: str, code: int) -> int:
    click.echo(f"{PROGRAM}: {text}", err=True)
    return code


def _leave(code: int) -> NoReturn:
    """The interpreter waits for its threads, for ever when one hangs in libvirt; systemd is to start us anew now."""
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
