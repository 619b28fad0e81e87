"""`tidegate`: run the coordinator or the demo, make certificates and tokens; an operator's commands are in coordinator/operator_cli."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from coordinator.access_cli import audit, token
from coordinator.alert_cli import alert
from coordinator.configured import CONFIG_OPTION, configuration
from coordinator.operator_cli.fleet import host, migration, vm
from coordinator.operator_cli.registered import groups
from coordinator.operator_cli.texts import completion, man
from shared.errors import EXIT_CONFIG, ConfigError, HostError, Refusal

EXIT_HOST = 69  # EX_UNAVAILABLE
EXIT_REFUSED = 3  # as the agent's


@click.group()
@click.version_option(package_name="tidegate")
def cli() -> None:
    """Tidegate: gives every VM of a KVM fleet its capacity before its demand arrives."""


@cli.command()
@CONFIG_OPTION
def run(config_path: Path | None) -> None:
    """Run the coordinator in the foreground until SIGTERM or SIGINT."""
    config = configuration(config_path)
    from coordinator.process import run_coordinator  # noqa: PLC0415  # seconds of imports that --help and a wrong setting need not wait for
    from shared.logging import configure  # noqa: PLC0415

    configure(config.log_level)
    asyncio.run(run_coordinator(config))


@cli.command()
@click.option("--hours", type=click.FloatRange(0.25, 168), default=6.0, show_default=True, help="Simulated hours that are scored.")
@click.option("--speed", type=click.FloatRange(1, 300), default=120.0, show_default=True, help="Simulated seconds per real second.")
@click.option("--hosts", type=click.IntRange(2, 64), default=6, show_default=True, help="Hosts, an agent process each; half are reactive.")
@click.option("--vms", type=click.IntRange(1, 64), default=12, show_default=True, help="VMs per host.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=1, show_default=True, help="Picks the VMs and everything random.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of traces [default: $TIDEGATE_DATA, ../shared/data, else generated].")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the scoreboard here.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port of the status page [default: any free one].")
@click.option("--linger", is_flag=True, help="Keep the status page up after the scoreboard until Ctrl-C.")
@click.option("--libvirt", is_flag=True, help="This machine's own libvirt domains instead of simulated hosts, in real time.")
@click.option("--mode", type=click.Choice(["observe", "reactive", "predictive"]), default="observe", help="Mode of --libvirt.")
def demo(**options: Any) -> None:
    """The whole product on this machine: half of the hosts reactive, half predictive, over the same workloads."""
    from coordinator.demo import DemoOptions  # noqa: PLC0415
    from coordinator.demo_console import run_demo, run_libvirt_demo  # noqa: PLC0415

    libvirt, mode = options.pop("libvirt"), options.pop("mode")
    chosen = DemoOptions(**options)
    sys.exit(asyncio.run(run_libvirt_demo(chosen, mode) if libvirt else run_demo(chosen)))


@cli.group()
def registry() -> None:
    """The registry's database: SQLite in state_dir, or PostgreSQL by registry_url."""


@registry.command("url")
@CONFIG_OPTION
def registry_show_url(config_path: Path | None) -> None:
    """Print where the registry is, without its password."""
    from coordinator.store.database import registry_url, shown  # noqa: PLC0415

    click.echo(shown(registry_url(configuration(config_path))))


@registry.command("check")
@CONFIG_OPTION
def registry_check(config_path: Path | None) -> None:
    """Say whether the registry can be reached and is up to date; ends with 1 where `upgrade`, or the next start, has something to do."""
    from coordinator.store.upkeep import check  # noqa: PLC0415

    found, wanted = check(configuration(config_path))
    if found != wanted:
        raise click.ClickException(f"the registry is at revision {found or 'none'}, this program at {wanted}")
    click.echo(f"up to date: revision {found}")


@registry.command("upgrade")
@CONFIG_OPTION
def registry_upgrade(config_path: Path | None) -> None:
    """Bring the registry to this program's schema, as every start of the coordinator does."""
    from coordinator.store.upkeep import upgrade  # noqa: PLC0415

    before, after = upgrade(configuration(config_path))
    click.echo(f"up to date: revision {after}" + ("" if before == after else f", was {before or 'none'}"))


@registry.command("copy")
@click.argument("source_url")
@CONFIG_OPTION
def registry_copy(source_url: str, config_path: Path | None) -> None:
    """Copy the registry at SOURCE_URL into the configured one, which must be new. Stop the coordinator first."""
    from coordinator.store.upkeep import copy  # noqa: PLC0415

    click.echo(f"copied {copy(configuration(config_path), source_url)} rows")


@cli.group()
def pki() -> None:
    """Certificates for the agents' door: a small authority in a folder."""


@pki.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", "names", multiple=True, default=("localhost",), show_default=True, help="DNS name of the coordinator.")
@click.option("--ip", "addresses", multiple=True, default=("127.0.0.1",), show_default=True, help="Address of the coordinator.")
def pki_init(folder: Path, names: tuple[str, ...], addresses: tuple[str, ...]) -> None:
    """Make an authority and the coordinator's certificate in FOLDER."""
    from coordinator.pki import create_ca, issue_coordinator  # noqa: PLC0415

    ca = create_ca(folder)
    files = issue_coordinator(folder, names, addresses)
    click.echo(f"ca: {ca.certificate}\ncertificate: {files.certificate}\nkey: {files.key}")


@pki.command("host")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("host_id")
def pki_host(folder: Path, host_id: str) -> None:
    """Make the certificate of the agent HOST_ID with the authority in FOLDER."""
    from coordinator.pki import issue_host  # noqa: PLC0415

    files = issue_host(folder, host_id)
    click.echo(f"certificate: {files.certificate}\nkey: {files.key}")


@pki.command("caller")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
def pki_caller(folder: Path, name: str) -> None:
    """Make the certificate of a caller of the HTTP door; access.subjects says what caller-NAME may do."""
    from coordinator.pki import issue_caller  # noqa: PLC0415

    files = issue_caller(folder, name)
    click.echo(f"certificate: {files.certificate}\nkey: {files.key}\nsubject: caller-{name}")


@cli.group()
def placement() -> None:
    """Look into placements."""


@placement.command("replay")
@click.argument("receipt", type=click.Path(path_type=Path))
def placement_replay(receipt: Path) -> None:
    """Solve a stored placement again and compare it bit for bit.

    RECEIPT: a file of STATE_DIR/placements. Ends with 1 where the answer differs.
    """
    # NumPy and the solver take a second to load, which no other command needs
    from coordinator.placement.solve import replay  # noqa: PLC0415
    from coordinator.store.placements import PlacementReceipts  # noqa: PLC0415

    problem, plan, answer = PlacementReceipts.read(receipt)
    differs = replay(problem, plan, answer)
    if differs:
        raise click.ClickException(differs)
    click.echo(f"the same: {len(answer)} VMs, {len(plan.moves)} moves, {plan.status}, digest {plan.digest[:12]}")


for command in (token, audit, alert, *groups(), vm, host, migration, completion, man):
    cli.add_command(command)


def main() -> None:
    """Entry point: known errors end with a sentence and their own exit code, bugs with a traceback."""
    try:
        cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_CONFIG if isinstance(error, click.UsageError) else 1)
    except ConfigError as error:
        click.echo(f"tidegate: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    except Refusal as error:
        click.echo(f"tidegate: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    except HostError as error:
        click.echo(f"tidegate: {error}", err=True)
        sys.exit(EXIT_HOST)
