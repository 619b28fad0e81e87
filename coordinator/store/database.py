"""Connections to the registry's database: SQLite in a file, PostgreSQL by psycopg; what its faults mean.

Bounds: a connection is made or refused within CONNECT_S, a statement ends within STATEMENT_S, a lock is waited for BUSY_TIMEOUT_MS, at most
POOL connections are open and a caller waits POOL_WAIT_S for one. Invariants: a password and the values of a statement are in no message; a
connection that the server has closed is replaced before it is used (`pool_pre_ping`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared.config import CoordinatorConfig
from shared.errors import ConfigError, HostError

BUSY_TIMEOUT_MS: Final = 5000
CONNECT_S: Final = 5
STATEMENT_S: Final = 60  # pruning a table of a million rows takes seconds
POOL: Final = 8  # one writer, the API's readers, one spare
POOL_WAIT_S: Final = 10
UNSEEN_S: Final = 15  # a server that acknowledges nothing for so long is gone
MAX_PASSWORD_BYTES: Final = 4096
_DRIVERS: Final = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite"}
# the server is away, starts, stops, is read-only for a failover, or full: another try may do. The rest is a fault of the statement
_PASSING: Final = (OperationalError, InterfaceError, InternalError, DisconnectionError, PoolTimeout)


def registry_url(config: CoordinatorConfig) -> URL:
    """Where the registry is: `registry_url` with the password of `registry_password_file`; empty = a file in `state_dir`. ConfigError."""
    if not config.registry_url:
        return URL.create("sqlite", database=str(Path(config.state_dir) / "registry.sqlite"))
    url = _parsed(config.registry_url)
    if not config.registry_password_file:
        return url
    if url.password is not None:
        raise ConfigError("registry_password_file: registry_url holds a password already: allowed is one of the two")
    try:
        with Path(config.registry_password_file).open("rb") as file:
            secret = file.read(MAX_PASSWORD_BYTES + 1)
        password = secret.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"registry_password_file {config.registry_password_file}: {reason}") from None
    if not password or len(secret) > MAX_PASSWORD_BYTES:
        raise ConfigError(f"registry_password_file {config.registry_password_file}: allowed is one line of 1 to {MAX_PASSWORD_BYTES} bytes")
    return url.set(password=password)


def open_engine(url: str | URL) -> Engine:
    """An engine that has not connected yet. ConfigError where the URL means nothing that can be used."""
    parsed = _parsed(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed, hide_parameters=True)
            event.listen(engine, "connect", _set_pragmas)
            return engine
        return create_engine(
            parsed,
            hide_parameters=True,
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=POOL_WAIT_S,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_S,
                "application_name": "tidegate",
                "tcp_user_timeout": UNSEEN_S * 1000,
                "keepalives_idle": UNSEEN_S,
                "options": f"-c statement_timeout={STATEMENT_S}s -c lock_timeout={BUSY_TIMEOUT_MS * 6}ms -c timezone=UTC",
            },
        )
    except (ArgumentError, ModuleNotFoundError) as error:
        raise ConfigError(f"registry {shown(parsed)}: {error}") from error


def shown(url: URL) -> str:
    """For people: without the password."""
    return url.render_as_string(hide_password=True)


@contextmanager
def outages(engine: Engine, *, starting: bool = False) -> Iterator[None]:
    """What may pass becomes a HostError in one line. `starting`: a file that cannot be opened or is no database is a ConfigError."""
    try:
        yield
    except _PASSING as error:
        text = f"registry {shown(engine.url)}: {_line(error)}"
        if starting and engine.dialect.name == "sqlite" and not _passes(engine.url, error):
            raise ConfigError(text) from error
        raise HostError(text) from error
    except SQLAlchemyError as error:
        if starting:
            raise ConfigError(f"registry {shown(engine.url)}: {_line(error)}") from error
        raise


def _parsed(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # SQLAlchemy's own words are kept away: they might repeat a password
        raise ConfigError("registry: this is no URL; allowed are postgresql://USER@HOST/DATABASE and sqlite:///FILE") from None
    backend, _, driver = parsed.drivername.partition("+")
    if backend not in _DRIVERS or (driver and parsed.drivername != _DRIVERS[backend]):
        raise ConfigError(f"registry {shown(parsed)}: allowed are {', '.join(_DRIVERS)}")
    return parsed.set(drivername=_DRIVERS[backend])


def _passes(url: URL, error: SQLAlchemyError) -> bool:
    """A file that is full or in use may be had later; one that is none of ours, or in no folder, never."""
    name = getattr(getattr(error, "orig", None), "sqlite_errorname", "")
    if name.startswith("SQLITE_CANTOPEN"):  # also what a full disk says of the files beside it
        return url.database is not None and Path(url.database).is_file()
    return name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_LOCKED"))


def _line(error: SQLAlchemyError) -> str:
    """The driver's own words without the statement, its values and a link."""
    cause: object = getattr(error, "orig", None) or error
    return " ".join(str(cause).split("\n(Background", maxsplit=1)[0].split())


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # NORMAL with WAL may lose the last transactions on power loss but never corrupts; FULL keeps each one
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
