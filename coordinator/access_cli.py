"""`tidegate token` and `tidegate audit`: who gets in, and the proof of who did what. They work on the registry itself, coordinator or not.

Each write of theirs is a row of the audit like any other, by the account that ran the command.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import click

from coordinator.configured import CONFIG_OPTION, configuration
from shared.errors import ConfigError
from shared.roles import Role

DAY_NS: Final = 86_400 * 10**9


@click.group()
def token() -> None:
    """Bearer tokens of the API: who may do what, until when."""


@token.command("new")
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), default="operator", show_default=True, help="What it may do.")
@click.option("--client", help="Whose VMs it sees; with --role client.")
@click.option("--expires", type=click.FloatRange(0, 3650, min_open=True), help="Days from now until it ends [default: never].")
@CONFIG_OPTION
def token_new(name: str, role: str, client: str | None, expires: float | None, config_path: Path | None) -> None:
    """Make a token for NAME and print it once; only its hash is kept. A running coordinator knows it at once."""
    from coordinator.service.auth import new_token  # noqa: PLC0415  # --help need not wait for the imports
    from coordinator.store.tokens import Grant, id_of  # noqa: PLC0415

    if (role == Role.CLIENT) != bool(client):
        raise ConfigError("--client: needed with --role client, and only there")
    with _registry(config_path) as stores:
        plain, hashed = new_token()
        now_ns = time.time_ns()
        expires_ns = None if expires is None else now_ns + int(expires * DAY_NS)
        grant = Grant(
            id=id_of(hashed), name=name, role=Role(role), client=client, created_ns=now_ns, created_by=_who(), expires_ns=expires_ns
        )
        stores.tokens.save(hashed, grant, now_ns)
        stores.note("token new", grant.id, {"name": name, "role": role, "client": client, "expires_ns": expires_ns})
    click.echo(plain)


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@CONFIG_OPTION
def token_list(as_json: bool, config_path: Path | None) -> None:
    """Tokens: id, name, role, client, made, end, last use. None of them is shown."""
    import msgspec  # noqa: PLC0415

    with _registry(config_path) as stores:
        found = sorted(stores.tokens.grants().values(), key=lambda grant: (grant.created_ns, grant.id))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=1))
        return
    now_ns = time.time_ns()
    for grant in found:
        state = "in force" if grant.holds(now_ns) else "revoked" if grant.revoked_ns is not None else "expired"
        made, ends = _day(grant.created_ns), "never" if grant.expires_ns is None else _day(grant.expires_ns)
        used = "never" if grant.used_s is None else _day(grant.used_s * 10**9)
        of = f"client {grant.client}" if grant.client else grant.role.value
        click.echo(f"{grant.id}  {grant.name:24} {of:24} {state:8}  made {made} by {grant.created_by or '?'}, ends {ends}, used {used}")


@token.command("revoke")
@click.argument("token_id")
@CONFIG_OPTION
def token_revoke(token_id: str, config_path: Path | None) -> None:
    """Revoke the token of this id, or all of this name. A running coordinator refuses it within five seconds."""
    with _registry(config_path) as stores:
        gone = stores.tokens.revoke(token_id, time.time_ns())
        if not gone:
            raise ConfigError(f"token {token_id!r}: no token in force has this id or name; `tidegate token list` shows them")
        for grant in gone:
            stores.note("token revoke", grant.id, {"name": grant.name, "role": grant.role})
    for grant in gone:
        click.echo(f"revoked {grant.id} {grant.name}")


@click.group()
def audit() -> None:
    """The audit: every write and every refused one, in a chain of hashes."""


@audit.command("verify")
@click.option("--tip", help="SEQUENCE:HASH as an earlier run printed it: also prove that nothing before it is gone.")
@CONFIG_OPTION
def audit_verify(tip: str | None, config_path: Path | None) -> None:
    """Walk the chain from its first row; name the first row that is broken and end with 1."""
    from coordinator.store.audit_log import Wanted  # noqa: PLC0415

    with _registry(config_path) as stores:
        walk, broken = stores.log.verify()
        held = None
        if tip is not None and broken is None:
            sequence, _, expected = tip.partition(":")
            if not sequence.isdigit() or len(expected) != 64:
                raise ConfigError(f"--tip {tip!r}: allowed is SEQUENCE:HASH as `tidegate audit verify` prints it")
            rows = stores.log.newest(1, Wanted(before=int(sequence) + 1))
            held = bool(rows) and rows[0].sequence == int(sequence) and rows[0].hash == expected
    if broken is not None:
        raise click.ClickException(f"audit: row {broken.sequence} {broken.why}; {walk.rows} rows before it are whole")
    if held is False:
        raise click.ClickException(f"audit: row {tip} is not in the chain: rows were cut off or all of it was written anew")
    click.echo(f"whole: {walk.rows} rows, tip {walk.tip[0]}:{walk.tip[1]}")


class _Stores:
    """The registry's tables that these commands touch."""

    def __init__(self, engine: Any) -> None:
        from coordinator.store.audit_log import AuditLog  # noqa: PLC0415
        from coordinator.store.tokens import TokenStore  # noqa: PLC0415

        self.tokens = TokenStore(engine)
        self.log = AuditLog(engine)

    def note(self, action: str, target: str, what: dict[str, object]) -> None:
        """A row of the audit."""
        from coordinator.store.audit_chain import AuditEntry  # noqa: PLC0415

        entry = AuditEntry(
            time_ns=time.time_ns(),
            actor=_who(),
            role=Role.ADMIN,  # who may write the registry's file may do all
            how="cli",
            action=action,
            target=target,
            what=json.dumps({"asked": what}, sort_keys=True),
            status=0,
            result="ok",
            request_id=uuid4().hex,
        )
        self.log.append([entry])


@contextmanager
def _registry(config_path: Path | None) -> Iterator[_Stores]:
    from coordinator.store.database import registry_url  # noqa: PLC0415
    from coordinator.store.registry import SqlRegistry  # noqa: PLC0415

    config = configuration(config_path)
    Path(config.state_dir).mkdir(parents=True, exist_ok=True)
    registry = SqlRegistry(registry_url(config))
    try:
        yield _Stores(registry.engine)
    finally:
        registry.close()


def _who() -> str:
    """The account that runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name
        return "unknown"


def _day(ns: int) -> str:
    return datetime.fromtimestamp(ns / 10**9, UTC).strftime("%Y-%m-%d %H:%M")
