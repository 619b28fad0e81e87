"""Where the registry is: the setting, its password, and what errors and commands say of it, which is never the password."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from postgres_server import Postgres

from coordinator.cli import cli
from coordinator.fleet import Relocation
from coordinator.store.database import registry_url, shown
from coordinator.store.registry import SqlRegistry
from coordinator.store.schema import head
from coordinator.store.tokens import TokenStore
from coordinator.store.upkeep import copy
from shared.config import CoordinatorConfig
from shared.errors import ConfigError, HostError
from shared.plan import Outcome, OutcomeState, Step, StepKind

SECRET = "hunter2-%/@"


def config(tmp_path: Path, **changed: str) -> CoordinatorConfig:
    return CoordinatorConfig(state_dir=str(tmp_path), **changed)  # type: ignore[arg-type]


def test_empty_is_a_file_in_the_state_folder(tmp_path: Path) -> None:
    assert shown(registry_url(config(tmp_path))) == f"sqlite:///{tmp_path}/registry.sqlite"


def test_the_password_comes_from_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(SECRET + "\n")
    url = registry_url(config(tmp_path, registry_url="postgresql://me@db/tidegate?sslmode=require", registry_password_file=str(secret)))
    assert (url.password, url.drivername, url.query["sslmode"]) == (SECRET, "postgresql+psycopg", "require")
    assert shown(url) == "postgresql+psycopg://me:***@db/tidegate?sslmode=require"


@pytest.mark.parametrize(
    ("url", "password", "says"),
    [
        ("postgresql://me:hunter2@db/x", "hunter2", "holds a password already"),
        ("postgresql://me@db/x", "", "allowed is one line of 1 to 4096 bytes"),
        ("postgresql://me@db/x", "y" * 4097, "allowed is one line of 1 to 4096 bytes"),
        ("postgresql://me@db/x", None, "No such file"),
        ("hunter2 is no URL", "y", "this is no URL"),
        ("mysql://me:hunter2@db/x", "y", "allowed are postgresql, sqlite"),
        ("postgresql+pg8000://me:hunter2@db/x", "y", "allowed are postgresql, sqlite"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_a_secret(tmp_path: Path, url: str, password: str | None, says: str) -> None:
    if password is not None:
        (tmp_path / "password").write_text(password)
    with pytest.raises(ConfigError, match=says) as refused:
        registry_url(config(tmp_path, registry_url=url, registry_password_file=str(tmp_path / "password")))
    assert "hunter2" not in str(refused.value)


def test_a_server_that_is_away_is_a_host_error_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and nobody answers
        port = listener.getsockname()[1]
        with pytest.raises(HostError, match="onnection refused") as away:
            SqlRegistry(f"postgresql://me:hunter2@127.0.0.1:{port}/x")
    assert "hunter2" not in str(away.value)
    assert "\n" not in str(away.value)


@pytest.mark.server
def test_a_wrong_password_is_told_without_the_right_one(postgres: Postgres) -> None:
    with pytest.raises(HostError, match="password authentication failed") as refused:
        SqlRegistry(postgres.url("postgres").replace(postgres.password, "hunter2"))
    assert "hunter2" not in str(refused.value)


@pytest.mark.server
def test_values_of_a_statement_are_in_no_error(postgres: Postgres) -> None:
    registry = SqlRegistry(postgres.new_database())
    with pytest.raises(Exception, match="value too long") as refused:
        registry.save_token("sha256:" + "hunter2" * 30, "me", 1)
    assert "hunter2" not in str(refused.value)
    registry.close()


@pytest.mark.server
@pytest.mark.parametrize("to_postgres", [True, False])
def test_a_registry_moves_to_another_database_and_back(postgres: Postgres, tmp_path: Path, to_postgres: bool) -> None:
    urls = [f"sqlite:///{tmp_path}/old.sqlite", postgres.new_database()]
    old, new = urls if to_postgres else urls[::-1]
    registry = SqlRegistry(old)
    for _ in range(3):
        registry.next_epoch()
    step = Step(id="s1", vm_id="vm1", kind=StepKind.CPU_QUOTA, value=1, deadline_ns=9)
    registry.save_outcomes("h1", [Outcome(step=step, state=state) for state in (OutcomeState.VERIFIED, OutcomeState.UNDONE)])
    for n in range(3):
        registry.save_document(f"d{n:04}", str(n))
    registry.vm_hosts.save([Relocation(vm_id=f"vm{n}", host_id="h1", at_ns=n) for n in range(1500)])
    registry.close()
    settings = config(tmp_path, registry_url=new)
    assert copy(settings, old) > 1500
    moved = SqlRegistry(new)
    assert (moved.next_epoch(), moved.documents(), len(moved.outcomes(9))) == (4, {f"d{n:04}": str(n) for n in range(3)}, 2)
    assert moved.vm_hosts.of("vm1499", 9)[0].since_ns == 1499
    moved.save_outcomes("h2", [Outcome(step=step, state=OutcomeState.FAILED)])  # its number is none of those that came along
    assert len(moved.outcomes(9)) == 3
    moved.close()
    with pytest.raises(ConfigError, match="it was in use already"):
        copy(settings, old)


def test_a_registry_of_an_older_program_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="revision none, needed is"):
        copy(config(tmp_path), f"sqlite:///{tmp_path}/empty.sqlite")


@pytest.mark.server
def test_commands_follow_the_setting(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.new_database()
    secret = tmp_path / "password"
    secret.write_text(postgres.password)
    settings = tmp_path / "coordinator.toml"
    plain = url.replace(f":{postgres.password}", "")
    settings.write_text(f'state_dir = "{tmp_path}/state"\nregistry_url = "{plain}"\nregistry_password_file = "{secret}"\n')

    def tidegate(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [*arguments, "--config", str(settings)])
        return result.exit_code, result.output

    assert tidegate("registry", "url") == (0, url.replace(postgres.password, "***").replace("postgresql:", "postgresql+psycopg:") + "\n")
    code, output = tidegate("registry", "check")
    assert (code, output) == (1, f"Error: the registry is at revision none, this program at {head()}\n")
    assert tidegate("registry", "upgrade") == (0, f"up to date: revision {head()}, was none\n")
    assert tidegate("registry", "upgrade") == (0, f"up to date: revision {head()}\n")
    assert tidegate("registry", "check") == (0, f"up to date: revision {head()}\n")
    assert tidegate("token", "new", "grafana")[0] == 0
    registry = SqlRegistry(url)
    names = [grant.name for grant in TokenStore(registry.engine).grants().values()]
    registry.close()
    assert names == ["grafana"]
    assert not (tmp_path / "state" / "registry.sqlite").exists()
